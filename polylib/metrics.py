"""Numeric metrics of the n replies to ONE prompt: arrays in, one number out. numpy and scipy only.

What cannot be computed raises Undefined, never gives 0.0; `score` turns it into NaN with the reason. Left out
on purpose: anything pooled over prompts, because a method that says the same thing under every post would
look diverse.
"""

from __future__ import annotations

import numpy as np
from scipy.special import comb


class Undefined(ValueError):
    """These replies do not define the metric (too few, too short); the message says why. Not a bug, so it has
    a name."""


def pass_at_k(n: int, passed: np.ndarray | int, k: int) -> np.ndarray:
    """Unbiased chance that at least one of k draws without replacement from n replies passes (Chen et al.
    2021, eq. 1).

    `passed` holds how many of the n pass, any shape; the result has the same shape. 1 - C(n-c, k) / C(n, k)
    as a product, which cannot overflow. Says nothing about diversity: for iid replies it depends on the pass
    rate alone. Raises Undefined for k > n."""
    _check_k(n, k)
    passed = np.asarray(passed)
    if (passed < 0).any() or (passed > n).any():
        raise ValueError(f"passed must lie between 0 and n = {n}")
    i = np.arange(k)
    all_fail = np.clip(n - passed[..., None] - i, 0, None) / (n - i)
    return 1.0 - all_fail.prod(axis=-1)


def best_of_k(proxy: np.ndarray, values: np.ndarray, k: int) -> float:
    """Expected value of the reply that `proxy` ranks first among k drawn without replacement from n.

    proxy, values (n,). The i-th smallest proxy is the top of C(i-1, k-1) of the C(n, k) subsets. Replies that
    the proxy cannot tell apart share their weight: otherwise the order of generation would leak into the
    score."""
    proxy, values = np.asarray(proxy, dtype=float), np.asarray(values, dtype=float)
    n = len(values)
    _check_k(n, k)
    if proxy.shape != values.shape or not (np.isfinite(proxy).all() and np.isfinite(values).all()):
        raise ValueError("proxy and values must be finite arrays of one length")
    weights = comb(np.arange(n), k - 1) / comb(n, k)
    _, block = np.unique(proxy, return_inverse=True)  # tie blocks, in ascending order of the proxy
    size = np.bincount(block)
    shared = np.bincount(np.sort(block), weights=weights) / size
    return float(shared[block] @ values)


def max_at_k(values: np.ndarray, k: int) -> float:
    """Expected best of k drawn without replacement from the n values (PKPO, arXiv 2505.15201); pass@k for 0/1
    values."""
    return best_of_k(values, values, k)


def mean_pairwise_distance(similarity: np.ndarray) -> float:
    """Mean of 1 - similarity over the n(n-1)/2 pairs; similarity (n, n). Its expectation does not depend on
    n."""
    n = _check_similarity(similarity)
    return float((1.0 - similarity[np.triu_indices(n, 1)]).mean())


def vendi(similarity: np.ndarray) -> np.ndarray:
    """Vendi score (Friedman & Dieng 2023): exp of the entropy of the eigenvalues of similarity / k.

    similarity (..., k, k), positive semi-definite with unit diagonal -> (...), between 1 (all equal) and k
    (all orthogonal). Bounded by k, so report it divided by k and compare only sets of equal size."""
    k = _check_similarity(similarity)
    values = np.linalg.eigvalsh(similarity / k)
    positive = np.where(values > 1e-12, values, 1.0)  # 0 log 0 = 0; tiny negatives are rounding
    return np.exp(-(positive * np.log(positive)).sum(axis=-1))


def _check_k(n: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    if k > n:
        raise Undefined(f"fewer than {k} replies")


def _check_similarity(similarity: np.ndarray) -> int:
    n = similarity.shape[-1]
    if n < 2:
        raise Undefined("fewer than 2 replies")
    if not np.allclose(np.diagonal(similarity, axis1=-2, axis2=-1), 1.0, atol=1e-3):
        raise ValueError("a similarity matrix has ones on its diagonal; normalise the embeddings")
    return n
