"""Exact tests, effect sizes, equivalence, variances, planning: against scipy, statsmodels, enumeration, simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as ss
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.weightstats import ttost_paired

from polylib import stats
from polylib.analysis import equivalence, exact, variance

RNG = np.random.default_rng(4)


def test_adjusted_p_values_are_those_of_the_definitions():
    assert stats.adjust([0.01, 0.02, 0.03, 0.04, 0.05], "fdr_bh") == pytest.approx([0.05] * 5)
    p = RNG.uniform(size=15) ** 2
    assert stats.adjust(p, "fdr_bh") == pytest.approx(ss.false_discovery_control(p))
    assert stats.adjust([0.01, np.nan, 0.04], "fdr_bh") == pytest.approx(
        [0.02, np.nan, 0.04], nan_ok=True
    )
    assert stats.adjust([0.01, np.nan, 0.04, 0.03], "holm") == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )
    assert np.isnan(stats.adjust([np.nan], "holm")).all() and not len(stats.adjust([], "holm"))


@pytest.mark.parametrize("runs, floor", [(3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_ranks_of_runs_are_scipy_s_and_name_their_floor(runs, floor):
    a, b = RNG.normal(size=(2, runs))
    p, smallest = exact.mann_whitney_runs(a, b)
    assert p == pytest.approx(
        ss.mannwhitneyu(a, b, method="exact").pvalue
    ) and smallest == pytest.approx(floor)
    assert exact.mann_whitney_runs(np.arange(runs) + 9.0, np.arange(runs))[0] == pytest.approx(
        floor
    )
    tied, _ = exact.mann_whitney_runs([1, 1, 2], [1, 3, 3])  # scipy's exact method knows no ties
    pooled = [1, 1, 2, 1, 3, 3]
    u = [
        ss.mannwhitneyu(
            [pooled[i] for i in c], [pooled[i] for i in range(6) if i not in c]
        ).statistic
        for c in itertools.combinations(range(6), 3)
    ]
    assert tied == pytest.approx(np.mean([abs(x - 4.5) >= abs(u[0] - 4.5) for x in u]))
    with pytest.raises(ValueError, match="splits"):
        exact.mann_whitney_runs(np.zeros(12), np.zeros(12))


def test_the_test_as_asked_has_cliffs_delta_s_published_value():
    a, b = [10, 20, 20, 20, 30, 30, 30, 40, 50, 100], [10, 20, 30, 40, 40, 50]
    p, delta = exact.as_asked(np.array(a), np.array(b))
    assert delta == pytest.approx(-0.0666667, abs=1e-7)  # cliffs-delta 1.0.0's example
    assert p == pytest.approx(ss.mannwhitneyu(a, b, method="asymptotic").pvalue)
    assert (
        exact.as_asked(np.ones((3, 4)), np.zeros((3, 4)))[1] == 1.0
    )  # all values of all posts in one sample


def test_tost_is_statsmodels_in_the_paired_case():
    a, b = RNG.normal(size=(2, 1, 50))
    for margin in (0.2, 0.4, 0.8):
        mine = equivalence.checkpoints(a + 0.1, b, margin)
        p, worse, _ = ttost_paired(a[0] + 0.1, b[0], -margin, margin)
        assert mine.p == pytest.approx(p) and (mine.low > -margin) == (worse[1] < 0.05)
        assert (mine.p < 0.05) == (-margin < mine.low and mine.high < margin)
    assert equivalence.method(a, b, 0.2).reason == stats.ONE_SEED
    assert equivalence.checkpoints(b, b, 0.1).reason == stats.SAME
    with pytest.raises(ValueError, match="margin"):
        equivalence.tost(0.1, 0.1, 5, 0.0)


def test_components_are_those_of_an_analysis_of_variance():
    y = RNG.normal(size=(4, 1)) + RNG.normal(size=(1, 6)) + RNG.normal(size=(4, 6))
    s, p = np.indices(y.shape)
    frame = pd.DataFrame({"y": y.ravel(), "s": s.ravel(), "p": p.ravel()})
    runs, posts = anova_lm(ols("y ~ C(s) + C(p)", frame).fit())["mean_sq"].iloc[:2]
    rest = anova_lm(ols("y ~ C(s) + C(p)", frame).fit())["mean_sq"].iloc[2]
    found = variance.components(y)
    assert tuple(vars(found).values()) == pytest.approx(
        ((runs - rest) / 6, (posts - rest) / 4, rest)
    )
    with pytest.raises(ValueError, match="2 or more"):
        variance.components(y[:1])


def test_components_find_planted_variances():
    truth, draws = (0.5, 2.0, 0.3), []
    for _ in range(300):
        y = sum(
            np.sqrt(v) * RNG.standard_normal(shape)
            for v, shape in zip(truth, ((4, 1), (1, 20), (4, 20)), strict=True)
        )
        draws.append(list(vars(variance.components(y)).values()))
    assert np.mean(draws, axis=0) == pytest.approx(
        truth, rel=0.12
    )  # unbiased: no more than noise of 300 studies


@pytest.mark.parametrize("seeds, prompts, effect", [(3, 36, 0.3), (5, 60, 0.25), (3, 100, 0.2)])
@pytest.mark.parametrize(
    "design", [variance.Design(0.0025, 0.09, 0.16), variance.Design(0.04, 0.1, 0.3)]
)
def test_power_is_that_of_simulated_studies(design, seeds, prompts, effect):
    rng, n = np.random.default_rng(6), 2000

    def method():
        return np.sqrt(design.seed) * rng.standard_normal((n, seeds, 1)) + np.sqrt(
            design.residual
        ) * rng.standard_normal((n, seeds, prompts))

    a = method() + effect + np.sqrt(design.by_prompt) * rng.standard_normal((n, 1, prompts))
    b = method()
    mean, error, df = stats.two_way_t(a - b, (a, b))
    found = (2 * ss.t.sf(abs(mean / error), df) < 0.05).mean()
    assert variance.power(design, effect, seeds, prompts) == pytest.approx(
        found, abs=0.035
    )  # 3 standard errors
    assert mean.std() == pytest.approx(design.error(seeds, prompts), rel=0.06)


def test_the_fewest_runs_that_find_an_effect():
    design = variance.Design(0.01, 0.02, 0.05)
    needed = int(variance.runs_needed(design, 0.2, 50, most=20))
    assert (
        variance.power(design, 0.2, needed, 50) >= 0.8 > variance.power(design, 0.2, needed - 1, 50)
    )
    assert np.isnan(variance.runs_needed(design, 0.001, 50, most=20))
