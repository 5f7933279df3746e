"""The toy language against brute force: all ordered draws instead of multisets, loops instead of look-ups."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch
from enumeration import (
    PLAIN,
    all_sets,
    cosine,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    relative_error,
    replies,
    token_logprobs,
    variance,
)

from polylib.training import diversity, measures, toy

IDS, MASK = replies()
MEANING = torch.nn.functional.normalize(toy.MEANING, dim=-1)
TABLE = toy.snr_table((4, 8), (0, 1, 2))


def plain(measure: str, s) -> float:
    """A set function of reply numbers, from its definition."""
    if measure in PLAIN:
        return PLAIN[measure](MEANING.numpy()[list(s)], np.ones(len(s)))
    if measure in ("reward", "success"):
        return max(
            toy.REWARD[i].item() if measure == "reward" else float(toy.REWARD[i] >= 0.7) for i in s
        )
    texts = [tuple(IDS[i].tolist()) for i in s]
    if measure == "self_bleu":  # two tokens: sqrt of the unigram and the smoothed bigram precision

        def bleu(text, others):
            copied = sum(min(text.count(t), max(o.count(t) for o in others)) for t in set(text)) / 2
            return (copied * ((text in others) + 1) / 2) ** 0.5

        return float(
            np.mean([1 - bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)])
        )
    grams = texts if measure == "distinct_2" else [(t,) for text in texts for t in text]
    return len(set(grams)) / len(grams)


@lru_cache(None)  # an order does not change a value; the draws are still summed one by one
def objective(kind: str, measure: str, s: tuple[int, ...]) -> float:
    """The whole objective of an estimator on one set."""
    if kind == "f_poly":
        return toy.REWARD[list(s)].mean().item() * plain(measure, s)
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
    return plain(measure, s)


def brute_truth(kind: str, measure: str, size: int) -> torch.Tensor:
    return _brute_truth(kind if kind in ("f_poly", "darling") else "", measure, size)


@lru_cache(None)
def _brute_truth(kind: str, measure: str, size: int) -> torch.Tensor:
    sets = all_sets(9, size)
    values = torch.tensor(
        [objective(kind, measure, tuple(sorted(s))) for s in sets.tolist()], dtype=torch.float64
    )
    return finite_difference(lambda t: expectation(log_p(t, IDS, MASK), sets, values), parameters())


def brute_advantages(kind: str, measure: str, k: int, theta) -> tuple[torch.Tensor, torch.Tensor]:
    """All 9^k ordered draws through `diversity.py` with the measures themselves, nothing looked up."""
    sets, n = all_sets(9, k), max(2, k // 2)
    if kind in ("max_at_k", "pass_at_k"):
        rewards = toy.REWARD if kind == "max_at_k" else (toy.REWARD >= 0.7).double()
        return sets, diversity.max_at_k(rewards[sets], n)
    distances = measures.pairwise_distances(MEANING[sets])
    D = measure
    if measure.startswith("distinct"):
        D = measures.distinct_n(IDS[sets], MASK[sets], int(measure[-1]))
    if measure == "self_bleu":

        def D(members):
            return torch.tensor(
                [
                    [objective("", measure, tuple(sorted(s))) for s in row]
                    for row in sets[:, members].tolist()
                ],
                dtype=torch.float64,
            )

    baseline = 0.0
    if kind == "shared":
        value = (D if callable(D) else measures.MEASURES[D](distances))(torch.arange(k)[None])[:, 0]
        baseline = expectation(log_p(theta, IDS, MASK), sets, value).item()
    return sets, diversity.diversity_advantages(
        distances, None, "shared" if kind == "bare" else kind, D, toy.REWARD[sets], n, baseline
    )


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


@pytest.mark.parametrize("measure", [*toy.SET_MEASURES, "reward", "success"])
def test_exact_gradient_against_finite_differences_over_ordered_draws(measure):
    found = toy.exact_gradient(lambda sets: toy.values(measure, 3), 3, toy.policy())
    assert relative_error(found, brute_truth("jackknife", measure, 3)) < 1e-6
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
    ids=lambda r: f"{r['estimator']}-{r['measure']}",
)
def test_signal_noise_and_error_against_brute_force(row):
    kind, measure, theta = row["estimator"], row["measure"], parameters()
    sets, advantages = brute_advantages(kind, measure, 4, theta)
    mean = expected_update(theta, IDS, MASK, sets, advantages)
    noise = variance(theta, IDS, MASK, sets, advantages) ** 0.5
    assert row["signal"] == pytest.approx(mean.norm().item(), rel=1e-6, abs=1e-12)
    assert row["noise"] == pytest.approx(noise, rel=1e-6, abs=1e-12)
    size = {"jackknife": 3, "set_level": 2, "f_poly": 2, "max_at_k": 2, "pass_at_k": 2}.get(kind, 4)
    assert row["target"] == size
    if noise == 0:
        assert row["snr"] == 0 and row["relative_error"] == 1 and math.isnan(row["cosine"])
        return
    assert row["snr"] == pytest.approx(mean.norm().item() / noise, rel=1e-6)
    # the error in the table is between two exact numbers, here against finite differences
    assert row["relative_error"] == pytest.approx(
        relative_error(mean, brute_truth(kind, measure, size)), abs=1e-6
    )
    angle = cosine(mean, brute_truth(kind, measure, 4))
    assert row["cosine"] == pytest.approx(angle, abs=1e-6)
    assert row["aligned_snr"] == pytest.approx(row["snr"] * angle, abs=1e-6)


def test_members_of_a_subset_may_come_in_any_order():
    D = toy.set_function("vendi", 4)
    assert torch.equal(D(torch.tensor([[3, 0, 1]])), D(torch.tensor([[0, 1, 3]])))
    assert D(torch.tensor([[3, 0, 1]]))[5, 0].item() == pytest.approx(
        plain("vendi", toy.multisets(4)[5, [0, 1, 3]].tolist())
    )


def rows(k: int, measure: str = "semantic") -> dict[tuple[str, int], dict]:
    return {
        (r["estimator"], r["policy"]): r for r in TABLE if r["K"] == k and r["measure"] == measure
    }


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
    # and where it is not the best: a D that grows with the set and is not a mean
    assert all(
        rows(8, "vendi")["leave_one_out", p]["snr"] > rows(8, "vendi")["jackknife", p]["snr"]
        for p in (0, 1, 2)
    )


def test_another_seed_is_another_policy_and_the_rows_are_complete():
    signals = {r["signal"] for r in TABLE if r["estimator"] == "jackknife" and r["K"] == 4}
    assert len(signals) == 3 * len(toy.SET_MEASURES)
    assert len(TABLE) == 2 * 3 * (
        len(toy.SET_MEASURES) * len(toy.DIVERSITY_KINDS) + len(toy.OTHER_KINDS)
    )
    with pytest.raises(ValueError, match="unknown set function 'entropy'"):
        toy.snr("jackknife", "entropy", 4)
