"""Tests by rank, with the smallest p that the exact one can reach.

Three runs a method cannot reach .05 by any exact test on runs: 3 against 3 give at least .10 by ranks (Mann-Whitney)
and .25 by signs (paired). The floor stands beside each p, so that "not significant" is not read as "no effect".
"""

from __future__ import annotations

from math import comb

import numpy as np
from scipy import stats

MOST_SPLITS = 200_000


def mann_whitney_runs(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(two-sided p, smallest p possible) of Mann-Whitney on run means, one number a run, over all C(n + m, n) splits;
    ties get mid-ranks. ValueError above 200 000 splits (9 against 9 runs and more)."""
    splits = comb(len(a) + len(b), len(a))
    if splits > MOST_SPLITS:
        raise ValueError(
            f"{len(a)} against {len(b)} runs have {splits} splits; use stats.method_claim"
        )
    every = stats.PermutationMethod(n_resamples=MOST_SPLITS) if min(len(a), len(b)) > 1 else "exact"
    return float(stats.mannwhitneyu(a, b, method=every).pvalue), min(1.0, 2 / splits)


def as_asked(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(p, Cliff's delta) of the Mann-Whitney test on all values of a against all of b, as papers report it.

    It takes posts, runs and replies as one independent sample, which they are not: a p of these checkpoints on these
    posts at best, and no claim about a method. tests/test_error_rates.py measures how often it calls equal methods
    different. delta = P(a > b) - P(a < b) over all pairs (Cliff 1993)."""
    a, b = np.ravel(a), np.ravel(b)
    u, p = stats.mannwhitneyu(a, b, method="asymptotic")
    return float(p), float(2 * u / (len(a) * len(b)) - 1)
