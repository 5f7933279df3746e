"""Differentiable diversity, schedules and the KL controller."""
from __future__ import annotations

import math

import pytest
import torch

from polylib.training import pathwise, schedules

MASK = torch.tensor([[True, True, False], [True, False, False]])


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table() -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


TERMS = {"entropy": lambda x: pathwise.entropy(x, MASK),
         "gini": lambda x: pathwise.token_gini(x, MASK),
         "rao": lambda x: pathwise.embedding_rao(x, table(), MASK)}


@pytest.mark.parametrize("name", TERMS)
def test_pathwise_terms_equal_two_independent_draws(name):
    # every pair (v, v') of next tokens enumerated, at the three positions of the mask
    e = table() / table().norm(dim=1, keepdim=True)
    pair = {"gini": 1 - torch.eye(5, dtype=torch.float64), "rao": torch.cdist(e, e) ** 2}
    p = logits().softmax(-1)[MASK]
    expected = (p @ pair[name] * p).sum(-1).mean() if name in pair else -(p * p.log()).sum(-1).mean()
    assert TERMS[name](logits()).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_pathwise_gradients_against_finite_differences(name):
    assert torch.autograd.gradcheck(TERMS[name], logits().requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_a_pure_bonus_spreads_the_distribution_and_padding_is_left_alone(name):
    x = logits().requires_grad_()
    TERMS[name](x).backward()
    assert x.grad[MASK].norm() > 0 and torch.equal(x.grad[~MASK], torch.zeros(3, 5, dtype=torch.float64))
    assert TERMS[name](x.detach() + 0.1 * x.grad) > TERMS[name](x.detach())


def test_uniform_and_certain_next_tokens():
    uniform, certain = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    certain[..., 0] = 1e4
    assert pathwise.entropy(uniform, MASK).item() == pytest.approx(math.log(5))
    assert pathwise.token_gini(uniform, MASK).item() == pytest.approx(0.8)
    for x in (pathwise.entropy(certain, MASK), pathwise.token_gini(certain, MASK)):
        assert x.item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="no token"):
        pathwise.entropy(uniform, torch.zeros(2, 3))


def test_rao_cannot_be_bought_with_long_embeddings():
    stretched = table() * torch.tensor([1.0, 100, 1, 1, 1])[:, None]
    found = pathwise.embedding_rao(logits(), stretched, MASK).item()
    assert found == pytest.approx(TERMS["rao"](logits()).item())
    trainable = table().requires_grad_()
    assert not pathwise.embedding_rao(logits(), trainable, MASK).requires_grad


def gem_gradient(**options):
    x, targets = logits().requires_grad_(), torch.tensor([[1, 4, 0], [2, 0, 0]])
    pathwise.gem_loss(x, targets, MASK, **options).backward()
    ce = logits().requires_grad_()
    torch.nn.functional.cross_entropy(ce[MASK], targets[MASK]).backward()
    return x.grad, ce.grad


def test_gem_at_beta_one_has_the_gradient_of_cross_entropy_and_below_does_not():
    found, ce = gem_gradient(beta=1.0)
    assert torch.allclose(found, ce, atol=1e-14)
    assert not torch.allclose(gem_gradient(beta=0.7)[0], ce, atol=1e-2)


def test_gem_by_hand():
    # d loss / d logit_v = q_v - 1[v = y] for linear weights, q at temperature beta
    found, _ = gem_gradient(beta=0.7)
    q = (logits() / 0.7).softmax(-1)
    q[0, 0, 1] -= 1
    assert torch.allclose(found[0, 0], q[0, 0] / 3, atol=1e-14)
    linear, sigmoid = (gem_gradient(weighting=w)[0] for w in ("linear", "log_sigmoid"))
    assert torch.allclose(sigmoid, linear / 2, atol=2e-3) and not torch.equal(sigmoid, linear / 2)
    with pytest.raises(ValueError, match="unknown GEM"):
        gem_gradient(weighting="log")


def test_chord_warms_up_and_decays():
    mu = [schedules.chord_mu(s, 4, 8, 0.9, 0.05) for s in range(16)]
    assert mu[:5] == pytest.approx([0, 0.225, 0.45, 0.675, 0.9])
    assert mu[8] == pytest.approx((0.9 + 0.05) / 2) and mu[12:] == [0.05] * 4
    assert all(a > b for a, b in zip(mu[4:12], mu[5:13], strict=True))
    assert schedules.chord_mu(0, 0, 8, 0.9, 0.05) == 0.9
    with pytest.raises(ValueError, match="valley"):
        schedules.chord_mu(0, 4, 8, 0.1, 0.9)


def test_chord_phi_silences_known_and_hopeless_tokens():
    p = torch.tensor([0.999, 0.5, 0.001], requires_grad=True)
    phi = schedules.chord_phi(p.log())
    assert phi.tolist() == pytest.approx([0.000999, 0.25, 0.000999], rel=1e-4) and not phi.requires_grad


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


PER_TOKEN = {"entropy": lambda x, e, y: pathwise.entropies(x), "gini": lambda x, e, y: pathwise.ginis(x),
             "rao": lambda x, e, y: pathwise.raos(x, pathwise.unit_rows(e)),
             "gem": lambda x, e, y: pathwise.gem_losses(x, y)}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_tokens_that_could_not_be_drawn_are_as_good_as_absent(name):
    """Logits of -inf at two of five tokens: value and gradient are those of the three that are left."""
    targets, left = torch.tensor([[0, 2, 1], [2, 1, 0]]), [0, 2, 4]
    full = logits()
    full[..., [1, 3]] = -torch.inf
    full.requires_grad_()
    few = logits()[..., left].requires_grad_()
    found = PER_TOKEN[name](full, table(), torch.tensor(left)[targets])
    expected = PER_TOKEN[name](few, table()[left], targets)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(full.grad[..., left], few.grad)
    assert not full.grad[..., [1, 3]].any()
