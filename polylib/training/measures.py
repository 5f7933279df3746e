"""Set functions: how diverse (or how good) is a chosen subset of the K replies to one prompt?

A *set function* `D(members)` scores subsets: `members (M, n)` sample indices -> `(B, M)`, for all B prompts
at once. It is a black box to the estimators in `diversity.py`; nothing here is differentiated.

VALIDITY GATE. `valid (B, K)` is False for a reply that must not buy diversity (empty, off-topic, wrong
language). It counts as distance 0 to everything *but stays in the average*, so it costs diversity and cannot
add any. Dropping it from the average would let one odd reply hide behind two good ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SetFunction = Callable[[Tensor], Tensor]


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Cosine distances `1 - cos` in [0, 2] with an exactly zero diagonal. `(B, K, d)` -> `(B, K, K)`.

    Raises ValueError on non-finite or zero vectors: a zero vector would be at distance 1 from everything.
    """
    norms = embeddings.norm(dim=-1, keepdim=True)
    if not torch.isfinite(norms).all() or (norms == 0).any():
        raise ValueError(
            "an embedding is zero or not finite; its reply has no distance to the others"
        )
    unit = embeddings / norms
    distances = 1.0 - unit @ unit.transpose(-1, -2)
    # 1 - <u, u> of two identical float32 vectors is about 1e-7, not 0; equal replies must count as equal.
    distances = distances.masked_fill(distances < 1e-6, 0.0)
    return distances * (
        1.0 - torch.eye(distances.shape[-1], dtype=distances.dtype, device=distances.device)
    )


def gate(matrix: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the rows and columns of invalid samples. `(B, K, K)`, `(B, K)`."""
    if valid is None:
        return matrix
    return matrix * (valid[:, :, None] & valid[:, None, :])


def semantic(distances: Tensor, valid: Tensor | None = None) -> SetFunction:
    """Mean pairwise distance over *all* pairs of the set (invalid samples at distance 0). 0 for a single
    reply."""
    gated = gate(distances, valid)

    def D(members: Tensor) -> Tensor:
        n = members.shape[1]
        pairs = gated[:, members[:, :, None], members[:, None, :]]  # (B, M, n, n)
        return pairs.sum((-1, -2)) / max(n * (n - 1), 1)

    return D


def f_poly(rewards: Tensor, diversity: SetFunction) -> SetFunction:
    """Mean reward of the set times its diversity (Polychromic objectives, arXiv 2509.25424). `rewards (B, K)`
    in [0, 1].

    A product of a negative reward and a diversity would punish diversity, hence the range check (ValueError).
    """
    if not ((rewards >= 0) & (rewards <= 1)).all():
        raise ValueError("f_poly multiplies reward by diversity and needs rewards in [0, 1]")
    return lambda members: rewards[:, members].mean(-1) * diversity(members)


def mean_pairwise(distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean pairwise distance of each whole group, the D that is logged. `(B, K, K)` -> `(B,)`."""
    k = distances.shape[-1]
    return semantic(distances, valid)(torch.arange(k)[None])[:, 0]
