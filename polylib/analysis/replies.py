"""Every reply of a study at the training temperature, people's included, with its scores: what people read.

frame = replies.load(results)      # method, seed, post_id, post, sample, reply, judge, reward, relevance, flags
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.analysis.results import Results
from polylib.config import UserError
from polylib.evaluation.failures import RULES

COLUMNS = (
    "post_id",
    "post",
    "sample",
    "temperature",
    "reply",
    "tokens",
    "truncated",
    "judge",
    "reward",
    "relevance",
    "flags",
)
HALF = re.compile(r"[\ud800-\udfff]")  # half a character: JSON can hold it, no other file can


def load(results: Results) -> pd.DataFrame:
    """One row a reply in the order method, seed, post, sample; seed is None for people and the base model. `flags` are
    lists of names out of `failures.RULES`. UserError where a file is missing, lacks a column (results of an older
    version) or is not readable."""
    parts = []
    for method, seed in dict.fromkeys(key[:2] for key in results.frames):
        frame = _read(results.paths.evaluation(method, seed) / "generations.jsonl")
        temperature = frame["temperature"].astype(float)
        at_training = temperature.isna() | (
            temperature - results.cfg.sampling.temperature
        ).abs().lt(1e-9)
        parts.append(frame[at_training].assign(method=method, seed=seed))
    order = {method: i for i, method in enumerate(results.methods)}
    parts.sort(key=lambda part: (order[part["method"].iloc[0]], part["seed"].iloc[0] or 0))
    parts = [
        part.sort_values(["post_id", "sample"], kind="stable").astype({"seed": object})
        for part in parts
    ]
    return pd.concat(parts, ignore_index=True)[["method", "seed", *COLUMNS]]


def cell(frame: pd.DataFrame, method: str, seed: int | None) -> pd.DataFrame:
    """The rows of one run (seed None: of people, or of the base model) out of `load`."""
    own = frame["seed"].isna() if seed is None else frame["seed"].eq(seed)
    return frame[frame["method"].eq(method) & own].reset_index(drop=True)


def _read(file: Path) -> pd.DataFrame:
    remedy = "run notebook 07_evaluation or `dvc repro`"
    if not file.is_file():
        raise UserError(f"{file}: missing; {remedy}")
    rows = []
    with file.open(
        encoding="utf-8"
    ) as stream:  # json.loads, not read_json: ids stay text, lists stay lists
        for number, line in enumerate(stream, 1):
            try:
                rows.append(
                    {
                        key: HALF.sub("\ufffd", value) if isinstance(value, str) else value
                        for key, value in json.loads(line).items()
                    }
                )
            except (ValueError, AttributeError) as error:
                raise UserError(f"{file}:{number}: no JSON object ({error}); {remedy}") from error
    frame = pd.DataFrame(rows)
    absent = [name for name in COLUMNS if name not in frame]
    if absent or frame.empty:
        what = f"no column {absent[0]}: written by an older version" if rows else "no rows"
        raise UserError(f"{file}: {what}; {remedy}")
    unknown = sorted({name for names in frame["flags"] for name in names} - set(RULES))
    if unknown:
        raise UserError(
            f"{file}: no rule for flag {unknown[0]}: written by another version; {remedy}"
        )
    if not np.isfinite(frame["judge"].astype(float)).all():
        raise UserError(f"{file}: a reply has no judge score; {remedy}")
    return frame.astype({"post_id": str})
