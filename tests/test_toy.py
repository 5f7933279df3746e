"""The toy language against brute force: all ordered draws instead of multisets, loops instead of look-ups."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch
from enumeration import (
    all_sets,
    cosine,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    plain_semantic,
    relative_error,
    replies,
    token_logprobs,
    variance,
)

from polylib.training import diversity, toy

IDS, MASK = replies()
MEANING = torch.nn.functional.normalize(toy.MEANING, dim=-1)
TABLE = toy.snr_table((4, 8), (0, 1, 2))


def plain(s) -> float:
    """The mean distance of reply numbers, from its definition."""
    return plain_semantic(MEANING.numpy()[list(s)], np.ones(len(s)))


@lru_cache(None)  # an order does not change a value; the draws are still summed one by one
def objective(kind: str, s: tuple[int, ...]) -> float:
    """The whole objective of an estimator on one set."""
    if kind == "f_poly":
        return toy.REWARD[list(s)].mean().item() * plain(s)
    if kind == "darling":
        e = MEANING.numpy()
        return float(
            np.mean(
                [
                    toy.REWARD[i].item()
                    * np.mean([1 - e[i] @ e[j] for b, j in enumerate(s) if b != a])
                    for a, i in enumerate(s)
                ]
            )
        )
    return plain(s)


@lru_cache(None)
def brute_truth(kind: str, size: int) -> torch.Tensor:
    sets = all_sets(9, size)
    values = torch.tensor(
        [objective(kind, tuple(sorted(s))) for s in sets.tolist()], dtype=torch.float64
    )
    return finite_difference(lambda t: expectation(log_p(t, IDS, MASK), sets, values), parameters())


def brute_advantages(kind: str, k: int, theta) -> tuple[torch.Tensor, torch.Tensor]:
    """All 9^k ordered draws through `diversity.py`, or the set's own D less its mean or nothing."""
    sets = all_sets(9, k)
    distances = diversity.pairwise_distances(MEANING[sets])
    if kind not in ("shared", "bare"):
        return sets, diversity.diversity_advantages(distances, None, kind, toy.REWARD[sets])
    D = distances.sum((-1, -2)) / (k * (k - 1))
    mean = expectation(log_p(theta, IDS, MASK), sets, D) if kind == "shared" else 0.0
    return sets, (D - mean)[:, None].expand(-1, k)


def test_the_language_is_the_one_that_the_other_tests_enumerate():
    assert torch.equal(toy.REPLIES, IDS)
    for seed in (0, 3):
        theta = parameters(seed)
        assert torch.equal(toy.policy(seed), theta)
        assert torch.equal(toy.token_logprobs(theta), token_logprobs(theta, IDS))
        assert torch.allclose(toy.logprobs(theta), log_p(theta, IDS, MASK), atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_multiset_is_as_likely_as_all_its_orders_together(k):
    theta, found = toy.policy(2), Counter()
    for s, chance in zip(
        all_sets(9, k).tolist(), log_p(theta, IDS, MASK)[all_sets(9, k)].sum(-1).exp(), strict=True
    ):
        found[tuple(sorted(s))] += chance.item()
    assert [tuple(s) for s in toy.multisets(k).tolist()] == sorted(found)
    assert toy.chances(theta, k).tolist() == pytest.approx(
        [found[s] for s in sorted(found)], rel=1e-12
    )
    assert len(toy.multisets(8)) == math.comb(16, 8)
    assert toy.chances(theta, 8).sum().item() == pytest.approx(1, abs=1e-12)


def test_exact_gradient_against_finite_differences_over_ordered_draws():
    def score(sets):
        return diversity.mean_pairwise(diversity.pairwise_distances(MEANING[sets]))

    found = toy.exact_gradient(score, 3, toy.policy())
    assert relative_error(found, brute_truth("jackknife", 3)) < 1e-6
    assert (
        relative_error(
            toy.exact_gradient(lambda sets: toy.REWARD[sets].mean(-1), 2, toy.policy()),
            finite_difference(lambda t: log_p(t, IDS, MASK).exp() @ toy.REWARD, parameters()),
        )
        < 1e-6
    )


@pytest.mark.parametrize(
    "row",
    [r for r in TABLE if r["K"] == 4 and r["policy"] == 0],
    ids=lambda r: r["estimator"],
)
def test_signal_noise_and_error_against_brute_force(row):
    kind, theta = row["estimator"], parameters()
    sets, advantages = brute_advantages(kind, 4, theta)
    mean = expected_update(theta, IDS, MASK, sets, advantages)
    noise = variance(theta, IDS, MASK, sets, advantages) ** 0.5
    assert row["signal"] == pytest.approx(mean.norm().item(), rel=1e-6, abs=1e-12)
    assert row["noise"] == pytest.approx(noise, rel=1e-6, abs=1e-12)
    size = {"jackknife": 3, "set_level": 2, "f_poly": 2}.get(kind, 4)
    assert row["target"] == size
    if noise == 0:
        assert row["snr"] == 0 and row["relative_error"] == 1 and math.isnan(row["cosine"])
        return
    assert row["snr"] == pytest.approx(mean.norm().item() / noise, rel=1e-6)
    # the error in the table is between two exact numbers, here against finite differences
    assert row["relative_error"] == pytest.approx(
        relative_error(mean, brute_truth(kind, size)), abs=1e-6
    )
    angle = cosine(mean, brute_truth(kind, 4))
    assert row["cosine"] == pytest.approx(angle, abs=1e-6)
    assert row["aligned_snr"] == pytest.approx(row["snr"] * angle, abs=1e-6)


def rows(k: int) -> dict[tuple[str, int], dict]:
    return {(r["estimator"], r["policy"]): r for r in TABLE if r["K"] == k}


def test_every_estimator_is_exact_except_the_two_that_are_not():
    for row in TABLE:
        exact = row["estimator"] not in ("darling", "detached")
        assert (row["relative_error"] < 1e-9) == exact, row
    assert {r["relative_error"] for r in TABLE if r["estimator"] == "detached"} == {1.0}


def test_what_the_table_says_about_the_default():
    for k, over_shared in (
        (4, 0.85),
        (8, 1.5),
    ):  # even against the exact E[D] as the shared baseline
        table = rows(k)
        for p in (0, 1, 2):
            jackknife = table["jackknife", p]["snr"]
            # a mean over pairs: three names of one estimator
            assert table["leave_one_out", p]["snr"] == pytest.approx(jackknife, rel=1e-12)
            assert table["set_level", p]["snr"] == pytest.approx(jackknife, rel=1e-12)
            assert jackknife > 2 * table["bare", p]["snr"]
            assert jackknife > over_shared * table["shared", p]["snr"]


def test_another_seed_is_another_policy_and_the_rows_are_complete():
    signals = {r["signal"] for r in TABLE if r["estimator"] == "jackknife" and r["K"] == 4}
    assert len(signals) == 3 and len(TABLE) == 2 * 3 * len(toy.KINDS)
