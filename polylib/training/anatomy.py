"""Gradient anatomy: how hard does each term of the objective pull, and do the terms pull the same way?

A loss value says neither: a detached diversity moves the loss and no weight, and a term of value zero (an
on-policy ratio loss) can have the largest gradient. So the gradients themselves are taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

TERMS = ("ce", "reward", "diversity", "kl")
COLUMNS = [
    *(f"norm_{name}" for name in TERMS),
    *(f"cos_{a}_{b}" for a, b in combinations(TERMS, 2)),
]


class Anatomy:
    """Norms and cosines of the gradients of the weighted terms of one optimizer step.

        anatomy = Anatomy(parameters)
        for each micro-slice: anatomy.add({"ce": alpha * ce, "kl": kappa * kl})    # before backward()
        row = anatomy.row()

    One extra backward pass a term and slice, one float32 copy of the trainable weights a term. `.grad` is not
    touched and the graph is kept, so the ordinary backward pass can follow.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = list(parameters)
        self.gradients: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the gradients of this slice's terms: scalars, weighted as they enter the loss, of TERMS' names.

        A constant (such as a detached diversity) and a term that does not reach a parameter add zeros: that
        is the finding.
        """
        for name, term in terms.items():
            parts = [None] * len(self.parameters)
            if term.requires_grad:
                parts = torch.autograd.grad(
                    term, self.parameters, retain_graph=True, allow_unused=True
                )
            flat = torch.cat(
                [
                    torch.zeros(p.numel(), device=p.device)
                    if g is None
                    else g.detach().float().flatten()
                    for p, g in zip(self.parameters, parts, strict=True)
                ]
            )
            # slices add up before any norm is taken: the norm of a sum is not the sum of norms
            self.gradients[name] = (
                flat if name not in self.gradients else self.gradients[name] + flat
            )

    def row(self) -> dict[str, float]:
        """{column: value} for all COLUMNS. NaN for a term that was never added, and for a cosine with a zero
        gradient, which has no direction."""
        found = {name: g.cpu().double() for name, g in self.gradients.items()}
        norms = {name: g.norm().item() for name, g in found.items()}
        row = dict.fromkeys(COLUMNS, float("nan")) | {
            f"norm_{name}": norm for name, norm in norms.items()
        }
        for a, b in combinations(TERMS, 2):
            size = norms.get(a, 0.0) * norms.get(b, 0.0)
            if size > 0:
                row[f"cos_{a}_{b}"] = (found[a] @ found[b]).item() / size
        return row
