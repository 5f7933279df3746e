"""Every reply of a study at the training temperature, people's included, with its scores: what people read.

frame = replies.load(results)      # method, seed, post_id, post, sample, reply, judge, reward, relevance, flags
"""

from __future__ import annotations

import json
import re
from pathlib import Path

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
    """One row a reply in the order of methods and seeds, then post, sample; seed is None for people and the base model.
    `flags` are lists of names out of `failures.RULES`. UserError where a file is missing, lacks a column (results of an
    older version) or names a failure without a rule."""
    parts = []
    for method, seed in dict.fromkeys(key[:2] for key in results.frames):
        frame = _read(results.paths.evaluation(method, seed) / "generations.jsonl")
        temperature = frame["temperature"].astype(float)
        at_training = temperature.isna() | (
            temperature - results.cfg.sampling.temperature
        ).abs().lt(1e-9)
        part = frame[at_training].sort_values(["post_id", "sample"], kind="stable")
        parts.append(part.assign(method=method, seed=seed).astype({"seed": object}))
    return pd.concat(parts, ignore_index=True)[["method", "seed", *COLUMNS]]


def cell(frame: pd.DataFrame, method: str, seed: int | None) -> pd.DataFrame:
    """The rows of one run (seed None: of people, or of the base model) out of `load`."""
    own = frame["seed"].isna() if seed is None else frame["seed"].eq(seed)
    return frame[frame["method"].eq(method) & own].reset_index(drop=True)


def _read(file: Path) -> pd.DataFrame:
    remedy = "run notebook 07_evaluation or `dvc repro`"
    if not file.is_file():
        raise UserError(f"{file}: missing; {remedy}")
    with file.open(encoding="utf-8") as stream:  # not read_json: ids stay text, lists stay lists
        frame = pd.DataFrame([_whole(json.loads(line)) for line in stream])
    absent = [name for name in COLUMNS if name not in frame]
    if absent:
        raise UserError(f"{file}: no column {absent[0]}: written by an older version; {remedy}")
    unknown = sorted({name for names in frame["flags"] for name in names} - set(RULES))
    if unknown:
        raise UserError(
            f"{file}: no rule for flag {unknown[0]}: written by another version; {remedy}"
        )
    return frame.astype({"post_id": str})


def _whole(row: dict) -> dict:
    return {
        key: HALF.sub("\ufffd", value) if isinstance(value, str) else value
        for key, value in row.items()
    }
