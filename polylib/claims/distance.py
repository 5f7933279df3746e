"""How far every run is from the model it started from, and from people: one row a run, from files alone.

    distance.likelihood(results)       # perplexity and exact KL of a policy's own replies
    distance.likeness(results)         # can a classifier tell them from people's?
"""
from __future__ import annotations

import json

import numpy as np
import pandas as pd

from polylib.claims.results import Results, beside
from polylib.config import UserError
from polylib.evaluation.likelihood import COLUMNS, FILE, means


def likelihood(results: Results) -> pd.DataFrame:
    """method, seed (NaN for human and base) and `evaluation.likelihood.means` of every cell's likelihood.csv, in the
    order of the report; the run is the unit of any claim. UserError for a cell without the file."""
    return pd.DataFrame([{"method": method, "seed": np.nan if seed is None else seed, **means(table)}
                         for (method, seed), table in beside(results, FILE, COLUMNS).items()])


def likeness(results: Results) -> pd.DataFrame:
    """method, seed (NaN for human and base) and the numbers of section `likeness` of every cell's metrics.json, NaN
    where they are not defined (`reason` says why). UserError for a cell without the section."""
    rows = []
    for method, seed in dict.fromkeys((method, seed) for method, seed, _ in results.frames):
        file = results.paths.evaluation(method, seed) / "metrics.json"
        section = json.loads(file.read_text(encoding="utf-8")).get("likeness") if file.is_file() else None
        if section is None:
            raise UserError(f"{file}: no section likeness; run `dvc repro`")
        nulls = {name: value["reason"] for name, value in section.items() if isinstance(value, dict)}
        rows.append({"method": method, "seed": np.nan if seed is None else seed, **section,
                     **dict.fromkeys(nulls, np.nan), "reason": "; ".join(dict.fromkeys(nulls.values()))})
    return pd.DataFrame(rows)
