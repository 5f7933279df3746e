"""Diversity that *can* be differentiated: functions of the next-token distribution at given (gold) prefixes.

No sampling and no score function: the logits carry the gradient. The price is the meaning: these terms ask
that the next *token* be uncertain, not that whole replies differ. `logits (..., V)`, `mask (...)` -> scalar
means over the masked positions (ValueError if there is none). Use them as `total(..., lam=, pathwise=)`.
"""
from __future__ import annotations

import torch
from torch import Tensor


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.bool()
    if not mask.any():
        raise ValueError("the mask selects no token, so a token mean does not exist")
    return values[mask].mean()


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean Shannon entropy of the next token, nats in [0, log V]. Also the entropy bonus of RL."""
    logp = logits.log_softmax(-1)
    return _mean(-(logp.exp() * logp).sum(-1), mask)


def token_gini(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean Gini-Simpson index 1 - sum_v pi(v)^2: the chance that two independent next tokens differ, in [0,
    1)."""
    return _mean(1.0 - logits.softmax(-1).square().sum(-1), mask)


def embedding_rao(logits: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
    """Mean Rao quadratic entropy E||e_v - e_v'||^2 = 2 (sum_v pi_v ||e_v||^2 - ||sum_v pi_v e_v||^2),
    `embeddings (V, d)`.

    Two tokens count as different as far as their (frozen, length-normalised) embeddings are apart; if the
    embeddings could move, the model would inflate their norms instead of spreading its probability. In [0,
    4].
    """
    e = embeddings.detach()
    e = e / e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    p = logits.softmax(-1)
    return _mean(2.0 * ((p * e.square().sum(-1)).sum(-1) - (p @ e).square().sum(-1)), mask)


def gem_loss(logits: Tensor, targets: Tensor, mask: Tensor, beta: float = 0.7,
             weighting: str = "linear") -> Tensor:
    """GEM (arXiv 2408.16673), a replacement for CE that keeps entropy: mean of -sum_v q_v h_v (log p_y - log
    p_v).

    q = softmax(logits / beta), detached; h = 1 ("linear") or sigmoid(.01 (logit_v - logit_y))
    ("log_sigmoid"). With beta = 1 and linear h its gradient is that of CE; beta < 1 stops pushing once p is
    sharp like q. `targets (...)` token ids. Raises ValueError on an unknown weighting.
    """
    if weighting not in ("linear", "log_sigmoid"):
        raise ValueError(f"unknown GEM weighting {weighting!r}; use linear or log_sigmoid")
    logp = logits.log_softmax(-1)
    gold = logp.gather(-1, targets[..., None])
    with torch.no_grad():
        q = (logits / beta).softmax(-1)
        if weighting == "log_sigmoid":
            q = q * torch.sigmoid(0.01 * (logits - logits.gather(-1, targets[..., None])))
    return _mean(-(q * (gold - logp)).sum(-1), mask)
