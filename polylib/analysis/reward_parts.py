"""Which part of the trained reward produced a gain, and what is left of the gain without it.

    reward_parts.decompose(results)        # a row a method and part: share of its gain over SFT

The parts are those of `evaluation.components`. A part's gain may be negative, and its share then too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis.results import Results, beside
from polylib.config import UserError
from polylib.evaluation.components import FILE, KEYS, WITHOUT

UNCLEAR = "the whole gain is not clear of 0: there is nothing to share out"
SHARES = [
    "component",
    "gain",
    "gain_low",
    "gain_high",
    "share",
    "gain_without",
    "without_low",
    "without_high",
    "reason",
]


def read(results: Results) -> pd.DataFrame:
    """method, seed (NaN for human and base) and the columns of components.csv of every cell, at the training
    temperature. UserError for a cell that has none, or other parts than the first."""
    table = beside(results, FILE, [*KEYS, "reward"])
    part = table.drop(columns=[*KEYS, "seed"])
    if part.isna().any(axis=None):  # a part that some cell has and another one lacks
        method = part.loc[part.isna().any(axis=1), "method"].iloc[0]
        raise UserError(
            f"{results.paths.results('evaluation')}/{method}: {FILE} has columns of another reward than "
            "other cells; run `dvc repro`"
        )
    here = table["temperature"].isna() | np.isclose(
        table["temperature"], results.cfg.sampling.temperature
    )
    return table.loc[here, ["method", "seed", *table.columns.drop(["method", "seed"])]].reset_index(
        drop=True
    )


def decompose(results: Results, start: str = "sft") -> pd.DataFrame:
    """`shares` of every method of a study over `start`, method first."""
    table = read(results)
    return pd.concat(
        [
            shares(table, method, start).assign(method=method)
            for method in results.cfg.methods
            if method != start
        ],
        ignore_index=True,
    )[["method", *SHARES]]


def shares(table: pd.DataFrame, method: str, start: str = "sft") -> pd.DataFrame:
    """A row a part, the whole (`reward`) first and `heuristic` (sum of its rules) before the rules: gain of `method`
    over `start`, paired by post, with interval (runs and posts both random); share of the whole gain, NaN with reason
    where that is not clear of 0; gain_without, the gain re-scored with the part removed, where the reward has others.

    table: method, seed, prompt_id, reward and parts, as from `read`."""
    rules = [name for name in table if name.startswith("heuristic_")]
    if rules:
        table = table.assign(heuristic=table[rules].sum(axis=1))
    parts = [
        name
        for name in table
        if name not in ("method", "seed", "reward", "heuristic", *KEYS)
        and not name.startswith(WITHOUT)
    ]
    place = parts.index(rules[0]) if rules else 0
    parts = ["reward", *parts[:place], *(["heuristic"] if rules else []), *parts[place:]]
    whole, claim = _gain(table, "reward", method, start)
    clear = claim.low > 0 or claim.high < 0
    rows = []
    for name in parts:
        gain, own = _gain(table, name, method, start)
        row = {
            "component": name,
            "gain": gain,
            "gain_low": own.low,
            "gain_high": own.high,
            "share": gain / whole if clear else np.nan,
            "gain_without": np.nan,
            "without_low": np.nan,
            "without_high": np.nan,
            "reason": "" if clear else UNCLEAR,
        }
        if WITHOUT + name in table:
            left, other = _gain(table, WITHOUT + name, method, start)
            row |= {"gain_without": left, "without_low": other.low, "without_high": other.high}
        rows.append(row)
    return pd.DataFrame(rows, columns=SHARES)


def _gain(table: pd.DataFrame, name: str, method: str, start: str) -> tuple[float, stats.Claim]:
    values = table.set_index(["method", "seed", "prompt_id"])[name]
    return stats.interval((values.loc[method] - values.loc[start]).unstack("prompt_id").to_numpy())
