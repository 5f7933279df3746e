"""Diversity of the K replies to one prompt, and the per-sample advantages that have its gradient.

THE ONE IDEA. D is scored on sampled text, so `loss - lam * D` has no gradient from D at all: a number
computed from text is a constant for autograd (`detached` below keeps that faulty form as a labelled control).
What exists is the score-function gradient: for any b_i that does not depend on y_i,

    grad E[D(y_1..y_K)] = E[ sum_i (D - b_i) * grad log pi(y_i) ]

Every estimator here returns weights A_i `(B, K)` with E[sum_i A_i grad log pi(y_i)] = grad E[D of a set].
They differ in the size of that set and in variance; tests/test_diversity.py enumerates all sets of a
three-token vocabulary and compares each with finite differences.

D is a *set function*: it scores subsets, `members (M, n)` sample indices -> `(B, M)`, for all B prompts at once,
and is a black box to the estimators.

VALIDITY GATE. `valid (B, K)` is False for a reply that must not buy diversity (empty, off-topic, wrong
language). It counts as distance 0 to everything *but stays in the average*, so it costs diversity and cannot
add any: its advantage is never positive. Dropping it from the average would let one odd reply hide behind two
good ones.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import torch
from torch import Tensor

SetFunction = Callable[[Tensor], Tensor]
MAX_SUBSETS = 20_000


# --------------------------------------------------------------------------------------- set functions
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

    A product of a negative reward and a diversity would punish diversity, hence `scoring.percentile`.
    """
    return lambda members: rewards[:, members].mean(-1) * diversity(members)


def mean_pairwise(distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean pairwise distance of each whole group, the D that is logged. `(B, K, K)` -> `(B,)`."""
    k = distances.shape[-1]
    return semantic(distances, valid)(torch.arange(k)[None])[:, 0]


# ------------------------------------------------------------------------------------------ estimators
def _without_each(k: int) -> Tensor:
    """Row i lists everyone but i: `(k, k - 1)`."""
    return torch.tensor([[j for j in range(k) if j != i] for i in range(k)])


def jackknife(D: SetFunction, k: int) -> Tensor:
    """The default: mean_j D(S without j) - D(S without i). `(B, K)`, exactly unbiased for grad E D_{K-1}.

    "How much worse would the set be without me, compared with losing anyone else": sums to zero, compares
    sets of equal size, needs K evaluations. For mean pairwise distance it is (2/K) * (my mean distance to the
    others minus theirs among themselves). Raises ValueError below K = 3, where sets of K - 1 replies have no
    pair.
    """
    if k < 3:
        raise ValueError(
            f"the jackknife compares sets of K - 1 >= 2 replies and K is {k}; sample 4 or more"
        )
    without = D(_without_each(k))
    return without.mean(1, keepdim=True) - without


def leave_one_out(D: SetFunction, k: int) -> Tensor:
    """D(S) - D(S without i), the marginal contribution (DQO, SetPO). `(B, K)`, unbiased for grad E D_K.

    Not centred unless D is a mean over pairs: a D that grows with size adds a constant to every weight.
    """
    return D(torch.arange(k)[None]) - D(_without_each(k))


def all_subsets(k: int, n: int) -> Tensor:
    """All size-n subsets of range(k), `(C(k, n), n)`. ValueError when there are too many to enumerate."""
    if not 1 <= n <= k or comb(k, n) > MAX_SUBSETS:
        raise ValueError(
            f"subsets of size {n} out of {k}: need 1 <= n <= k, at most {MAX_SUBSETS} subsets"
        )
    return torch.tensor(list(combinations(range(k), n)))


def set_level(f: SetFunction, k: int, n: int) -> Tensor:
    """(n/K) * (mean of f over size-n subsets with i - mean over those without i). `(B, K)`, unbiased for grad
    E f_n.

    With f = `f_poly` this is Poly-EPO (arXiv 2604.17654), whose weights are these times (1 - n/K). n must
    be below K.
    """
    members = all_subsets(k, n)
    values = f(members)  # (B, M)
    inside = torch.zeros(len(members), k).to(values).scatter_(1, members.to(values.device), 1.0)
    with_i = values @ inside / comb(k - 1, n - 1)
    without_i = values @ (1.0 - inside) / comb(k - 1, n)
    return n / k * (with_i - without_i)


def darling(rewards: Tensor, distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """DARLING (arXiv 2509.02534): reward times own mean distance to the others, centred in the group. `(B,
    K)`.

    Credits only what a sample's distance does to its *own* product, not to its neighbours', and centres by a
    mean that involves y_i: a heuristic of the literature, not the gradient of any mean product (a test shows
    it). Rewards are shares (`scoring.percentile`): a negative one would turn diversity into a penalty.
    """
    k = rewards.shape[1]
    product = rewards * gate(distances, valid).sum(-1) / (k - 1)
    return product - product.mean(1, keepdim=True)


# --------------------------------------------------------------------------------- what the loop calls
def diversity_advantages(
    distances: Tensor,
    valid: Tensor | None = None,
    kind: str = "jackknife",
    rewards: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """Per-sample diversity advantages, detached. `distances (B, K, K)`, `valid (B, K)` bool -> `(B, K)`.

    D is the mean pairwise distance. `kind`: jackknife, leave_one_out, set_level, f_poly, darling, detached.
    `rewards (B, K)` for f_poly and darling; `size` of the subsets for set_level and f_poly (default K // 2, at
    least 2). An invalid sample never gets a positive advantage: that follows from the gate, but for rounding, which
    the last line takes off. Raises ValueError on an unknown name.
    """
    distances, k = distances.detach(), distances.shape[-1]
    if kind in ("f_poly", "darling"):
        rewards = rewards.detach() if valid is None else rewards.detach() * valid
    D, n = semantic(distances, valid), size or max(2, k // 2)
    if kind == "jackknife":
        advantages = jackknife(D, k)
    elif kind == "leave_one_out":
        advantages = leave_one_out(D, k)
    elif kind == "set_level":
        advantages = set_level(D, k, n)
    elif kind == "f_poly":
        advantages = set_level(f_poly(rewards, D), k, n)
    elif kind == "darling":
        advantages = darling(rewards, distances, valid)
    elif kind == "detached":
        # the faulty form, kept as a control: "loss - lam * D.item()" gives every sample weight 0
        advantages = torch.zeros_like(distances[..., 0])
    else:
        raise ValueError(
            f"unknown diversity gradient {kind!r}; use jackknife, leave_one_out, set_level, f_poly, "
            "darling or detached"
        )
    return (
        advantages if valid is None else torch.where(valid, advantages, advantages.clamp(max=0.0))
    )
