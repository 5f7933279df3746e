"""Advantages: centring, scaling, refusing, and the options of the GRPO menu."""

from __future__ import annotations

import math

import pytest
import torch

from polylib.training import advantages as adv
from polylib.training import objective as ob


def test_group_std_by_hand_uses_ddof_one():
    r = torch.tensor([[0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    half = 1 / math.sqrt(2)
    assert ob.group_advantages(r, "group").flatten().tolist() == pytest.approx(
        [-half, half, half, -half]
    )
    four = ob.group_advantages(torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64), "group")
    assert four.flatten().tolist() == pytest.approx(
        [x / math.sqrt(5 / 3) for x in (-1.5, -0.5, 0.5, 1.5)]
    )


def test_tiny_rewards_keep_their_advantages_and_trls_eps_shows_why():
    r = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, tiny = ob.group_advantages(r, "group"), ob.group_advantages(1e-3 * r, "group")
    assert torch.allclose(whole, tiny, rtol=1e-3)
    assert not torch.allclose(ob.group_advantages(1e-3 * r, "group", eps=1e-4), whole, rtol=0.1)


@pytest.mark.parametrize("scale", ["none", "group"])
def test_equal_rewards_give_exactly_zero(scale):
    r = torch.tensor([[0.9, 0.9, 0.9], [0.3, 0.7, 0.2]])
    assert (r[0] - r[0].mean()).abs().max() > 0  # in float32 the mean of three .9 is not .9
    assert torch.equal(ob.group_advantages(r, scale)[0], torch.zeros(3))
    assert adv.zero_variance(r) == 0.5
    logprobs = torch.randn(3, 5, requires_grad=True)
    a = ob.group_advantages(r, scale)[0]
    ob.policy_loss(logprobs, None, a, torch.ones(3, 5), max_tokens=5)[0].backward()
    assert torch.equal(logprobs.grad, torch.zeros(3, 5))


@pytest.mark.parametrize("scale", ["none", "group"])
def test_what_the_reply_cannot_control_cancels(scale):
    # f(x): post popularity, followers, timing; sums of eighths are exact in floating point
    r = torch.tensor([[0.125, 0.5, 0.25, 1.0], [2.0, 0.375, 0.5, 0.625]])
    f = torch.tensor([[4.0], [-16.0]])
    assert torch.equal(ob.group_advantages(r + f, scale), ob.group_advantages(r, scale))


def test_groups_are_rows():
    r = torch.rand(5, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(ob.group_advantages(r[order]), ob.group_advantages(r)[order])
    assert ob.group_advantages(r).sum(1).abs().max() < 1e-6


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.tensor([[1.0, float("nan")]]), "sample 1 is nan"),
        (torch.tensor([[1.0, 2.0], [float("inf"), 1.0]]), "prompt 1"),
        (torch.ones(3, 1), "K >= 2"),
        (torch.ones(3), "K >= 2"),
    ],
)
def test_rewards_that_cannot_be_compared_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        ob.group_advantages(bad)


def test_unknown_names_are_refused():
    lp, mask = torch.zeros(1, 2), torch.ones(1, 2)
    with pytest.raises(ValueError, match="unknown scale"):
        ob.group_advantages(torch.rand(2, 2), "running")
    with pytest.raises(ValueError, match="unknown normalizer"):
        ob.policy_loss(lp, None, torch.ones(1), mask, normalizer="dr-grpo", max_tokens=2)
    with pytest.raises(ValueError, match="max_tokens"):
        ob.policy_loss(lp, None, torch.ones(1), mask, normalizer="dr_grpo")
    with pytest.raises(ValueError, match="unknown KL"):
        ob.kl_penalty(lp, lp, mask, "k4", max_tokens=2)
    with pytest.raises(ValueError, match="unknown level"):
        ob.kl_penalty(lp, lp, mask, "k2", max_tokens=2, level="word")
    with pytest.raises(ValueError, match="no token"):
        ob.cross_entropy(lp, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="detach"):
        ob.policy_loss(lp, None, torch.ones(1, requires_grad=True), mask, max_tokens=2)
    with pytest.raises(ValueError, match="NaN"):
        ob.policy_loss(lp, None, torch.tensor([float("nan")]), mask, max_tokens=2)


def test_running_scale_gives_advantages_unit_size_from_the_past_only():
    generator = torch.Generator().manual_seed(0)
    scale = adv.RunningScale(decay=0.9)
    sizes = []
    for _ in range(60):
        a = 0.05 * torch.randn(8, 4, generator=generator)
        sizes.append((a / scale.update(a)).square().mean().item())
    assert sum(sizes[20:]) / 40 == pytest.approx(1.0, abs=0.1)
    before = scale.scale
    assert (
        scale.update(100 * torch.ones(8, 4)) == before
    )  # the batch at hand is not its own reference
    first = adv.RunningScale()
    assert first.update(torch.tensor([[3.0, -3.0]])) == pytest.approx(
        3.0
    )  # except for the very first


def test_running_scale_resumes_and_ignores_silence():
    a, b = adv.RunningScale(), adv.RunningScale()
    assert a.update(torch.zeros(2, 2)) == 1.0  # nothing seen: 0 / 1
    a.update(torch.tensor([[1.0, -1.0]]))
    kept = a.scale
    a.update(torch.zeros(2, 2))
    assert a.scale == kept == 1.0
    a.update(torch.tensor([[5.0, -2.0]]))
    vars(b).update(vars(a))
    x = torch.tensor([[0.3, -0.1]])
    assert (b.update(x), b.scale) == (a.update(x), a.scale)
    with pytest.raises(ValueError, match="NaN"):
        a.update(torch.tensor([[float("nan")]]))


def test_combined_advantages_by_hand():
    r, d = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.2, -0.2]])
    assert ob.combined_advantages(r, d, 0.5, 3.0, 2.0, 0.1)[0].tolist() == pytest.approx(
        [6.25, -6.25]
    )
    assert torch.equal(ob.combined_advantages(r, None, 1.0, 0.0), r)
    with pytest.raises(ValueError, match="diversity is 1.0 but"):
        ob.combined_advantages(r, None, 1.0, 1.0)


def test_advantage_clip_of_ten_never_acts_at_k_four():
    torch.manual_seed(0)
    a = ob.group_advantages(torch.randn(1000, 4).exp() ** 4, "group")
    assert a.abs().max() <= 3 / math.sqrt(4) + 1e-5
    clipped, share = adv.clip_advantages(a, 10.0)
    assert torch.equal(clipped, a) and share == 0.0
    clipped, share = adv.clip_advantages(torch.tensor([[-3.0, 1.0, 1.0, 1.0]]), 2.0)
    assert share == 0.25 and clipped.sum() != 0  # when it acts, the zero sum is gone: biased
