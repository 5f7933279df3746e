"""Diversity that *can* be differentiated: functions of the next-token distribution at given (gold) prefixes.

No sampling and no score function: the logits carry the gradient. The price is the meaning: these terms ask
that the next *token* be uncertain, not that whole replies differ. Each exists twice: a number a token
(`logits (..., V)` -> `(...)`, what the loop takes off the logits where they exist anyway) and the mean over a
mask (`mask (...)` -> scalar; ValueError if it selects no token). Logits may hold -inf (tokens that a truncated
sampler could not draw): they count as probability 0, in value and gradient.
"""
from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("entropy", "token_gini", "embedding_rao")  # values of `diversity_gradient` that need no samples


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.bool()
    if not mask.any():
        raise ValueError("the mask selects no token, so a token mean does not exist")
    return values[mask].mean()


def _finite(logp: Tensor) -> Tensor:
    """Log-probabilities with 0 for -inf: p log p is then 0 with gradient 0, where autograd would say NaN."""
    return logp.masked_fill(logp == -torch.inf, 0.0)


# ------------------------------------------------------------------------------------- a number a token
def entropies(logits: Tensor) -> Tensor:
    """Shannon entropy of each next token, nats in [0, log V]. Also the entropy bonus of RL."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * _finite(logp)).sum(-1)


def ginis(logits: Tensor) -> Tensor:
    """Gini-Simpson index 1 - sum_v pi(v)^2: the chance that two independent next tokens differ, in [0, 1)."""
    return 1.0 - logits.softmax(-1).square().sum(-1)


def unit_rows(embeddings: Tensor) -> Tensor:
    """Frozen, length-normalised embeddings `(V, d)` in float32 (or wider), for `raos`."""
    e = embeddings.detach()
    e = e if e.dtype == torch.float64 else e.float()
    return e / e.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def raos(logits: Tensor, units: Tensor) -> Tensor:
    """Rao quadratic entropy E||e_v - e_v'||^2 = 2 (sum_v pi_v ||e_v||^2 - ||sum_v pi_v e_v||^2) of each next
    token, in [0, 4]. `units (V, d)` from `unit_rows`."""
    p = logits.softmax(-1)
    return 2.0 * ((p * units.square().sum(-1)).sum(-1) - (p @ units).square().sum(-1))


def gem_losses(logits: Tensor, targets: Tensor, beta: float = 0.7, weighting: str = "linear") -> Tensor:
    """GEM of each gold token, see `gem_loss`. `targets (...)` token ids. ValueError on an unknown weighting."""
    if weighting not in ("linear", "log_sigmoid"):
        raise ValueError(f"unknown GEM weighting {weighting!r}; use linear or log_sigmoid")
    logp = logits.log_softmax(-1)
    gold = logp.gather(-1, targets[..., None])
    with torch.no_grad():
        q = (logits / beta).softmax(-1)
        if weighting == "log_sigmoid":
            q = q * torch.sigmoid(0.01 * (logits - logits.gather(-1, targets[..., None])))
    return -(q * (gold - _finite(logp))).sum(-1)


# ---------------------------------------------------------------------------------- means over a mask
def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of `entropies`."""
    return _mean(entropies(logits), mask)


def token_gini(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of `ginis`."""
    return _mean(ginis(logits), mask)


def embedding_rao(logits: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
    """Mean of `raos`, `embeddings (V, d)` as they are.

    Two tokens count as different as far as their (frozen, length-normalised) embeddings are apart; if the
    embeddings could move, the model would inflate their norms instead of spreading its probability.
    """
    return _mean(raos(logits, unit_rows(embeddings)), mask)


def gem_loss(logits: Tensor, targets: Tensor, mask: Tensor, beta: float = 0.7,
             weighting: str = "linear") -> Tensor:
    """GEM (arXiv 2408.16673), a replacement for CE that keeps entropy: mean of -sum_v q_v h_v (log p_y - log
    p_v).

    q = softmax(logits / beta), detached; h = 1 ("linear") or sigmoid(.01 (logit_v - logit_y))
    ("log_sigmoid"). With beta = 1 and linear h its gradient is that of CE; beta < 1 stops pushing once p is
    sharp like q. Raises ValueError on an unknown weighting.
    """
    return _mean(gem_losses(logits, targets, beta, weighting), mask)
