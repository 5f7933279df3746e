"""The weight that changes during training: kappa, moved by the measured KL."""

from __future__ import annotations

import math


class AdaptiveKL:
    """Moves the KL coefficient so that the measured KL (nats per sequence, `objective.kl_value`) nears
    `target`.

    `rule="proportional"` (Ziegler et al. 2019, eq. after 3): coef *= 1 + rate * clip(kl / target - 1, -.2,
    .2), where `rate` is the classic n / horizon. `rule="steps"` (the original design of this study): coef *=
    1.5 above the target, *= .8 below half of it. Always kept inside `bounds`.
    """

    def __init__(
        self,
        coef: float,
        target: float,
        rule: str = "proportional",
        rate: float = 0.1,
        bounds: tuple[float, float] = (1e-4, 10.0),
    ):
        if rule not in ("proportional", "steps"):
            raise ValueError(f"unknown KL rule {rule!r}; use proportional or steps")
        if target <= 0 or not 0 < bounds[0] <= coef <= bounds[1]:
            raise ValueError(
                f"need target > 0 and 0 < low <= coef <= high, got {target}, {coef}, {bounds}"
            )
        self.coef, self.target, self.rule, self.rate, self.bounds = coef, target, rule, rate, bounds

    def update(self, kl: float) -> float:
        """New coefficient after a batch with this KL. Raises ValueError on NaN or infinity."""
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}; the controller cannot act on it")
        if self.rule == "proportional":
            factor = 1.0 + self.rate * min(max(kl / self.target - 1.0, -0.2), 0.2)
        else:
            factor = 1.5 if kl > self.target else 0.8 if kl < 0.5 * self.target else 1.0
        self.coef = min(max(self.coef * factor, self.bounds[0]), self.bounds[1])
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """The one number that changes."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of `state_dict`; KeyError if the entry is missing."""
        self.coef = state["coef"]
