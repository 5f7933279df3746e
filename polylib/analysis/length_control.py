"""How often does one side win, and how often would it win at equal length?

    found = win_rate(wins, length_a, length_b, posts)      # found.raw, found.lc, found.low, found.high, found.overlap

Length-controlled win rate after AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475):
logit P(a wins) = theta + phi tanh(d / sd(d)), d = length of a - length of b, read at d = 0. Here
with soft wins (binomial quasi-likelihood), every post weighing the same, and errors clustered by post. Left out on
purpose: their penalty towards a model tuned to look gamed, which needs their leaderboard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

PRIOR = (
    0.01  # precision of a normal prior (sd 10) on theta and phi: finite where one side wins always
)
FAR, RELATIVE = (
    0.10,
    0.25,
)  # AlpacaEval's rule: more than both apart, and length explains much of the raw rate
BINS = 20  # of the histograms behind `overlap`
CONSTANT = "one length difference everywhere: what it is worth cannot be told apart"
EXTRAPOLATED = "lengths hardly overlap: the value at equal length is extrapolated"


@dataclass(frozen=True)
class WinRate:
    """Shares from 0 to 1. raw: mean over posts of the share won, ties half; lc: the same at equal length, with standard
    error se and a 95 % interval (posts are the sample); overlap: shared area of both length histograms; missing: pairs
    without a verdict; reason: what to know before using lc, or why it is NaN.

    posts (P,), by_post (P,) and lc_by_post (P,): share won at each post and its pseudo-value of lc, whose mean is lc
    and whose variance / P is se^2, for intervals that span several runs."""

    raw: float
    lc: float
    se: float
    low: float
    high: float
    overlap: float
    pairs: int
    missing: int
    reason: str
    posts: np.ndarray
    by_post: np.ndarray
    lc_by_post: np.ndarray


def win_rate(wins, length_a, length_b, posts) -> WinRate:
    """wins (N,): 1 = a, 0 = b, between = soft, NaN = missing, left out and counted. length_a, length_b (N,): of the
    replies, any unit. posts (N,): the clusters.

    ValueError for shapes that differ or a win outside [0, 1]; without a verdict all is NaN, with the reason."""
    y, a, b = (np.asarray(v, dtype=float) for v in (wins, length_a, length_b))
    posts = np.asarray(posts)
    if (
        not y.shape == a.shape == b.shape == posts.shape
        or np.nanmin(y, initial=0) < 0
        or np.nanmax(y, initial=0) > 1
    ):
        raise ValueError(
            f"wins in [0, 1], lengths and posts must be (N,), found {[len(v) for v in (y, a, b, posts)]}"
        )
    keep = np.isfinite(y)
    y, a, b, posts, missing = y[keep], a[keep], b[keep], posts[keep], int((~keep).sum())
    if not len(y):
        nothing = np.zeros(0)
        return WinRate(
            *[math.nan] * 6, 0, missing, "no pair has a verdict", nothing, nothing, nothing
        )
    names, group = np.unique(posts, return_inverse=True)
    weight = 1 / np.bincount(group)[group]
    x = np.stack([np.ones(len(y)), _scaled(a - b)], axis=1)
    beta, hessian = _newton(x, y, weight)
    chance = _sigmoid(x @ beta)
    level = x * [1, 0]  # at equal length
    at = _sigmoid(level @ beta)
    total = weight.sum()
    gradient = (weight * at * (1 - at)) @ level / total
    by_row = (x * (weight * (y - chance))[:, None]) @ np.linalg.solve(hessian, gradient)
    influence = np.bincount(group, by_row)
    raw_by_post, n = np.bincount(group, weight * y), len(names)
    lc, raw = float(weight @ at / total), float(raw_by_post.mean())
    found = WinRate(
        raw,
        lc,
        math.nan,
        math.nan,
        math.nan,
        overlap(a, b),
        len(y),
        missing,
        "",
        names,
        raw_by_post,
        lc + n * (influence - influence.mean()),
    )
    if np.ptp(a - b) < 1e-12 and abs(a[0] - b[0]) > 1e-12:
        return replace(found, lc=math.nan, lc_by_post=np.full(n, math.nan), reason=CONSTANT)
    return _with_interval(found, n)


def _with_interval(found: WinRate, n: int) -> WinRate:
    """The interval on the logit scale, where it cannot leave [0, 1]; and what a reader has to be told."""
    if n < 2:
        return replace(found, reason="one post: no interval")
    if np.ptp(found.by_post) < 1e-12 and found.raw in (0.0, 1.0):
        return replace(found, reason=f"{'won' if found.raw else 'lost'} at every post: no interval")
    se = float(found.lc_by_post.std(ddof=1) / math.sqrt(n))
    middle, half = (
        math.log(found.lc / (1 - found.lc)),
        stats.t.ppf(0.975, n - 1) * se / (found.lc * (1 - found.lc)),
    )
    low, high = (float(_sigmoid(np.array(middle + sign * half))) for sign in (-1, 1))
    apart = abs(found.lc - found.raw)
    told = [EXTRAPOLATED] if found.overlap < 0.5 else []
    told += (
        ["length explains much of the raw rate"]
        if apart > FAR and apart > RELATIVE * found.raw
        else []
    )
    return replace(found, se=se, low=low, high=high, reason="; ".join(told))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap coefficient of two samples of lengths, 0 to 1: shared area of their histograms on log(1 + length)."""
    a, b = np.log1p(a), np.log1p(b)
    edges = np.histogram_bin_edges(np.concatenate([a, b]), BINS)
    shares = [np.histogram(part, edges)[0] / len(part) for part in (a, b)]
    return float(np.minimum(*shares).sum())


def _scaled(difference: np.ndarray) -> np.ndarray:
    spread = difference.std()
    return np.tanh(difference / spread) if spread > 1e-12 else np.zeros(len(difference))


def _newton(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the weighted logistic regression of soft y on x (N, K), and the Hessian there."""
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        chance = _sigmoid(x @ beta)
        hessian = (x * (weight * chance * (1 - chance))[:, None]).T @ x + PRIOR * np.eye(len(beta))
        step = np.linalg.solve(hessian, x.T @ (weight * (y - chance)) - PRIOR * beta)
        step *= min(
            1.0, 2.0 / max(np.abs(step).max(), 1e-300)
        )  # at most 2 log-odds at once: no overshoot
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            return beta, hessian
    raise ArithmeticError("the length-controlled win rate did not converge")


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(z / 2))
