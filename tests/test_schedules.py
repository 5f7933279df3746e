"""The KL controller."""

from __future__ import annotations

import pytest

from polylib.training import schedules


def test_adaptive_kl_moves_towards_its_target_and_stays_in_bounds():
    c = schedules.AdaptiveKL(0.1, target=5.0, rate=0.5)
    assert c.update(100.0) == pytest.approx(0.11) and c.update(0.0) == pytest.approx(0.099)
    assert c.update(5.0) == pytest.approx(0.099)
    steps = schedules.AdaptiveKL(0.1, 5.0, "steps", bounds=(0.05, 0.2))
    assert steps.update(5.1) == pytest.approx(0.15) and steps.update(3.0) == pytest.approx(0.15)
    assert steps.update(2.4) == pytest.approx(0.12)
    assert [steps.update(9.0) for _ in range(3)][-1] == 0.2
    assert [steps.update(0.0) for _ in range(9)][-1] == 0.05
    twin = schedules.AdaptiveKL(0.1, 5.0, "steps", bounds=(0.05, 0.2))
    twin.load_state_dict(steps.state_dict())
    assert twin.coef == 0.05
    with pytest.raises(ValueError, match="nan"):
        steps.update(float("nan"))
    with pytest.raises(ValueError, match="unknown KL rule"):
        schedules.AdaptiveKL(0.1, 5.0, "pid")
    with pytest.raises(ValueError, match="coef"):
        schedules.AdaptiveKL(20.0, 5.0)
