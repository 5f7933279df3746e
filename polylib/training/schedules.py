"""The weight that changes during training: kappa, moved by the measured KL."""

from __future__ import annotations

import math

BOUNDS = 1e-4, 10.0  # which kappa never leaves


class AdaptiveKL:
    """Moves the KL coefficient so that the measured KL (nats per sequence, `objective.kl_value`) nears
    `target`: times 1.5 above it, times .8 below half of it, always inside BOUNDS.
    """

    def __init__(self, coef: float, target: float):
        self.coef, self.target = coef, target

    def update(self, kl: float) -> float:
        """New coefficient after a batch with this KL. Raises ValueError on NaN or infinity."""
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}; the controller cannot act on it")
        factor = 1.5 if kl > self.target else 0.8 if kl < 0.5 * self.target else 1.0
        self.coef = min(max(self.coef * factor, BOUNDS[0]), BOUNDS[1])
        return self.coef
