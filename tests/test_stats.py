"""Intervals and tests against scipy, statsmodels, enumeration and, for their error rates, simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as ss
from statsmodels.stats.weightstats import DescrStatsW

from polylib import stats

RNG = np.random.default_rng(1)


def cells(**methods: np.ndarray) -> dict:
    """{(method, seed): Series} from (S, P) matrices; seeds 42, 123, ..."""
    seeds = [42, 123, 456, 7, 8]
    return {
        (name, seed): pd.Series(row, index=[f"p{i}" for i in range(len(row))])
        for name, rows in methods.items()
        for seed, row in zip(seeds, rows, strict=False)
    }


def study(rng, sims, seed_sd, effect=0.0, seeds=3, prompts=200, generations=10):
    """Two methods' generations (sims, S, P, G): prompt SD 1, generation SD 1, seed x prompt SD .3, runs that
    vary."""

    def normal(*shape):
        return rng.standard_normal((sims, *shape), dtype=np.float32)

    base = normal(1, prompts, 1)
    return [
        shift
        + base
        + seed_sd * normal(seeds, 1, 1)
        + 0.3 * normal(seeds, prompts, 1)
        + normal(seeds, prompts, generations)
        for shift in (effect, 0.0)
    ]


def rejections(a, b, paired):
    ma, mb = a.mean(-1, dtype=float), b.mean(-1, dtype=float)
    effect, error, df = stats.two_way_t(ma - mb, None if paired else (ma, mb))
    return (2 * ss.t.sf(abs(effect / error), df) < 0.05).mean()


@pytest.mark.parametrize("seed_sd, published", [(0.05, 0.25), (0.1, 0.54), (0.2, 0.77)])
def test_pooled_mann_whitney_invents_differences(seed_sd, published):
    """Two equal methods, 300 studies: the share in which pooled generations nonetheless give p < .05."""
    a, b = study(np.random.default_rng(11), 300, seed_sd)
    pooled = ss.mannwhitneyu(
        a.reshape(300, -1), b.reshape(300, -1), axis=1, method="asymptotic"
    ).pvalue
    assert (pooled < 0.05).mean() == pytest.approx(published, abs=0.08)


@pytest.mark.parametrize("seed_sd", [0, 0.05, 0.1, 0.2, 0.5, 1])
@pytest.mark.parametrize("by_prompt", [0, 0.5])  # SD of what a method gains or loses by prompt
def test_our_claim_about_the_method_does_not(seed_sd, by_prompt):
    """Same design, 4000 studies (standard error .0035): at most 6 %, and 7.5 % when paired by seed at S =
    3."""
    rng = np.random.default_rng(12)
    a, b = study(rng, 4000, seed_sd, prompts=40, generations=2)
    a = a + by_prompt * rng.standard_normal((4000, 1, 40, 1), dtype=np.float32)
    assert rejections(a, b, paired=False) <= 0.06
    assert rejections(a, b, paired=True) <= 0.075


def test_our_claim_has_power():
    a, b = study(np.random.default_rng(13), 300, 0.05, effect=0.2)
    assert rejections(a, b, paired=False) == pytest.approx(
        0.84, abs=0.08
    )  # the reference simulation's value


def test_two_way_t_is_the_formula_and_reduces_to_known_tests():
    d = RNG.normal(size=(3, 50)) + 0.4
    effect, error, df = stats.two_way_t(d)
    v1, v2 = d.mean(1).var(ddof=1) / 3, d.mean(0).var(ddof=1) / 50
    assert (effect, error) == pytest.approx((d.mean(), np.sqrt(v1 + v2)))
    assert df == pytest.approx((v1 + v2) ** 2 / (v1**2 / 2 + v2**2 / 49))
    runs = RNG.normal(size=(5, 1)) + np.zeros(
        (5, 30)
    )  # prompts alike: the one-sample t test on runs
    assert stats.method_claim(runs).p == pytest.approx(ss.ttest_1samp(runs[:, 0], 0).pvalue)
    prompts = np.zeros((3, 1)) + RNG.normal(size=(1, 30))  # none over runs: the one on prompts
    assert stats.method_claim(prompts).p == pytest.approx(ss.ttest_1samp(prompts[0], 0).pvalue)
    a, b = (
        RNG.normal(size=(4, 1)) + np.zeros((4, 9)),
        2 * RNG.normal(size=(4, 1)) + np.zeros((4, 9)),
    )
    welch = ss.ttest_ind(a[:, 0], b[:, 0], equal_var=False)  # prompts alike, unpaired
    assert stats.method_claim(a - b, (a, b)).p == pytest.approx(welch.pvalue)


def test_checkpoints_claim_is_the_paired_test_over_prompts():
    d = RNG.normal(size=(3, 40)) + 0.2
    claim = stats.checkpoints_claim(d)
    t = ss.ttest_1samp(d.mean(0), 0)
    assert (claim.low, claim.high) == pytest.approx(tuple(t.confidence_interval()))
    assert claim.p == pytest.approx(t.pvalue, rel=0.25)  # permutation and t agree on Gaussian data
    assert stats.checkpoints_claim(d).p == claim.p  # the same permutations every time
    for n in (9, 40):  # all flips, and a draw of them
        few = d[:, :n]
        scipy = ss.permutation_test(
            (few.mean(0),), np.mean, permutation_type="samples", n_resamples=9999, rng=1
        ).pvalue
        assert stats.checkpoints_claim(few).p == pytest.approx(scipy, abs=1e-12 if n == 9 else 0.02)


def test_exact_test_is_the_enumeration_and_names_its_floor():
    for d in ([0.1, 0.2, 0.3], [0.5, -0.1, 0.3, 0.2, 0.4], RNG.normal(size=6)):
        d = np.array(d)
        p, floor = stats.exact_test(d)
        sums = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=len(d))]
        assert p == pytest.approx(
            np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
        ) and p >= floor == 2 / 2 ** len(d)
    assert stats.exact_test(np.array([1.0, 2, 3]))[0] == 0.25  # three runs, all positive
    assert stats.exact_test(np.arange(1.0, 7))[0] == 0.03125  # six


def test_holm_steps_down_and_skips_tests_that_were_not_done():
    assert stats.adjust([0.01, 0.02, 0.03, 0.04, 0.05], "holm") == pytest.approx(
        [0.05, 0.08, 0.09, 0.09, 0.09]
    )
    p = RNG.uniform(size=12)
    one_by_one = [
        max(min(1.0, (len(p) - i) * q) for i, q in enumerate(sorted(p)) if q <= own) for own in p
    ]
    assert stats.adjust(p, "holm") == pytest.approx(one_by_one)
    assert stats.adjust([0.01, np.nan, 0.04], "holm") == pytest.approx(
        [0.02, np.nan, 0.04], nan_ok=True
    )


def test_interval_of_one_method():
    values = RNG.normal(size=(3, 30))
    mean, claim = stats.interval(values)
    assert (
        claim.low < mean == pytest.approx(values.mean()) and mean < claim.high and not claim.reason
    )
    mean, claim = stats.interval(values[:1])
    assert (claim.low, claim.high) == pytest.approx(
        tuple(ss.ttest_1samp(values[0], 0).confidence_interval())
    )
    assert "prompts only" in claim.reason
    assert np.isnan(stats.interval(np.full((1, 5), np.nan))[0])


def test_a_t_interval_is_that_of_statsmodels_and_needs_two_values():
    values = np.array([0.3, np.nan, 1.0, -0.4, 2.2])
    low, high = DescrStatsW(values[np.isfinite(values)]).tconfint_mean()
    assert stats.t_interval(values) == pytest.approx((0.775, low, high))
    assert stats.t_interval([2.0, np.nan])[0] == 2.0 and np.isnan(stats.t_interval([2.0])[1:]).all()
    assert np.isnan(stats.t_interval([])).all()


def test_a_matrix_is_in_the_order_of_seeds_and_prompts_and_refuses_what_does_not_match():
    a = RNG.normal(size=(3, 20))
    c = cells(sft=a)
    c[("sft", 123)] = c[("sft", 123)].sample(frac=1, random_state=0)
    seeds, prompts, values = stats.matrix(dict(reversed(c.items())), "sft")
    assert seeds == [42, 123, 456] and prompts == sorted(f"p{i}" for i in range(20))
    assert values[:, prompts.index("p7")] == pytest.approx(a[:, 7])
    with pytest.raises(ValueError, match="no cell"):
        stats.matrix(c, "grpo")
    c[("sft", 123)] = c[("sft", 123)].iloc[1:]
    with pytest.raises(ValueError, match="seed 123"):
        stats.matrix(c, "sft")


def test_one_seed_makes_no_claim_about_the_method():
    d = RNG.normal(size=(1, 20))
    assert np.isnan(stats.method_claim(d).p) and stats.method_claim(d).reason == stats.ONE_SEED
    assert np.isfinite(stats.checkpoints_claim(d).p) and stats.exact_test(d[:, 0])[1] == 1.0
    same = stats.method_claim(np.ones((3, 20)))
    assert same.reason == stats.SAME and np.isnan(same.p)
