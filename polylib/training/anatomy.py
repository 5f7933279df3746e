"""Gradient anatomy: how hard does each term of the objective pull, and do the terms pull the same way?"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def gradient_anatomy(terms: dict[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Norm of each term's gradient and the cosine of each pair. `terms` are scalars on one graph (kept
    alive).

    -> {"norm_ce": .., "norm_reward": .., "cos_ce_reward": .., ...}. A cosine with a zero gradient is NaN: a
    direction does not exist. A term that does not reach the parameters at all has norm 0 (that is the
    finding). One backward pass a term, and `.grad` is not touched.
    """
    gradients = {}
    for name, term in terms.items():
        if not term.requires_grad:  # a constant, such as a detached diversity
            gradients[name] = [torch.zeros_like(p) for p in parameters]
            continue
        found = torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True)
        gradients[name] = [torch.zeros_like(p) if g is None else g
                           for p, g in zip(parameters, found, strict=True)]

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)).item()

    norms = {name: dot(g, g) ** 0.5 for name, g in gradients.items()}
    row = {f"norm_{name}": value for name, value in norms.items()}
    for a, b in combinations(gradients, 2):
        size = norms[a] * norms[b]
        row[f"cos_{a}_{b}"] = dot(gradients[a], gradients[b]) / size if size > 0 else float("nan")
    return row
