"""How far every run is from the model it started from: one row a run, from files alone.

distance.likelihood(results)       # perplexity and exact KL of a policy's own replies
"""

from __future__ import annotations

import pandas as pd

from polylib.analysis.results import Results, read_csv
from polylib.evaluation.likelihood import COLUMNS, FILE, means


def likelihood(results: Results) -> pd.DataFrame:
    """method, seed (NaN for human and base) and `evaluation.likelihood.means` of every cell's likelihood.csv, in the
    order of the report; the run is the unit of any claim. UserError for a cell without the file."""
    rows = []
    for method, seed in dict.fromkeys(cell[:2] for cell in results.frames):
        table = read_csv(results.paths.evaluation(method, seed) / FILE, COLUMNS)
        rows.append({"method": method, "seed": seed, **means(table)})
    return pd.DataFrame(rows).astype({"seed": float})
