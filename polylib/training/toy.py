"""A language small enough to know every expectation exactly: three tokens, replies of two, nine replies.

An estimator is judged here without sampling. K replies drawn independently form a multiset, so E[..] over all
9^K ordered draws is a sum over multisets with multinomial weights: 12,870 terms at K = 8 instead of 43
million. That gives the true gradient of an expected set function, the expectation of an estimator's update,
and its covariance, all in float64 (`snr`). Estimators are taken from `diversity.py` as they are.

The policy is a table `theta (12,)`: three logits of the first token, nine of the second given the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from polylib.training import diversity

V, T, N = 3, 2, 9
REPLIES = torch.tensor(list(product(range(V), repeat=T)))  # (9, 2) token ids
# What each reply means (a direction) and how good it is; fixed, arbitrary, without symmetry.
MEANING = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
REWARD = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.7, 0.2, 0.6], dtype=torch.float64)
KINDS = (
    "jackknife",
    "leave_one_out",
    "set_level",
    "shared",
    "bare",
    "detached",
    "f_poly",
    "darling",
)


# ------------------------------------------------------------------------------- policies and expectations
def policy(seed: int = 0) -> Tensor:
    """Logits of a policy that is neither uniform nor certain, `(12,)` float64. Another seed, another
    prompt."""
    return (
        torch.randn(V + V * V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * 0.8
    )


def token_logprobs(theta: Tensor) -> Tensor:
    """log pi of each token of each reply given what precedes it, `(9, 2)`, differentiable."""
    first, second = theta[:V].log_softmax(-1), theta[V:].view(V, V).log_softmax(-1)
    return torch.stack([first[REPLIES[:, 0]], second[REPLIES[:, 0], REPLIES[:, 1]]], -1)


def logprobs(theta: Tensor) -> Tensor:
    """log pi of each whole reply, `(9,)`."""
    return token_logprobs(theta).sum(-1)


@lru_cache
def multisets(k: int) -> Tensor:
    """All unordered samples of k replies, sorted numbers `(C(k + 8, k), k)`."""
    return torch.tensor(list(combinations_with_replacement(range(N), k)))


def chances(theta: Tensor, k: int) -> Tensor:
    """Probability of each multiset: multinomial coefficient times the replies' probabilities, `(M,)`. Sums to
    1, differentiable."""
    counts = torch.nn.functional.one_hot(multisets(k), N).sum(1).to(theta)
    ways = torch.lgamma(torch.tensor(k + 1.0).to(theta)) - torch.lgamma(counts + 1.0).sum(-1)
    return (ways + counts @ logprobs(theta)).exp()


def exact_gradient(score: Callable[[Tensor], Tensor], k: int, theta: Tensor) -> Tensor:
    """grad E[score(S)] for k independent replies, `(12,)`. `score`: reply numbers `(M, k)` -> `(M,)`."""
    theta = theta.detach().clone().requires_grad_()
    return torch.autograd.grad((chances(theta, k) * score(multisets(k)).detach()).sum(), theta)[0]


def updates(advantages: Tensor, theta: Tensor) -> Tensor:
    """sum_i A_i grad log pi(y_i) of every multiset, `(M, 12)`; `advantages (M, k)` in its order."""
    sets = multisets(advantages.shape[1])
    credit = torch.zeros(len(sets), N).to(theta).scatter_add_(1, sets, advantages.to(theta))
    return credit @ torch.autograd.functional.jacobian(logprobs, theta.detach())


def expected_update(advantages: Tensor, theta: Tensor) -> Tensor:
    """E[sum_i A_i grad log pi(y_i)], `(12,)`: what an estimator does on average."""
    return chances(theta, advantages.shape[1]).detach() @ updates(advantages, theta)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """||found - truth|| / ||truth||."""
    return ((found - truth).norm() / truth.norm()).item()


def cosine(a: Tensor, b: Tensor) -> float:
    """NaN if one of them is zero: no direction."""
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size > 0 else float("nan")


# -------------------------------------------------------------------------------------- signal and noise
def _values(kind: str, n: int) -> Tensor:
    """The function of n replies whose expectation an estimator climbs, for every multiset, `(M,)`."""
    sets = multisets(n)
    distances = diversity.pairwise_distances(MEANING[sets])
    if kind == "darling":
        own = distances.sum(-1) / (n - 1)
        return (REWARD[sets] * own).mean(-1)
    D = diversity.mean_pairwise(distances)
    return REWARD[sets].mean(-1) * D if kind == "f_poly" else D


def _advantages(kind: str, k: int, chance: Tensor) -> Tensor:
    """What `diversity.py` gives every multiset of k, `(M, k)`; the set's own D for the two that share it."""
    if kind in ("shared", "bare"):
        D = _values("", k)
        return (D - chance @ D if kind == "shared" else D)[:, None].expand(-1, k)
    distances = diversity.pairwise_distances(MEANING[multisets(k)])
    return diversity.diversity_advantages(distances, None, kind, REWARD[multisets(k)])


def snr(kind: str, k: int, seed: int = 0) -> dict[str, str | float]:
    """Exact signal and noise of one estimator's update from one prompt with K replies.

    signal = ||E g||, noise = sqrt(tr Cov g), snr = signal / noise (0 for an update that is always 0: 1 / snr^2
    prompts make them equal); relative_error against the estimator's own target, E of sets of `target`
    replies; cosine and aligned_snr (cosine * snr) against the common reference, the gradient for all K
    replies. `kind`: those of `diversity_advantages`, or "bare", D for each of its replies, or "shared", D less
    the exact E[D], better than any batch could estimate it. -> estimator, K, policy, target, and the numbers.
    """
    theta = policy(seed)
    chance = chances(theta, k)
    update = updates(_advantages(kind, k, chance), theta)
    target = {"jackknife": k - 1, "set_level": max(2, k // 2), "f_poly": max(2, k // 2)}.get(
        kind, k
    )
    mean = chance @ update
    signal, noise = mean.norm().item(), (chance @ (update - mean).square().sum(-1)).sqrt().item()
    truth, reference = (
        exact_gradient(lambda _, m=m: _values(kind, m), m, theta) for m in (target, k)
    )
    ratio, angle = signal / noise if noise > 0 else 0.0, cosine(mean, reference)
    return {
        "estimator": kind,
        "K": k,
        "policy": seed,
        "target": target,
        "signal": signal,
        "noise": noise,
        "snr": ratio,
        "relative_error": relative_error(mean, truth),
        "cosine": angle,
        "aligned_snr": ratio * angle,
    }


def snr_table(
    ks: Iterable[int] = (4, 8), seeds: Iterable[int] = (0, 1, 2, 3, 4)
) -> list[dict[str, str | float]]:
    """`snr` of every estimator, a row for each K and policy."""
    seeds = list(seeds)
    return [snr(kind, k, seed) for k in ks for kind in KINDS for seed in seeds]
