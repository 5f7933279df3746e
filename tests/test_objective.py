"""The terms of the objective against enumeration, finite differences, hand examples and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from enumeration import (
    EOS,
    all_sets,
    cosine,
    embeddings,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    relative_error,
    replies,
    token_logprobs,
)

from polylib.training import diversity as dv
from polylib.training import objective as ob

IDS, MASK = replies()
N = len(IDS)
THETA, REF = parameters(), parameters(7)
REWARD = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.7, 0.2, 0.6], dtype=torch.float64)


def expected_policy_gradient(
    sets, advantages, ids=IDS, mask=MASK, normalizer="sequence", max_tokens=2
):
    """E[grad policy_loss] over all sets: rows = all samples of all sets, each weighted by its set's
    probability.

    On policy the loss is linear in the advantages, so the probability can be multiplied into them.
    """
    theta = THETA.clone().requires_grad_()
    logprobs = token_logprobs(theta, ids)
    weights = log_p(theta, ids, mask).detach()[sets].sum(-1).exp() * len(sets)
    rows = sets.flatten()
    loss, _ = ob.policy_loss(
        logprobs[rows],
        None,
        (weights[:, None] * advantages).flatten(),
        mask[rows],
        normalizer=normalizer,
        max_tokens=max_tokens,
    )
    loss.backward()
    return theta.grad


def reward_gradient(ids=IDS, mask=MASK, reward=REWARD):
    """Finite difference of E[reward] for one sample."""
    return finite_difference(
        lambda t: expectation(log_p(t, ids, mask), all_sets(len(ids), 1), reward), THETA
    )


# ----------------------------------------------------------------- the policy gradient, by enumeration
@pytest.mark.parametrize("k", [2, 3])
def test_group_mean_gives_the_reward_gradient_times_one_minus_one_over_k(k):
    sets = all_sets(N, k)
    found = -expected_policy_gradient(sets, ob.group_advantages(REWARD[sets]))
    assert relative_error(found, (1 - 1 / k) * reward_gradient()) < 1e-6


def test_leave_one_out_baseline_is_the_group_mean_rescaled():
    # RLOO written out independently: reward minus the mean of the others
    sets = all_sets(N, 3)
    r = REWARD[sets]
    rloo = torch.stack(
        [r[:, i] - r[:, [j for j in range(3) if j != i]].mean(1) for i in range(3)], 1
    )
    assert torch.allclose(ob.group_advantages(r), (1 - 1 / 3) * rloo, atol=1e-15)
    assert relative_error(-expected_policy_gradient(sets, rloo), reward_gradient()) < 1e-6


def test_dr_grpo_divides_by_a_constant_and_changes_nothing_else():
    sets = all_sets(N, 2)
    a = ob.group_advantages(REWARD[sets])
    sequence = expected_policy_gradient(sets, a)
    dr_grpo = expected_policy_gradient(sets, a, normalizer="dr_grpo", max_tokens=40)
    assert torch.allclose(dr_grpo * 40, sequence)


def test_with_replies_of_different_length_only_a_constant_divisor_keeps_the_direction():
    ids, mask = replies(eos=True)
    reward = torch.tensor([0.2, 0.8, 0.1, 0.9, 0.3, 0.5, 0.7], dtype=torch.float64)
    sets = all_sets(len(ids), 2)
    a = ob.group_advantages(reward[sets])
    truth = 0.5 * reward_gradient(ids, mask, reward)
    assert (mask.sum(1) == 1).sum() == 1 and ids[mask.sum(1) == 1][0, 0] == EOS
    found = {
        n: -expected_policy_gradient(sets, a, ids, mask, n) for n in ("sequence", "dr_grpo", "grpo")
    }
    assert relative_error(found["sequence"], truth) < 1e-6
    assert relative_error(found["dr_grpo"] * 2, truth) < 1e-6
    assert (
        cosine(found["grpo"], truth) < 0.999
    )  # 1/|y| turns the gradient: this one is biased, as documented


def test_group_std_reweights_prompts_and_none_does_not():
    # the same prompt twice, once with rewards ten times larger: its pull must be ten times larger
    sets = all_sets(N, 3)
    small, large = REWARD[sets], 10 * REWARD[sets]
    pull = {
        s: [
            expected_policy_gradient(sets, ob.group_advantages(r, s)).norm().item()
            for r in (small, large)
        ]
        for s in ("none", "group")
    }
    assert pull["none"][1] / pull["none"][0] == pytest.approx(10)
    assert pull["group"][1] / pull["group"][0] == pytest.approx(1, rel=1e-5)


def test_off_policy_ratio_corrects_the_expectation():
    # samples from another policy; one-token replies, where the token ratio is the exact importance weight
    mask = MASK & torch.tensor([True, False])
    first = torch.tensor([0, 3, 6])
    old = token_logprobs(REF, IDS)[first]
    theta = THETA.clone().requires_grad_()
    loss, stats = ob.policy_loss(
        token_logprobs(theta, IDS)[first],
        old,
        REWARD[first] * old[:, 0].exp() * 3,
        mask[first],
        clip_low=1.0,
        clip_high=1e9,
        normalizer="sequence",
    )
    loss.backward()
    truth = finite_difference(
        lambda t: (token_logprobs(t, IDS)[first, 0].exp() * REWARD[first]).sum(), THETA
    )
    assert relative_error(-theta.grad, truth) < 1e-6
    assert stats["clip_fraction"] == 0.0


def test_on_policy_the_value_is_nothing_and_the_gradient_is_everything():
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    a = torch.tensor([1.0, -1.0])
    loss, stats = ob.policy_loss(logprobs, logprobs, a, torch.ones(2, 2), max_tokens=2)
    loss.backward()
    assert loss.item() == 0.0 and stats == {"clip_fraction": 0.0, "ratio_mean": 1.0}
    assert logprobs.grad.tolist() == [[-0.25, -0.25], [0.25, 0.25]]


def test_clipping_by_hand():
    # ratios 1.5 and 0.5 with both signs: min(rho A, clip(rho) A); the binding side has no gradient
    ratio = torch.tensor([[1.5], [0.5], [1.5], [0.5]])
    logprobs = ratio.log().requires_grad_()
    a = torch.tensor([1.0, 1.0, -1.0, -2.0])
    loss, stats = ob.policy_loss(
        logprobs, torch.zeros(4, 1), a, torch.ones(4, 1), 0.2, 0.3, "sequence"
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1.3 + 0.5 - 1.5 - 1.6) / 4)
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])
    assert stats["clip_fraction"] == 0.5 and stats["ratio_mean"] == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------- lambda
@pytest.mark.parametrize("normalizer, tokens", [("dr_grpo", 40), ("sequence", 40), ("dapo", 2)])
def test_literal_lambda_is_the_weight_of_the_true_gradient(normalizer, tokens):
    # train with a dimensionless lam and a running scale; the expected gradient is -literal * grad E[D]
    k, lam, scale = 4, 1.7, 0.06
    sets, e = all_sets(N, k), embeddings(N)
    a = dv.diversity_advantages(dv.pairwise_distances(e[sets]))
    a = ob.combined_advantages(None, a, 0.0, lam, 1.0, scale)
    found = expected_policy_gradient(sets, a, normalizer=normalizer, max_tokens=tokens)
    triples = all_sets(N, 3)
    D = dv.mean_pairwise(dv.pairwise_distances(e[triples]))
    truth = finite_difference(lambda t: expectation(log_p(t, IDS, MASK), triples, D), THETA)
    assert (
        relative_error(found, -ob.literal_lambda(lam, scale, k, tokens, normalizer) * truth) < 1e-6
    )


def test_literal_lambda_example():
    assert ob.literal_lambda(1.0, 0.06, 4, 40) == pytest.approx(0.104, abs=5e-4)


# ------------------------------------------------------------------------------------- the entropy bonus
def logits() -> torch.Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_entropy_of_the_next_token_and_its_gradient():
    p = logits().softmax(-1)
    assert torch.allclose(ob.token_entropy(logits()), -(p * p.log()).sum(-1), rtol=1e-12)
    assert torch.autograd.gradcheck(ob.token_entropy, logits().requires_grad_())
    certain = torch.tensor([1e4, 0.0, 0.0])
    assert ob.token_entropy(torch.zeros(5)).item() == pytest.approx(math.log(5))
    assert ob.token_entropy(certain).item() == pytest.approx(0.0, abs=1e-6)


def test_tokens_that_could_not_be_drawn_are_as_good_as_absent():
    """Logits of -inf at two of five tokens: value and gradient are those of the three that are left."""
    left, full = [0, 2, 4], logits()
    full[..., [1, 3]] = -torch.inf
    full.requires_grad_()
    few = logits()[..., left].requires_grad_()
    found, expected = ob.token_entropy(full), ob.token_entropy(few)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(full.grad[..., left], few.grad)
    assert not full.grad[..., [1, 3]].any()


# --------------------------------------------------------------------------------------------- the sum
def test_total_is_the_one_line_it_says():
    ce, policy, kl, h = (torch.tensor(x) for x in (2.0, -0.5, 0.25, 1.5))
    found = ob.total(
        alpha=0.3, ce=ce, policy=policy, kappa=0.1, kl=kl, entropy_weight=0.01, entropy=h
    )
    assert found.item() == pytest.approx(0.3 * 2.0 - 0.5 - 0.01 * 1.5 + 0.1 * 0.25)
    with pytest.raises(ValueError, match="weight of kl is 0.1"):
        ob.total(alpha=1.0, ce=ce, kappa=0.1)
    with pytest.raises(ValueError, match="no term"):
        ob.total()


def test_lambda_zero_and_detached_diversity_are_sft_bit_for_bit():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 7, generator=generator)
    x, e = torch.randn(4, 3, 5, generator=generator), torch.randn(1, 4, 6, generator=generator)
    mask = torch.ones(4, 3)

    def gradient(lam, kind):
        w = weight.clone().requires_grad_()
        logprobs = (x @ w).log_softmax(-1)[..., 0]
        ce, policy = ob.cross_entropy(logprobs, mask), None
        if kind:
            a = dv.diversity_advantages(dv.pairwise_distances(e), kind=kind)
            a = ob.combined_advantages(None, a, 0.0, lam)
            policy = ob.policy_loss(logprobs, None, a.flatten(), mask, max_tokens=3)[0]
        ob.total(alpha=1.0, ce=ce, policy=policy).backward()
        return w.grad

    sft = gradient(0.0, None)
    assert torch.equal(gradient(0.0, "jackknife"), sft)
    assert torch.equal(gradient(100.0, "detached"), sft)
    assert not torch.equal(gradient(0.1, "jackknife"), sft)


def test_expected_update_helper_agrees_with_policy_loss():
    # the helper of test_diversity and the loss the loop uses are the same gradient
    sets = all_sets(N, 3)
    a = ob.group_advantages(REWARD[sets])
    found = -3 * expected_policy_gradient(sets, a)
    assert relative_error(found, expected_update(THETA, IDS, MASK, sets, a)) < 1e-12
