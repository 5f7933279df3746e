"""Exact tests with the smallest p they can reach, and effect sizes. numpy and scipy only.

Three runs a method cannot reach .05 by any exact test on runs: 3 against 3 give at least .10 by ranks (Mann-Whitney)
and .25 by signs (paired). The floor stands beside each p, so that "not significant" is not read as "no effect".
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats

MOST_SPLITS = 200_000


@dataclass(frozen=True)
class Exact:
    """Two-sided p, the smallest p the design can give, and what the test takes as fixed."""

    p: float
    floor: float
    given: str
    n: int = 0  # observations that the test used


def mann_whitney_runs(a: np.ndarray, b: np.ndarray) -> Exact:
    """Mann-Whitney on run means, one number a run, over all C(n + m, n) splits; ties get mid-ranks. ValueError above
    200 000 splits (9 against 9 runs and more)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    n, total = len(a), len(a) + len(b)
    if comb(total, n) > MOST_SPLITS:
        raise ValueError(f"{n} against {len(b)} runs have {comb(total, n)} splits; use stats.method_claim")
    ranks = stats.rankdata(np.concatenate([a, b]))
    sums = np.array([ranks[list(chosen)].sum() for chosen in itertools.combinations(range(total), n)])
    centre = n * (total + 1) / 2
    p = float((abs(sums - centre) >= abs(ranks[:n].sum() - centre) - 1e-9).mean())
    return Exact(p, min(1.0, 2 / comb(total, n)), "nothing: runs are the sample", total)


def mcnemar(a: np.ndarray, b: np.ndarray) -> Exact:
    """Exact McNemar on discordant prompts: a, b (S, P) of 0 and 1, or (P,). With several runs a prompt is discordant
    where more runs of one method pass than of the other. ValueError for other values."""
    a, b = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError("McNemar needs values of 0 and 1")
    d = a.sum(axis=0) - b.sum(axis=0)
    wins, discordant = int((d > 0).sum()), int((d != 0).sum())
    if discordant == 0:
        return Exact(1.0, 1.0, "these checkpoints; no discordant prompt", 0)
    p = float(stats.binomtest(wins, discordant).pvalue)
    return Exact(p, min(1.0, 2.0 ** (1 - discordant)), "these checkpoints", discordant)


def as_asked(a: np.ndarray, b: np.ndarray) -> Exact:
    """Mann-Whitney on all values of a against all of b, as papers report it. It takes prompts, runs and replies as one
    independent sample, which they are not: a p of these checkpoints on these prompts at best, and no claim about a
    method. Its measured rate of false positives is in `simulation.error_rates`."""
    a, b = np.ravel(a), np.ravel(b)
    p = float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)
    return Exact(p, np.nan, "these checkpoints and prompts, all values as if independent", len(a) + len(b))


def cliffs_delta(a: np.ndarray, b: np.ndarray) -> float:
    """P(a > b) - P(a < b) over all pairs (Cliff 1993); 2 U / (n m) - 1."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if not len(a) or not len(b):
        raise ValueError("Cliff's delta of an empty sample")
    return float(2 * stats.mannwhitneyu(a, b, method="asymptotic").statistic / (len(a) * len(b)) - 1)


def delta_by_prompt(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cliff's delta (S, P) of a's replies (S, P, G) against b's (S, P, H), within each seed and prompt: posts differ
    in what can be said to them, so replies to different posts are never compared."""
    signs = np.sign(a[..., :, None] - b[..., None, :])
    return signs.mean(axis=(-2, -1))


def d_z(d: np.ndarray) -> float:
    """Paired effect in standard deviations of the prompts' differences: d (S, P), seeds averaged. NaN where every
    prompt differs by the same amount."""
    per_prompt = np.atleast_2d(d).mean(axis=0)
    spread = per_prompt.std(ddof=1) if len(per_prompt) > 1 else 0.0
    return float(per_prompt.mean() / spread) if spread > 1e-12 else np.nan
