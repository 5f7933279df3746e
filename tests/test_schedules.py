"""The KL controller."""

from __future__ import annotations

import pytest

from polylib.training import schedules


def test_adaptive_kl_moves_towards_its_target_and_stays_in_bounds():
    steps = schedules.AdaptiveKL(0.1, 5.0)
    assert steps.update(5.1) == pytest.approx(0.15) and steps.update(3.0) == pytest.approx(0.15)
    assert steps.update(2.4) == pytest.approx(0.12)
    assert [steps.update(9.0) for _ in range(12)][-1] == 10.0
    assert [steps.update(0.0) for _ in range(60)][-1] == 1e-4
    with pytest.raises(ValueError, match="nan"):
        steps.update(float("nan"))
