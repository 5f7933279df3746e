"""Where does a gain come from: from length, from relevance, or from one component of the reward?

    length_controlled(results)                            # gain over SFT, raw and at equal length, per method
    relevance_controlled(results)                         # the same at equal similarity to the post
    component_shares(reward, posts, before, after)        # what each component adds to the reward's gain

Policies trained on a reward often gain most of it by length (Singhal et al. 2023, arXiv 2310.03716), and judges of all
kinds like one length better than another (AlpacaEval's length-controlled win rate, Dubois et al. 2024). Here by
regression; `matched` compares inside bins, `components` takes the reward apart as it is defined.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from polylib.evaluation.stats import two_way_t

BOOTSTRAP = 1000
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


def component_shares(reward, posts: list[str], before: list[str], after: list[str], columns: list[str] | None = None,
                     seed: int = 0) -> pd.DataFrame:
    """component, weight, gain, share, share_low, share_high, gain_without: the reward's gain from `before` to `after`
    (N replies each, to the same `posts` in the same order), split by component.

    The weights are those of the linear regression of the reward on `columns` of `reward.components` (default: learned,
    heuristic and coherence as far as present, else all); what is not linear in them (a floor, a clip) is `rest`.
    share: of the whole gain, 95 % bootstrap over posts, NaN where the gain itself is not clear of 0. gain_without: the
    gain that is left with the component removed, weights as they are."""
    texts, under = [*before, *after], [*posts, *posts]
    total, parts = np.asarray(reward(under, texts), dtype=float), reward.components(under, texts)
    top = [name for name in ("learned", "heuristic", "coherence") if name in parts]
    columns = columns or (top if len(top) > 1 else list(parts))
    x = parts[columns].to_numpy(dtype=float)
    weights = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), total, rcond=None)[0][:-1]
    n = len(before)
    gains = (x[n:] - x[:n]) * weights
    whole = total[n:] - total[:n]
    gains = np.column_stack([gains, whole - gains.sum(axis=1)])
    group = pd.factorize(np.asarray(posts, dtype=object))[0]
    sums = np.stack([np.bincount(group, column) for column in gains.T], axis=1)  # (posts, components)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=BOOTSTRAP) @ sums
    clear = np.quantile(draws.sum(axis=1), 0.025) > 0 or np.quantile(draws.sum(axis=1), 0.975) < 0
    shares = draws / draws.sum(axis=1, keepdims=True) if clear else np.full_like(draws, np.nan)
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    mean = gains.mean(axis=0)
    return pd.DataFrame({"component": [*columns, "rest"], "weight": [*weights, np.nan], "gain": mean,
                         "share": mean / mean.sum() if clear else np.nan, "share_low": low, "share_high": high,
                         "gain_without": mean.sum() - mean})


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
