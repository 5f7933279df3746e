"""What is left of a gain at equal length, or at equal relevance?

    length_controlled(results)                            # gain over SFT, raw and at equal length, per method
    relevance_controlled(results)                         # the same at equal similarity to the post

Policies trained on a reward often gain most of it by length (Singhal et al. 2023, arXiv 2310.03716), and judges of all
kinds like one length better than another (AlpacaEval's length-controlled win rate, Dubois et al. 2024). Here by
regression; `matched` compares inside bins, `reward_parts` takes the reward apart as it is defined.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from polylib.claims.stats import two_way_t

BINS = 20  # of the histogram behind `overlap`
NO_OVERLAP = "{}s hardly overlap: the value at equal {} is extrapolated"
SCORES = ("reward_mean", "judge_mean")


def length_controlled(results, scores: tuple[str, ...] = SCORES) -> pd.DataFrame:
    """`length_controlled_gain` of every method of a study over SFT, for each score: its columns after method and
    score."""
    return _controlled(results, scores, "length_words", "length", length_controlled_gain)


def relevance_controlled(results, scores: tuple[str, ...] = SCORES) -> pd.DataFrame:
    """`relevance_controlled_gain` of every method of a study over SFT, as `length_controlled`."""
    return _controlled(results, scores, "relevance", "relevance", relevance_controlled_gain)


def _controlled(results, scores, metric: str, name: str, gain) -> pd.DataFrame:
    parts = []
    for score in scores:
        values, others = results.cells(score), results.cells(metric)
        table = pd.concat([pd.DataFrame({"method": method, "seed": seed, "prompt_id": series.index, name: others[
            method, seed].loc[series.index].to_numpy(), "value": series.to_numpy()})
            for (method, seed), series in values.items() if seed is not None], ignore_index=True)
        parts += [gain(table, method).assign(method=method, score=score)
                  for method in results.cfg.methods if method != "sft"]
    out = pd.concat(parts, ignore_index=True)
    return out[["method", "score", *(name for name in out if name not in ("method", "score"))]]


def length_controlled_gain(table: pd.DataFrame, method: str, start: str = "sft") -> pd.DataFrame:
    """One row: raw, raw_low, raw_high (gain of `method` over `start`), controlled, controlled_low, controlled_high (the
    same at equal length), slope (of value on log length), words (mean length difference), overlap, reason.

    table: method, seed, prompt_id, length (words), value; one row a reply, or a mean a post. value = post + cell +
    slope * log1p(length), a cell being one method's run, so the slope never compares the methods themselves.
    Intervals: runs and posts both random (posts alone for one run), t with Satterthwaite's degrees of freedom; the
    slope's error (clustered by post) is added. overlap: shared area of both length histograms; below .5 `reason` says
    that the controlled gain is extrapolated."""
    return _gain(table.assign(log=np.log1p(table["length"])), method, start, "length").rename(columns={"gap": "words"})


def relevance_controlled_gain(table: pd.DataFrame, method: str, start: str = "sft") -> pd.DataFrame:
    """`length_controlled_gain` at equal relevance (cosine of post and reply, column `relevance`, as it is): the mean
    difference is in column `relevance`.

    A reward that pays for relevance gains through it by design: what is left is the part of the gain that did not need
    it, which is no claim about causes."""
    row = _gain(table.assign(log=table["relevance"]), method, start, "relevance")
    return row.rename(columns={"gap": "relevance"})


def _gain(table: pd.DataFrame, method: str, start: str, by: str) -> pd.DataFrame:
    """`log` is the column that the value is regressed on, `by` the one whose difference is reported."""
    rows = table[table["method"].isin([method, start])].dropna(subset=["value", by])
    rows = rows.assign(cell=rows["method"] + rows["seed"].astype(str))
    slope, error = _slope(rows)
    mean = rows.groupby(["method", "seed", "prompt_id"])[["value", "log", by]].mean()
    gap = (mean.loc[method] - mean.loc[start]).dropna()
    gaps = {name: gap[name].unstack("prompt_id").dropna(axis=1).to_numpy() for name in ("value", "log")}
    raw = _claim(gaps["value"])
    distance = gaps["log"].mean()
    controlled = _claim(gaps["value"] - slope * gaps["log"], distance * error)
    overlap = _overlap(*(rows.loc[rows["method"].eq(name), "log"].to_numpy() for name in (method, start)))
    return pd.DataFrame([{
        **dict(zip(("raw", "raw_low", "raw_high"), raw)),
        **dict(zip(("controlled", "controlled_low", "controlled_high"), controlled)),
        "slope": slope, "gap": gap[by].mean(), "overlap": overlap,
        "reason": NO_OVERLAP.format(by, by) if overlap < 0.5 else ""}])


def _slope(rows: pd.DataFrame) -> tuple[float, float]:
    """Within-post, within-cell slope of value on `log`, and its standard error clustered by post."""
    y, x = (_demean(rows, name) for name in ("value", "log"))
    total = float(x @ x)
    if total < 1e-12:
        return 0.0, 0.0  # all alike: nothing to control
    slope = float(x @ y) / total
    score = np.bincount(pd.factorize(rows["prompt_id"])[0], x * (y - slope * x))
    return slope, float(np.sqrt((score**2).sum() * len(score) / max(len(score) - 1, 1)) / total)


def _demean(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Values less the effects of post and cell: alternating projections, which reach least squares (exact in one round
    when every cell answers every post equally often)."""
    values = rows[name].to_numpy(dtype=float)
    groups = [pd.factorize(rows[key])[0] for key in ("prompt_id", "cell")]
    for _ in range(100):
        before = values
        for group in groups:
            values = values - (np.bincount(group, values) / np.bincount(group))[group]
        if np.abs(values - before).max() < 1e-10:
            break
    return values


def _claim(values: np.ndarray, extra: float = 0.0) -> tuple[float, float, float]:
    """(mean, low, high) of differences (S, P); `extra` is one more standard error, independent of them."""
    if len(values) > 1:
        effect, error, df = two_way_t(values)
    else:
        effect, error, df = values.mean(), stats.sem(values[0]), values.shape[1] - 1
    half = stats.t.ppf(0.975, df) * np.hypot(error, extra)
    return float(effect), float(effect - half), float(effect + half)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    edges = np.histogram_bin_edges(np.concatenate([a, b]), BINS)
    shares = [np.histogram(part, edges)[0] / len(part) for part in (a, b)]
    return float(np.minimum(*shares).sum())
