"""A language small enough to enumerate: three tokens, replies of at most two, every set of K replies.

The policy is a table: theta[:3] are the logits of the first token, theta[3:] those of the second given the
first. Nothing here uses polylib, so an expectation computed here, and its central finite difference, is
independent evidence about an estimator computed there. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

V, T = 3, 2
EOS = 2


def parameters(seed: int = 0) -> Tensor:
    """Logits of a policy that is neither uniform nor degenerate, `(12,)`."""
    return (
        torch.randn(V + V * V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * 0.8
    )


def replies(eos: bool = False) -> tuple[Tensor, Tensor]:
    """All replies: ids `(N, 2)` and mask. 9 of fixed length 2, or (eos) 7, one of which ends at once."""
    ids = torch.tensor(list(product(range(V), repeat=T)))
    if not eos:
        return ids, torch.ones(len(ids), T, dtype=torch.bool)
    keep = torch.tensor([a != EOS or b == 0 for a, b in ids.tolist()])
    ids = ids[keep]
    mask = torch.ones(len(ids), T, dtype=torch.bool)
    mask[:, 1] = ids[:, 0] != EOS
    return ids, mask


def token_logprobs(theta: Tensor, ids: Tensor) -> Tensor:
    """log pi of each token given its prefix, `(N, 2)`, differentiable in theta."""
    first = theta[:V].log_softmax(-1)[ids[:, 0]]
    second = theta[V:].view(V, V).log_softmax(-1)[ids[:, 0], ids[:, 1]]
    return torch.stack([first, second], -1)


def log_p(theta: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log pi of whole replies, `(N,)`."""
    return token_logprobs(theta, ids).masked_fill(~mask, 0.0).sum(-1)


def all_sets(n: int, k: int) -> Tensor:
    """All ordered samples of size k from n replies, `(n^k, k)`."""
    return torch.cartesian_prod(*[torch.arange(n)] * k).view(-1, k)


def expectation(logp: Tensor, sets: Tensor, score: Tensor) -> Tensor:
    """E[score(S)] for k independent samples; `logp (N,)`, `sets (M, k)`, `score (M,)`."""
    return (logp[sets].sum(-1).exp() * score).sum()


def finite_difference(f: Callable[[Tensor], Tensor], theta: Tensor, eps: float = 1e-5) -> Tensor:
    """Central differences of a scalar function, `(12,)`."""
    steps = torch.eye(len(theta), dtype=theta.dtype) * eps
    with torch.no_grad():
        return torch.stack([(f(theta + s) - f(theta - s)) / (2 * eps) for s in steps])


def expected_update(
    theta: Tensor, ids: Tensor, mask: Tensor, sets: Tensor, advantages: Tensor
) -> Tensor:
    """E[sum_i A_i grad log pi(y_i)] over all sets, `(12,)`; `advantages (M, k)`."""
    theta = theta.clone().requires_grad_()
    logp = log_p(theta, ids, mask)
    weights = logp.detach()[sets].sum(-1).exp()
    (weights[:, None] * advantages * logp[sets]).sum().backward()
    return theta.grad


def variance(theta: Tensor, ids: Tensor, mask: Tensor, sets: Tensor, advantages: Tensor) -> float:
    """Trace of the covariance of sum_i A_i grad log pi(y_i)."""
    scores = torch.autograd.functional.jacobian(lambda t: log_p(t, ids, mask), theta)  # (N, 12)
    updates = (advantages[..., None] * scores[sets]).sum(1)
    weights = log_p(theta, ids, mask)[sets].sum(-1).exp()[:, None]
    return ((weights * updates**2).sum(0) - (weights * updates).sum(0) ** 2).sum().item()


def relative_error(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


# --------------------------------------------------------------- what is said: an embedding for each reply
def embeddings(n: int, d: int = 4, seed: int = 1) -> Tensor:
    """A meaning for each reply, unit vectors `(n, d)`."""
    e = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return e / e.norm(dim=-1, keepdim=True)


def plain_semantic(e: np.ndarray, ok: np.ndarray) -> float:
    """Mean cosine distance over pairs, by two loops; an invalid reply is at distance 0 from everything."""
    n = len(e)
    pairs = [(1 - e[i] @ e[j]) * ok[i] * ok[j] for i in range(n) for j in range(i)]
    return float(np.mean(pairs))
