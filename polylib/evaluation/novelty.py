"""How many different things do the n replies to ONE prompt say, and how many of those are worth saying?

Plain counts reward rubbish: word salad is very diverse. NoveltyBench (Zhang et al. 2025) counts kinds of replies
and pays for a kind once; Shypula et al. (2025) let a pair count only when both replies are good. numpy and scipy only;
what a set does not define raises Undefined.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import comb

from polylib.metrics import Undefined

PATIENCE = 0.8  # NoveltyBench's p: how likely a reader looks at one reply more
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


def utility(scores: list[float], classes: list[int], patience: float = PATIENCE) -> float:
    """NoveltyBench's utility of replies in this order, (1-p)/(1-p^k) sum_i p^(i-1) 1[new kind] u_i: a reader goes
    on to the next with chance p and gains nothing from a kind that was there before."""
    new = [kind not in classes[:i] for i, kind in enumerate(classes)]
    weights = patience ** np.arange(len(classes))
    return float((weights * new * np.asarray(scores, dtype=float)).sum() / weights.sum())


def utility_k(sizes: np.ndarray, scores: np.ndarray, patience: float = PATIENCE) -> float:
    """Expectation of `utility` over all orders of a set, as samples have none; mean over sets.

    sizes and scores (S, k). A reply of a kind with m members earns at place i iff the other m - 1 come later:
    chance C(k-i, m-1) / C(k-1, m-1)."""
    k = sizes.shape[-1]
    weights = patience ** np.arange(k) / (patience ** np.arange(k)).sum()
    place, members = np.arange(1, k + 1), np.arange(1, k + 1)[:, None]
    earns = comb(k - place, members - 1) / comb(k - 1, members - 1)  # (members, place)
    worth = (earns * weights).mean(axis=1)  # every place has the same chance
    return float((worth[sizes - 1] * scores).sum(axis=-1).mean())


def effective_diversity(similarity: np.ndarray, good: np.ndarray, threshold: float) -> float:
    """Share of pairs of replies that are both good and not of one kind (Shypula et al. 2025): similarity (n, n),
    good (n,) booleans. Its expectation does not depend on n; 0 says that no pair was good and different."""
    n = len(good)
    if n < 2:
        raise Undefined("fewer than 2 replies")
    i, j = np.triu_indices(n, 1)
    return float(((similarity[i, j] < threshold - ROUNDING) & good[i] & good[j]).mean())
