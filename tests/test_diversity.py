"""Every diversity gradient against finite differences of the expected diversity, all sets enumerated."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from enumeration import (
    all_sets,
    cosine,
    embeddings,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    plain_semantic,
    relative_error,
    replies,
    variance,
)

from polylib.training import diversity as dv

IDS, MASK = replies()
N = len(IDS)
EMB = embeddings(N)
ALL_VALID = torch.ones(N, dtype=torch.bool)
SOME_VALID = torch.tensor([True, True, False, True, True, True, False, True, True])
REWARD = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.7, 0.2, 0.6], dtype=torch.float64)
THETA = parameters()
KINDS = ["jackknife", "leave_one_out", "set_level", "f_poly", "darling", "detached"]


def truth(score, size: int, theta=THETA) -> torch.Tensor:
    """Finite difference of E[score(S)] over all samples of `size`; score takes a list of reply numbers."""
    sets = all_sets(N, size)
    values = torch.tensor([score(s) for s in sets.tolist()], dtype=torch.float64)
    return finite_difference(lambda t: expectation(log_p(t, IDS, MASK), sets, values), theta)


def plain(valid=ALL_VALID):
    e, ok = EMB.numpy(), valid.numpy().astype(float)
    return lambda s: plain_semantic(e[s], ok[s])


def advantages(k: int, kind: str, valid=ALL_VALID, **options):
    """All 9^k sets as a batch of "prompts", through the function the loop calls."""
    sets = all_sets(N, k)
    distances = dv.pairwise_distances(EMB[sets])
    return sets, dv.diversity_advantages(distances, valid[sets], kind, **options)


def update(k: int, kind: str, valid=ALL_VALID, **options) -> torch.Tensor:
    sets, a = advantages(k, kind, valid, **options)
    return expected_update(THETA, IDS, MASK, sets, a)


# ----------------------------------------------------------------------- the gradients, by enumeration
@pytest.mark.parametrize("valid", [ALL_VALID, SOME_VALID], ids=["all valid", "some invalid"])
def test_jackknife_is_the_gradient_of_diversity_of_one_sample_less(valid):
    # the gate is part of D: with invalid replies it is the gradient of the gated D
    sets = all_sets(N, 4)
    D = dv.semantic(dv.pairwise_distances(EMB[sets]), valid[sets])
    found = expected_update(THETA, IDS, MASK, sets, dv.jackknife(D, 4))
    assert relative_error(found, truth(plain(valid), 3)) < 1e-6


def test_leave_one_out_is_the_gradient_of_diversity():
    assert relative_error(update(3, "leave_one_out"), truth(plain(), 3)) < 1e-6


@pytest.mark.parametrize("n", [2, 3])
def test_set_level_is_the_gradient_for_subsets_of_n(n):
    assert relative_error(update(4, "set_level", size=n), truth(plain(), n)) < 1e-6


def test_f_poly_is_the_gradient_of_mean_reward_times_diversity():
    sets = all_sets(N, 4)
    score = plain()
    expected = truth(lambda s: REWARD[s].mean().item() * score(s), 3)
    assert relative_error(update(4, "f_poly", rewards=REWARD[sets], size=3), expected) < 1e-6


def test_any_black_box_diversity_works():
    # distinct tokens: a count on the ids, no embedding and no derivative anywhere
    sets, tokens = all_sets(N, 4), IDS.tolist()

    def distinct(s):
        return len({t for i in s for t in tokens[i]}) / (2 * len(s))

    def D(members):
        rows = sets[:, members].tolist()
        return torch.tensor([[distinct(s) for s in row] for row in rows], dtype=torch.float64)

    found = expected_update(THETA, IDS, MASK, sets, dv.jackknife(D, 4))
    assert relative_error(found, truth(distinct, 3)) < 1e-6


def test_detached_diversity_has_no_gradient_at_all():
    # the faulty form of the literature: relative error 1, because the whole term is missing
    found = update(3, "detached")
    assert torch.equal(found, torch.zeros_like(found))
    assert relative_error(found, truth(plain(), 3)) == 1.0


def test_darling_is_a_heuristic_and_not_the_gradient_of_its_product():
    sets = all_sets(N, 3)
    found = update(3, "darling", rewards=REWARD[sets])
    e = EMB.numpy()

    def product(s):
        return np.mean(
            [
                REWARD[i].item() * np.mean([1 - e[i] @ e[j] for b, j in enumerate(s) if b != a])
                for a, i in enumerate(s)
            ]
        )

    expected = truth(product, 3)
    best = (
        expected * (found @ expected) / (expected @ expected)
    )  # even with the best scale it is off
    assert relative_error(found, best) > 0.02
    assert cosine(found, expected) > 0.5


def test_centring_is_what_makes_it_learnable():
    # same expected gradient (D is a mean over pairs), so the ratio of variances is a ratio of sample sizes
    sets, jack = advantages(4, "jackknife")
    D = dv.mean_pairwise(dv.pairwise_distances(EMB[sets]))
    bare = D[:, None].expand(-1, 4)
    assert variance(THETA, IDS, MASK, sets, bare) > 4 * variance(THETA, IDS, MASK, sets, jack)


# ----------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("kind", ["jackknife", "set_level", "f_poly"])
def test_centred_estimators_sum_to_zero(kind):
    _, a = advantages(4, kind, rewards=REWARD[all_sets(N, 4)])
    assert a.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_group_does_not_matter(kind):
    torch.manual_seed(0)
    distances = dv.pairwise_distances(torch.randn(5, 4, 6, dtype=torch.float64))
    rewards = torch.rand(5, 4)
    valid, order = torch.rand(5, 4) > 0.3, [2, 0, 3, 1]
    a = dv.diversity_advantages(distances, valid, kind, rewards=rewards)
    b = dv.diversity_advantages(
        distances[:, order][:, :, order], valid[:, order], kind, rewards=rewards[:, order]
    )
    assert torch.allclose(a[:, order], b, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_do_not_leak_into_each_other(kind):
    torch.manual_seed(0)
    distances = dv.pairwise_distances(torch.randn(3, 4, 6, dtype=torch.float64))
    rewards = torch.rand(3, 4)
    whole = dv.diversity_advantages(distances, None, kind, rewards=rewards)
    alone = [
        dv.diversity_advantages(distances[i : i + 1], None, kind, rewards=rewards[i : i + 1])
        for i in range(3)
    ]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-14)


def test_identical_replies_get_exactly_zero_in_float32():
    torch.manual_seed(0)
    same = torch.randn(2, 1, 384).expand(2, 4, 384).contiguous()
    distances = dv.pairwise_distances(same)
    assert torch.equal(distances, torch.zeros(2, 4, 4))
    for kind in ("jackknife", "leave_one_out", "set_level"):
        assert torch.equal(dv.diversity_advantages(distances, None, kind), torch.zeros(2, 4))


# ----------------------------------------------------------------------------------- the validity gate
@pytest.mark.parametrize("kind", KINDS)
def test_an_invalid_reply_never_profits(kind):
    sets, a = advantages(4, kind, SOME_VALID, rewards=REWARD[all_sets(N, 4)])
    assert a[~SOME_VALID[sets]].max() <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_invalid_reply_says_changes_nothing(kind):
    # no text, however far from the others, moves any weight once it is invalid
    torch.manual_seed(0)
    e = torch.randn(6, 4, 5, dtype=torch.float64)
    moved, rewards = e.clone(), torch.rand(6, 4)
    moved[:, 1] = 100 * torch.randn(6, 5)
    valid = torch.tensor([True, False, True, True]).expand(6, 4)
    a, b = (
        dv.diversity_advantages(dv.pairwise_distances(x), valid, kind, rewards=rewards)
        for x in (e, moved)
    )
    assert torch.equal(a, b)


def test_turning_invalid_lowers_the_diversity_of_the_group_and_the_own_weight():
    torch.manual_seed(0)
    distances = dv.pairwise_distances(torch.randn(200, 4, 5, dtype=torch.float64))
    everyone, whole = torch.ones(200, 4, dtype=torch.bool), torch.arange(4)[None]
    gated = everyone.clone()
    gated[:, 2] = False
    D, D_gated = (dv.semantic(distances, v)(whole)[:, 0] for v in (everyone, gated))
    assert (D_gated < D).all()
    a, a_gated = (
        dv.diversity_advantages(distances, v, "jackknife")[:, 2] for v in (everyone, gated)
    )
    assert (a_gated <= 0).all() and (a_gated < a).all()


def test_two_good_replies_and_junk_score_less_than_two_good_replies_and_a_third():
    # excluding junk from the average instead would give both groups the same D
    e = torch.tensor([[[1.0, 0], [0, 1.0], [-1.0, 0.0], [1.0, 0.0]]])
    junk = torch.tensor([[True, True, False, True]])
    d = dv.pairwise_distances(e)
    assert dv.mean_pairwise(d, junk).item() == pytest.approx((1 + 0 + 1) / 6)
    assert dv.mean_pairwise(d).item() == pytest.approx((1 + 2 + 0 + 1 + 1 + 2) / 6)


# ------------------------------------------------------------------------------------- golden examples
def test_jackknife_by_hand():
    # three replies: 0-1 .2, 0-2 .8, 1-2 .6; D without 0 is .6, without 1 .8, without 2 .2
    d = torch.tensor([[[0, 0.2, 0.8], [0.2, 0, 0.6], [0.8, 0.6, 0]]], dtype=torch.float64)
    found = dv.diversity_advantages(d)
    assert found[0].tolist() == pytest.approx([1.6 / 3 - 0.6, 1.6 / 3 - 0.8, 1.6 / 3 - 0.2])


def test_poly_epo_weights_are_the_centred_ones_times_one_minus_n_over_k():
    torch.manual_seed(0)
    k, n = 6, 3
    rewards = torch.rand(1, k, dtype=torch.float64)
    d = dv.pairwise_distances(torch.randn(1, k, 5, dtype=torch.float64))
    f = {}
    for g in combinations(range(k), n):
        pairs = [d[0, a, b].item() for a, b in combinations(g, 2)]
        f[g] = rewards[0, list(g)].mean().item() * np.mean(pairs)
    poly_epo = [np.mean([f[g] for g in f if i in g]) - np.mean(list(f.values())) for i in range(k)]
    ours = dv.diversity_advantages(d, None, "f_poly", rewards=rewards, size=n)[0]
    assert ours.tolist() == pytest.approx([n / k * p / (1 - n / k) for p in poly_epo])


# -------------------------------------------------------------------------------------------- refusals
def test_what_cannot_be_computed_is_refused():
    d = dv.pairwise_distances(torch.randn(1, 4, 5))
    with pytest.raises(ValueError, match="too few|sample 4"):
        dv.diversity_advantages(d[:, :2, :2])
    with pytest.raises(ValueError, match="unknown diversity gradient"):
        dv.diversity_advantages(d, kind="jacknife")
    with pytest.raises(ValueError, match="zero or not finite"):
        dv.pairwise_distances(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="zero or not finite"):
        dv.pairwise_distances(torch.full((1, 4, 5), float("nan")))
    with pytest.raises(ValueError, match="subsets of size"):
        dv.all_subsets(60, 30)
