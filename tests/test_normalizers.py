"""What a batch is divided by: hand examples, and invariance to padding, microbatching and dropped rows."""

from __future__ import annotations

import pytest
import torch

from polylib.training import advantages as adv
from polylib.training import objective as ob

NORMALIZERS = ["sequence", "dr_grpo", "dapo", "grpo"]


@pytest.mark.parametrize(
    "normalizer, expected",
    [("sequence", -0.5), ("dr_grpo", -0.125), ("dapo", -1 / 3), ("grpo", 0.0)],
)
def test_normalisers_by_hand(normalizer, expected):
    # two replies of 2 and 1 tokens, A = +1 and -1, on policy: token losses -1, -1 | +1
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, _ = ob.policy_loss(
        torch.randn(2, 3),
        None,
        torch.tensor([1.0, -1.0]),
        mask,
        normalizer=normalizer,
        max_tokens=4,
    )
    assert loss.item() == pytest.approx(expected)


def test_cross_entropy_by_hand_is_a_mean_over_tokens():
    logprobs = torch.tensor([[-1.0, -2.0, -99.0], [-6.0, -99.0, -99.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert ob.cross_entropy(logprobs, mask).item() == 3.0
    assert ob.cross_entropy(logprobs, mask, "sequence").item() == 4.5


def all_losses(logprobs, old, ref, a, mask, normalizer, denominator=None):
    yield ob.policy_loss(
        logprobs, old, a, mask, normalizer=normalizer, max_tokens=9, denominator=denominator
    )[0]
    for level in ("token", "togo") if normalizer == "grpo" else ("token", "sequence", "togo"):
        yield ob.kl_penalty(logprobs, ref, mask, "k2", normalizer, 9, denominator, level)
    if normalizer != "dr_grpo":
        yield ob.cross_entropy(logprobs, mask, normalizer, denominator=denominator)


def batch(seed=0, rows=8, tokens=6):
    g = torch.Generator().manual_seed(seed)
    logprobs, old, ref = (
        -torch.rand(rows, tokens, generator=g, dtype=torch.float64) for _ in range(3)
    )
    a = torch.randn(rows, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=g)
    return logprobs, old, ref, a, torch.arange(tokens) < lengths


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_padding_changes_nothing(normalizer):
    logprobs, old, ref, a, mask = batch()
    junk = torch.full((8, 3), float("nan"), dtype=torch.float64)
    wide = [torch.cat([x, junk], 1) for x in (logprobs, old, ref)]
    wide_mask = torch.cat([mask, torch.zeros(8, 3, dtype=torch.bool)], 1)
    narrow_in, wide_in = logprobs.clone().requires_grad_(), wide[0].clone().requires_grad_()
    narrow = list(all_losses(narrow_in, old, ref, a, mask, normalizer))
    padded = list(all_losses(wide_in, wide[1], wide[2], a, wide_mask, normalizer))
    for x, y in zip(narrow, padded, strict=True):
        (gx,) = torch.autograd.grad(x, narrow_in)
        (gy,) = torch.autograd.grad(y, wide_in)
        assert x.item() == pytest.approx(y.item(), rel=1e-12)
        assert torch.allclose(gx, gy[:, :6], atol=1e-15)
        assert torch.equal(
            gy[~wide_mask], torch.zeros_like(gy[~wide_mask])
        )  # not even from its NaN


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_microbatches_add_up_to_the_batch(normalizer):
    logprobs, old, ref, a, mask = batch()
    logprobs.requires_grad_()
    whole = list(all_losses(logprobs, old, ref, a, mask, normalizer))
    bottom = ob.batch_denominator(mask, normalizer, 9)
    parts = [
        list(all_losses(*(x[i : i + 2] for x in (logprobs, old, ref, a, mask)), normalizer, bottom))
        for i in range(0, 8, 2)
    ]
    for n, loss in enumerate(whole):
        total = sum(p[n] for p in parts)
        g, h = (torch.autograd.grad(x, logprobs, retain_graph=True)[0] for x in (loss, total))
        assert torch.allclose(g, h, atol=1e-15)


def test_rows_without_advantage_can_be_dropped_before_the_backward_pass():
    logprobs, old, _, a, mask = batch()
    a[[1, 4, 5]] = 0.0
    keep, bottom = a != 0, ob.batch_denominator(mask, "dapo")
    whole = ob.policy_loss(logprobs, old, a, mask, normalizer="dapo")[0]
    part = ob.policy_loss(
        logprobs[keep], old[keep], a[keep], mask[keep], normalizer="dapo", denominator=bottom
    )[0]
    assert part.item() == pytest.approx(whole.item(), rel=1e-12)


def test_a_truncated_reply_can_be_taken_out():
    logprobs, old, _, a, mask = batch()
    logprobs.requires_grad_()
    truncated = torch.tensor([False, True] * 4)
    ob.policy_loss(logprobs, old, a, adv.mask_truncated(mask, truncated), max_tokens=6)[
        0
    ].backward()
    assert torch.equal(logprobs.grad[truncated], torch.zeros(4, 6, dtype=torch.float64))
    assert (logprobs.grad[~truncated] != 0).any()
