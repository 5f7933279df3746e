"""Diversity of the K replies to one prompt, and the per-sample advantages that have its gradient.

THE ONE IDEA. D is scored on sampled text, so `loss - lam * D` has no gradient from D at all: a number
computed from text is a constant for autograd (`detached` below keeps that faulty form as a labelled control).
What exists is the score-function gradient: for any b_i that does not depend on y_i,

    grad E[D(y_1..y_K)] = E[ sum_i (D - b_i) * grad log pi(y_i) ]

Every estimator here returns weights A_i `(B, K)` with E[sum_i A_i grad log pi(y_i)] = grad E[D of a set].
They differ in the size of that set and in variance; tests/test_diversity.py enumerates all sets of a
three-token vocabulary and compares each with finite differences.

D is a set function (`measures.py`), a black box `members (M, n) -> (B, M)`. Invalid replies are gated there:
they cost diversity and cannot buy any, so their advantage is never positive.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from polylib.training.measures import (  # noqa: F401  (re-exported: the loop needs one import)
    MEASURES,
    SetFunction,
    best_of,
    f_poly,
    gate,
    mean_pairwise,
    pairwise_distances,
)

MAX_SUBSETS = 20_000


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


def shared(D: SetFunction, k: int, baseline: float | None = None) -> Tensor:
    """D(S) - c, the same for all K samples (Polychromic PPO). `(B, K)`, unbiased for grad E D_K.

    c must not involve this prompt's samples: by default the mean D of the *other* prompts in the batch.
    Raises ValueError with one prompt and no baseline. (A shared number that is centred within its own group
    cancels exactly, which is why "add D to every reward of the group" does nothing.)
    """
    value = D(torch.arange(k)[None])  # (B, 1)
    if baseline is None:
        if value.shape[0] < 2:
            raise ValueError(
                "a shared advantage takes its baseline from other prompts: "
                "give two prompts or a baseline"
            )
        baseline = (value.sum() - value) / (value.shape[0] - 1)
    return (value - baseline).expand(-1, k)


def all_subsets(k: int, n: int) -> Tensor:
    """All size-n subsets of range(k), `(C(k, n), n)`. ValueError when there are too many to enumerate."""
    if not 1 <= n <= k or comb(k, n) > MAX_SUBSETS:
        raise ValueError(
            f"subsets of size {n} out of {k}: need 1 <= n <= k, at most {MAX_SUBSETS} subsets"
        )
    return torch.tensor(list(combinations(range(k), n)))


def set_level(f: SetFunction, k: int, n: int, centred: bool = True) -> Tensor:
    """(n/K) * (mean of f over size-n subsets with i - mean over those without i). `(B, K)`, unbiased for grad
    E f_n.

    With f = `f_poly` this is Poly-EPO (arXiv 2604.17654), whose weights are these times (1 - n/K); with f =
    `best_of` it is the pass@k / max@k policy gradient. `centred=False` omits the second mean (the raw PKPO
    weights, arXiv 2505.15201: same expectation, more variance). Raises ValueError unless 1 <= n < K.
    """
    if centred and n >= k:
        raise ValueError(
            f"subset size {n} leaves no subset without a given sample; it must be below K = {k}"
        )
    members = all_subsets(k, n)
    values = f(members)  # (B, M)
    inside = torch.zeros(len(members), k).to(values).scatter_(1, members.to(values.device), 1.0)
    with_i = values @ inside / comb(k - 1, n - 1)
    without_i = values @ (1.0 - inside) / comb(k - 1, n) if centred else 0.0
    return n / k * (with_i - without_i)


def max_at_k(rewards: Tensor, n: int, centred: bool = True) -> Tensor:
    """Advantages `(B, K)` for the expected best of n samples; with 0/1 rewards, for pass@n. See
    `set_level`."""
    return set_level(best_of(rewards), rewards.shape[1], n, centred)


def pass_at_k_training(rewards: Tensor, n: int) -> Tensor:
    """Pass@k training's analytic advantage (arXiv 2508.10751), `(B, K)` 0/1 rewards -> `(B, K)`.

    (mean of best-of over subsets with i - mean over all subsets) / sigma, sigma^2 = pass@n (1 - pass@n). The
    division by each prompt's own sigma re-weights prompts (as a group std does); `max_at_k` has no such bias.
    0 for a prompt whose sigma is 0. Raises ValueError on rewards other than 0 and 1.
    """
    if not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError("pass@k training needs rewards 0 and 1: threshold them or use max_at_k")
    k = rewards.shape[1]
    rate = best_of(rewards)(all_subsets(k, n)).mean(1, keepdim=True)
    sigma = (rate * (1.0 - rate)).sqrt()
    difference = set_level(best_of(rewards), k, n) * (
        k / n - 1.0
    )  # with-minus-all, from with-minus-without
    return torch.where(sigma > 0, difference / sigma.clamp(min=1e-12), 0.0)


def darling(rewards: Tensor, distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """DARLING (arXiv 2509.02534): reward times own mean distance to the others, centred in the group. `(B,
    K)`.

    Credits only what a sample's distance does to its *own* product, not to its neighbours', and centres by a
    mean that involves y_i: a heuristic of the literature, not the gradient of any mean product (a test shows
    it). Rewards must be >= 0 (ValueError): a negative one would turn diversity into a penalty.
    """
    if (rewards < 0).any():
        raise ValueError("DARLING multiplies reward by distance and needs rewards >= 0")
    k = rewards.shape[1]
    product = rewards * gate(distances, valid).sum(-1) / (k - 1)
    return product - product.mean(1, keepdim=True)


def detached(D: SetFunction, k: int) -> Tensor:
    """THE FAULTY FORM, kept as a control: "loss - lam * D.item()" gives every sample weight 0. `(B, K)`
    zeros."""
    return torch.zeros_like(D(torch.arange(k)[None]).expand(-1, k))


# --------------------------------------------------------------------------------- what the loop calls
def diversity_advantages(
    distances: Tensor,
    valid: Tensor | None = None,
    kind: str = "jackknife",
    measure: str | SetFunction = "semantic",
    rewards: Tensor | None = None,
    size: int | None = None,
    baseline: float | None = None,
) -> Tensor:
    """Per-sample diversity advantages, detached. `distances (B, K, K)`, `valid (B, K)` bool -> `(B, K)`.

    `kind`: jackknife, leave_one_out, shared, set_level, f_poly, darling, detached. `measure`: semantic,
    logdet, vendi, or any set function of the same samples (say `measures.distinct_n`). `rewards (B, K)` for
    f_poly and darling; `size` of the subsets for set_level and f_poly (default K // 2, at least 2);
    `baseline` for shared. An invalid sample never gets a positive advantage: for jackknife, leave_one_out,
    set_level and f_poly on a gated semantic or logdet measure that follows from the gate, elsewhere the last
    line enforces it. Raises ValueError on an unknown name or missing rewards.
    """
    distances, k = distances.detach(), distances.shape[-1]
    if not callable(measure) and measure not in MEASURES:
        raise ValueError(f"unknown diversity measure {measure!r}; use one of {', '.join(MEASURES)}")
    if kind in ("f_poly", "darling"):
        if rewards is None:
            raise ValueError(
                f"kind {kind!r} multiplies diversity by reward and needs rewards (B, K)"
            )
        rewards = rewards.detach() if valid is None else rewards.detach() * valid
    D = measure if callable(measure) else MEASURES[measure](distances, valid)
    n = size or max(2, k // 2)
    if kind == "jackknife":
        advantages = jackknife(D, k)
    elif kind == "leave_one_out":
        advantages = leave_one_out(D, k)
    elif kind == "shared":
        advantages = shared(D, k, baseline)
    elif kind == "set_level":
        advantages = set_level(D, k, n)
    elif kind == "f_poly":
        advantages = set_level(f_poly(rewards, D), k, n)
    elif kind == "darling":
        advantages = darling(rewards, distances, valid)
    elif kind == "detached":
        advantages = detached(D, k)
    else:
        raise ValueError(
            f"unknown diversity gradient {kind!r}; use jackknife, leave_one_out, shared, "
            "set_level, f_poly, darling or detached"
        )
    return (
        advantages if valid is None else torch.where(valid, advantages, advantages.clamp(max=0.0))
    )
