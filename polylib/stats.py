"""Two labelled claims from seeds x prompts matrices. numpy and scipy only.

"These checkpoints differ" conditions on the trained runs: only prompts are a sample. "The method is better"
takes runs as a sample too, and with three seeds it is a far harder claim. Pooling generations in one
Mann-Whitney test, the usual way, reports differences between equal methods in a quarter to three quarters of
all studies (see tests/test_stats.py).

Left out on purpose: stars, and p-values without an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ONE_SEED = "one training run: nothing can be said about the method"
SAME = "no variation: the values differ by the same amount everywhere"


@dataclass(frozen=True)
class Claim:
    """An interval and a two-sided p at the 5 % level; NaN with the reason where the data do not support the
    claim."""

    low: float
    high: float
    p: float
    df: float
    reason: str = ""


def matrix(cells: Mapping, method: str) -> tuple[list, list, np.ndarray]:
    """(seeds, prompts, values (S, P)) of one method from `{(method, seed): Series indexed by prompt}`.

    Raises ValueError for a missing method, a repeated prompt, or seeds that answered different prompts."""
    mine = {seed: series for (name, seed), series in cells.items() if name == method}
    if not mine:
        raise ValueError(
            f"no cell of method {method!r}; there are {sorted({name for name, _ in cells})}"
        )
    seeds = sorted(mine, key=lambda seed: -1 if seed is None else seed)
    prompts = sorted(mine[seeds[0]].index)
    for seed in seeds:
        if sorted(mine[seed].index) != prompts or len(set(prompts)) != len(prompts):
            raise ValueError(
                f"{method} seed {seed}: its prompts are not those of seed {seeds[0]}, each once"
            )
    return (
        seeds,
        prompts,
        np.array([mine[seed].loc[prompts].to_numpy(dtype=float) for seed in seeds]),
    )


def checkpoints_claim(d: np.ndarray) -> Claim:
    """Differences d (S, P), runs fixed: t interval and sign-flip permutation p over the P prompts, seeds
    averaged."""
    per_prompt = d.mean(axis=0)
    n = len(per_prompt)
    if np.ptp(per_prompt) < 1e-12:
        return Claim(np.nan, np.nan, np.nan, n - 1, SAME)
    low, high = stats.t.interval(0.95, n - 1, per_prompt.mean(), stats.sem(per_prompt))
    return Claim(float(low), float(high), _sign_flip(per_prompt), n - 1)


def _sign_flip(d: np.ndarray, draws: int = 9999) -> float:
    """Two-sided p of mean 0 under flipped signs: all of them up to 13 values, else `draws` and the sample itself."""
    if len(d) <= 13:
        return exact_test(d)[0]
    flips = np.random.default_rng(0).integers(0, 2, (draws, len(d)), dtype=np.int8) * 2.0 - 1
    beyond = np.abs(flips @ d) > abs(d.sum()) - 1e-12
    return float((1 + beyond.sum()) / (1 + draws))


def method_claim(d: np.ndarray, separate: tuple[np.ndarray, np.ndarray] | None = None) -> Claim:
    """Differences d (S, P), runs and prompts both random: two-way t interval and p. NaN with reason at one
    seed."""
    if len(d) < 2:
        return Claim(np.nan, np.nan, np.nan, np.nan, ONE_SEED)
    effect, error, df = two_way_t(d, separate)
    if error < 1e-12:
        return Claim(np.nan, np.nan, np.nan, float(df), SAME)
    low, high = stats.t.interval(0.95, df, effect, error)
    return Claim(float(low), float(high), float(2 * stats.t.sf(abs(effect / error), df)), float(df))


def two_way_t(d: np.ndarray, separate: tuple[np.ndarray, np.ndarray] | None = None):
    """(mean, standard error, Satterthwaite degrees of freedom) of d (..., S, P), leading axes in one go.

    SE^2 = s^2(seed means) / S + s^2(prompt means) / P. Both terms hold some of the same residual noise, which
    makes it a little too wide, never too narrow. With `separate` = (a, b) the first term is s^2_a / S + s^2_b
    / S."""
    s, p = d.shape[-2:]
    by_seed = [m.mean(axis=-1).var(axis=-1, ddof=1) / s for m in (separate or (d,))]
    parts = [*((v, s - 1) for v in by_seed), (d.mean(axis=-2).var(axis=-1, ddof=1) / p, p - 1)]
    total = sum(v for v, _ in parts)
    df = total**2 / np.maximum(sum(v**2 / k for v, k in parts), 1e-300)
    return d.mean(axis=(-2, -1)), np.sqrt(total), df


def interval(values: np.ndarray) -> tuple[float, Claim]:
    """(mean, claim) of one method's values (S, P), NaN prompts left out: an interval for the method, or for S
    = 1 over prompts alone with the reason saying so."""
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 2:
        return np.nan, Claim(*[np.nan] * 4, f"defined at {values.shape[1]} prompts")
    if len(values) > 1:
        effect, error, df = two_way_t(values)
        reason = ""
    else:
        effect, error, df = values.mean(), stats.sem(values[0]), values.shape[1] - 1
        reason = "over prompts only: one run"
    low, high = stats.t.interval(0.95, df, effect, error) if error > 1e-12 else (effect, effect)
    return float(effect), Claim(float(low), float(high), np.nan, float(df), reason)


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): 95 % t interval of the mean of values (n,), NaN left out; low and high are NaN for n < 2,
    the mean too for n = 0."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float(values[0]) if len(values) else np.nan, np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def exact_test(by_run: np.ndarray) -> tuple[float, float]:
    """(p, smallest reachable p) of the sign-flip test on the S paired differences of runs; 2 / 2^S is the
    floor, so three runs cannot reach .05 whatever they show."""
    d = np.asarray(by_run, dtype=float)
    if len(d) < 2:
        return 1.0, 1.0
    flips = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    return float(flips.pvalue), 2.0 / 2 ** len(d)


def adjust(p: Sequence[float], method: str) -> np.ndarray:
    """p-values adjusted for their number: "holm" (Holm 1979) bounds the chance of any false claim, "fdr_bh"
    (Benjamini and Hochberg 1995) the share of false ones. NaN, a test that could not be done, stays and does not
    count. ValueError for another method."""
    if method not in ("holm", "fdr_bh"):
        raise ValueError(f"unknown correction {method!r}; use holm or fdr_bh")
    adjusted = np.array(p, dtype=float)
    done = np.flatnonzero(np.isfinite(adjusted))
    if method == "fdr_bh":
        adjusted[done] = stats.false_discovery_control(adjusted[done]) if len(done) else []
    else:  # spelt out: statsmodels collects garbage at every call, up to a second where torch is loaded
        order = done[np.argsort(adjusted[done])]
        steps = np.arange(len(done), 0, -1) * adjusted[order]
        adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
