"""Gradient anatomy against hand-computed gradients and against an ordinary backward pass."""

from __future__ import annotations

import math

import pytest
import torch

from polylib.training.anatomy import COLUMNS, TERMS, Anatomy


def parameters():
    return (
        torch.tensor([3.0, 1.0], requires_grad=True),
        torch.tensor([2.0], requires_grad=True),
        torch.tensor([[7.0]], requires_grad=True),
    )


def test_by_hand():
    a, b, unused = parameters()
    anatomy = Anatomy([a, b, unused])
    anatomy.add(
        {
            "ce": (a * torch.tensor([3.0, 4.0])).sum(),
            "kl": 2 * b.sum() - 2 * a[0],
            "diversity": torch.tensor(0.7),
        }
    )  # read off sampled text: a constant
    row = anatomy.row()
    assert row["norm_ce"] == pytest.approx(5.0) and row["norm_kl"] == pytest.approx(math.sqrt(8))
    assert row["cos_ce_kl"] == pytest.approx(-6 / (5 * math.sqrt(8)))
    # a constant pulls with force 0 in no direction; a term that is not there is not a force of 0
    assert row["norm_diversity"] == 0.0 and math.isnan(row["cos_ce_diversity"])
    assert math.isnan(row["norm_reward"]) and math.isnan(row["cos_ce_reward"])
    assert all(p.grad is None for p in (a, b, unused))


def test_the_columns_are_all_norms_and_all_pairs():
    a, b, _ = parameters()
    anatomy = Anatomy([a, b])
    assert list(anatomy.row()) == COLUMNS and all(math.isnan(x) for x in anatomy.row().values())
    anatomy.add({name: (i + 1) * a.sum() - b.sum() for i, name in enumerate(reversed(TERMS))})
    assert list(anatomy.row()) == COLUMNS and not any(math.isnan(x) for x in anatomy.row().values())
    assert COLUMNS == [
        "norm_ce",
        "norm_reward",
        "norm_diversity",
        "norm_kl",
        "cos_ce_reward",
        "cos_ce_diversity",
        "cos_ce_kl",
        "cos_reward_diversity",
        "cos_reward_kl",
        "cos_diversity_kl",
    ]


def test_slices_add_up_to_the_whole_and_backward_still_works():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    losses = {"ce": lambda x: net(x).square().sum(), "reward": lambda x: net(x).sin().sum()}
    whole, slices = Anatomy(list(net.parameters())), Anatomy(list(net.parameters()))
    whole.add({name: f(x) for name, f in losses.items()})
    slices.add({"ce": losses["ce"](x[:2])})  # a term may be missing in a slice
    slices.add({"ce": losses["ce"](x[2:]), "reward": losses["reward"](x)})
    assert slices.row() == pytest.approx(whole.row(), rel=1e-5, nan_ok=True)
    total = losses["ce"](x) + losses["reward"](x)
    anatomy = Anatomy(list(net.parameters()))
    anatomy.add({"ce": total})
    total.backward()  # the same graph, and nothing was left behind in .grad
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
    row = whole.row()
    assert anatomy.row()["norm_ce"] == pytest.approx(norm, rel=1e-6)
    # the law of cosines joins the parts to the whole
    law = (
        row["norm_ce"] ** 2
        + row["norm_reward"] ** 2
        + 2 * row["norm_ce"] * row["norm_reward"] * row["cos_ce_reward"]
    )
    assert law == pytest.approx(norm**2, rel=1e-5)


def test_half_precision_gradients_are_added_in_float32():
    a = torch.ones(1, requires_grad=True, dtype=torch.bfloat16)
    anatomy = Anatomy([a])
    for weight in (256.0, 1.0, 1.0):
        anatomy.add({"ce": weight * a.sum()})
    assert anatomy.row()["norm_ce"] == 258.0  # bfloat16 has no 257
