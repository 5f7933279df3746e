"""The weight that changes during training: kappa, moved by the measured KL."""

from __future__ import annotations

import math


class AdaptiveKL:
    """Moves the KL coefficient so that the measured KL (nats per sequence, `objective.kl_value`) nears
    `target`: times 1.5 above it, times .8 below half of it. Always kept inside `bounds`.
    """

    def __init__(self, coef: float, target: float, bounds: tuple[float, float] = (1e-4, 10.0)):
        if target <= 0 or not 0 < bounds[0] <= coef <= bounds[1]:
            raise ValueError(
                f"need target > 0 and 0 < low <= coef <= high, got {target}, {coef}, {bounds}"
            )
        self.coef, self.target, self.bounds = coef, target, bounds

    def update(self, kl: float) -> float:
        """New coefficient after a batch with this KL. Raises ValueError on NaN or infinity."""
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}; the controller cannot act on it")
        factor = 1.5 if kl > self.target else 0.8 if kl < 0.5 * self.target else 1.0
        self.coef = min(max(self.coef * factor, self.bounds[0]), self.bounds[1])
        return self.coef
