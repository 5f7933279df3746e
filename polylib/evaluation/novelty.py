"""How many different things do the n replies to ONE prompt say, and how many of those are worth saying?

Plain counts reward rubbish: word salad is very diverse. NoveltyBench (Zhang et al. 2025) counts kinds of replies;
Shypula et al. (2025) let a pair count only when both replies are good. numpy and scipy only;
what a set does not define raises Undefined.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import comb

from polylib.metrics import Undefined

MOST_SETS = 2000  # all subsets are taken up to this number, above it so many draws
ROUNDING = 1e-9  # equal texts have a cosine of 1 - 1e-16


def sets(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Subsets of `size` of n replies, (S, size) indices: all C(n, size) of them, or MOST_SETS drawn ones.

    Set metrics are means over these, because their value hangs on the size of the set. Undefined if n < size or
    size < 2."""
    if n < size or size < 2:
        raise Undefined(f"fewer than {max(size, 2)} replies")
    if comb(n, size, exact=True) <= MOST_SETS:
        return np.array(list(itertools.combinations(range(n), size)))
    return rng.permuted(np.tile(np.arange(n), (MOST_SETS, 1)), axis=1)[:, :size]


def class_sizes(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """How many replies of its set are of a reply's kind, itself included: (..., k, k) -> (..., k) integers.

    Kinds are the connected components of "cosine >= threshold" (what union-find gives): a like b and b like c
    put all three into one, even where a and c are apart."""
    linked = similarity >= threshold - ROUNDING
    for _ in range(int(np.ceil(np.log2(max(linked.shape[-1], 2))))):  # paths of 1, 2, 4, ... links
        linked = linked @ linked
    return linked.sum(axis=-1)


def distinct_k(sizes: np.ndarray) -> float:
    """NoveltyBench's distinct_k: kinds of replies in a set of k, mean over sets; sizes (S, k) by `class_sizes`.
    From 1 (all say the same) to k."""
    return float((1.0 / sizes).sum(axis=-1).mean())


def effective_diversity(similarity: np.ndarray, good: np.ndarray, threshold: float) -> float:
    """Share of pairs of replies that are both good and not of one kind (Shypula et al. 2025): similarity (n, n),
    good (n,) booleans. Its expectation does not depend on n; 0 says that no pair was good and different."""
    n = len(good)
    if n < 2:
        raise Undefined("fewer than 2 replies")
    i, j = np.triu_indices(n, 1)
    return float(((similarity[i, j] < threshold - ROUNDING) & good[i] & good[j]).mean())
