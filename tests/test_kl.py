"""KL estimators: what each one's value is, and what its gradient is. Everything enumerated."""

from __future__ import annotations

import pytest
import torch
from enumeration import (
    all_sets,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    relative_error,
    replies,
    token_logprobs,
)

from polylib.training import advantages as adv
from polylib.training import objective as ob

IDS, MASK = replies()
N = len(IDS)
THETA, REF = parameters(), parameters(7)
REWARD = torch.linspace(0, 1, N, dtype=torch.float64) ** 2


def exact_kl(p_theta, q_theta, ids=IDS, mask=MASK):
    p, q = log_p(p_theta, ids, mask), log_p(q_theta, ids, mask)
    return (p.exp() * (p - q)).sum()


def expected_kl_gradient(estimator, level, ids=IDS, mask=MASK):
    """E over replies of the gradient and of the value of the penalty on that reply."""
    theta = THETA.clone().requires_grad_()
    logprobs, reference = token_logprobs(theta, ids), token_logprobs(REF, ids)
    p = log_p(theta, ids, mask).detach().exp()
    terms = [
        ob.kl_penalty(logprobs[[i]], reference[[i]], mask[[i]], estimator, "sequence", level=level)
        for i in range(len(ids))
    ]
    value = (p * torch.stack(terms)).sum()
    value.backward()
    return theta.grad, value.item()


REVERSE = finite_difference(lambda t: exact_kl(t, REF), THETA)
FORWARD = finite_difference(lambda t: exact_kl(REF, t), THETA)
KL = exact_kl(THETA, REF).item()
EOS_IDS, EOS_MASK = replies(eos=True)
REVERSE_EOS = finite_difference(lambda t: exact_kl(t, REF, EOS_IDS, EOS_MASK), THETA)


def test_k1_as_a_loss_does_nothing():
    for level in ("token", "sequence"):
        gradient, value = expected_kl_gradient("k1", level)
        assert gradient.norm() < 1e-12 and value == pytest.approx(KL)


@pytest.mark.parametrize(
    "estimator, level", [("k2", "sequence"), ("k2", "togo"), ("k3+", "sequence")]
)
def test_k2_and_k3_plus_are_the_gradient_of_the_kl(estimator, level):
    assert relative_error(expected_kl_gradient(estimator, level)[0], REVERSE) < 1e-6
    gradient, _ = expected_kl_gradient(estimator, level, EOS_IDS, EOS_MASK)
    assert relative_error(gradient, REVERSE_EOS) < 1e-6


def test_k3_as_a_loss_is_the_gradient_of_the_other_kl():
    gradient, _ = expected_kl_gradient("k3", "sequence")
    assert relative_error(gradient, FORWARD) < 1e-6
    assert relative_error(gradient, REVERSE) > 0.1


def test_expected_values_k1_and_k3_are_the_kl_and_k2_is_not():
    for estimator in ("k1", "k3", "k3+"):
        for level in ("token", "sequence"):
            assert expected_kl_gradient(estimator, level)[1] == pytest.approx(KL, rel=1e-9)
    assert abs(expected_kl_gradient("k2", "sequence")[1] / KL - 1) > 0.01


@pytest.mark.parametrize(
    "estimator, truth", [("k2", exact_kl), ("k3", lambda p, q: exact_kl(q, p))]
)
def test_token_level_is_exact_for_one_token_and_partial_for_two(estimator, truth):
    ids, one = IDS[[0, 3, 6]], torch.tensor([[True, False]] * 3)  # one row for each first token

    def first_token(a, b):
        p, q = a[:3].log_softmax(-1), b[:3].log_softmax(-1)
        return (p.exp() * (p - q)).sum()

    pair = (lambda t: first_token(t, REF)) if estimator == "k2" else (lambda t: first_token(REF, t))
    found, _ = expected_kl_gradient(estimator, "token", ids, one)
    assert relative_error(found, finite_difference(pair, THETA)) < 1e-6
    whole = finite_difference(lambda t: truth(t, REF), THETA)
    assert relative_error(expected_kl_gradient(estimator, "token")[0], whole) > 0.01


def test_kl_in_the_reward_is_exact():
    kappa, sets = 0.3, all_sets(N, 3)
    logprobs, reference = token_logprobs(THETA, IDS), token_logprobs(REF, IDS)
    shaped = adv.kl_in_reward(REWARD[sets], logprobs[sets], reference[sets], MASK[sets], kappa)
    found = expected_update(THETA, IDS, MASK, sets, ob.group_advantages(shaped)) / 3
    reward = finite_difference(
        lambda t: expectation(log_p(t, IDS, MASK), all_sets(N, 1), REWARD), THETA
    )
    assert relative_error(found, (1 - 1 / 3) * (reward - kappa * REVERSE)) < 1e-6


def test_kl_value_is_in_nats_per_sequence():
    p = log_p(THETA, IDS, MASK).exp()
    rows = [token_logprobs(t, IDS) for t in (THETA, REF)]
    each = torch.stack([ob.kl_value(rows[0][[i]], rows[1][[i]], MASK[[i]]) for i in range(N)])
    assert (p * each).sum().item() == pytest.approx(KL)
    assert ob.kl_value(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2)) == 0
