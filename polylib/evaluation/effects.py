"""Methods against SFT: at the same temperature, and at the quality or diversity that SFT reaches by
temperature alone.

The second is the control a diversity method has to pass. Sampling SFT hotter also scatters its replies; a
method earns its keep only where it lies above SFT's temperature curve.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as ss

from polylib.evaluation import stats
from polylib.evaluation.results import UNSEEDED, Results

COMPARED = ["judge_mean", "reward_mean", "diversity", "diversity_tfidf", "relevance", "length_words"]


def effects(results: Results, metrics: list[str] | None = None, control: str = "sft") -> pd.DataFrame:
    """One row per metric and method: effect against `control`, both claims, exact test, Holm over the
    methods.

    Columns: metric, method, effect, checkpoints_{low,high,p}, method_{low,high,p,df,p_holm,reason},
    boot_{low,high} (hierarchical bootstrap, a check on the t interval), exact_p, exact_floor, seeds, prompts,
    dropped."""
    rows = []
    for metric in metrics or COMPARED:
        cells = results.cells(metric)
        family = []
        for method in results.methods:
            if method in (control, *UNSEEDED):
                continue
            c = stats.compare(cells, method, control)
            family.append({
                "metric": metric, "method": method, "effect": c.effect,
                "checkpoints_low": c.these_checkpoints.low, "checkpoints_high": c.these_checkpoints.high,
                "checkpoints_p": c.these_checkpoints.p, "method_low": c.method.low,
                "method_high": c.method.high, "method_p": c.method.p, "method_df": c.method.df,
                "method_reason": c.method.reason,
                **_bootstrap(cells, method, control, results.cfg.paper_figures.bootstrap),
                "exact_p": c.exact_p, "exact_floor": c.exact_floor, "seeds": c.seeds, "prompts": c.prompts,
                "dropped": c.dropped})
        adjusted = stats.holm([row["method_p"] for row in family])
        rows += [{**row, "method_p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return pd.DataFrame(rows)


def _bootstrap(cells: dict, a: str, b: str, draws: int) -> dict[str, float]:
    ya, yb = stats.matrix(cells, a)[2], stats.matrix(cells, b)[2]
    keep = np.isfinite(ya).all(axis=0) & np.isfinite(yb).all(axis=0)
    if len(ya) < 2 or keep.sum() < 2:
        return {"boot_low": np.nan, "boot_high": np.nan}  # method_reason says why
    _, low, high = stats.hierarchical_bootstrap(ya[:, keep], yb[:, keep], lambda y: y.mean(axis=(-2, -1)),
                                                draws)
    return {"boot_low": low, "boot_high": high}


@dataclass(frozen=True)
class Matched:
    """Method minus temperature control. runs: seed, fixed, method, control, difference, reason; claim over
    runs."""

    method: str
    fixed: str
    measured: str
    runs: pd.DataFrame
    mean: float
    claim: stats.Claim
    exact_p: float
    exact_floor: float


def at_equal_quality(results: Results, method: str, fixed: str = "judge_mean", measured: str = "diversity",
                     control: str = "sft") -> Matched:
    """How much more `measured` a run has than `control` sampled at the temperature that gives it the same
    `fixed`.

    Per seed, the control's curve over temperature is interpolated linearly at the run's own `fixed`; outside
    the curve the run has no match and gets NaN with the reason (no extrapolation). The unit of the claim is
    the run: a t interval on the seeds' differences. Exchange `fixed` and `measured` for "better at equal
    diversity"."""
    by_temperature = {t: (results.cells(fixed, t), results.cells(measured, t)) for t in results.temperatures}
    mine = results.cells(fixed), results.cells(measured)
    runs = []
    for seed in results.cfg.seeds:
        x, y = (cells[(method, seed)].mean() for cells in mine)
        curve = [tuple(cells[(control, seed)].mean() for cells in pair) for pair in by_temperature.values()]
        expected, reason = interpolate(np.array(curve), x)
        runs.append({"seed": seed, "fixed": x, "method": y, "control": expected, "difference": y - expected,
                     "reason": reason})
    runs = pd.DataFrame(runs)
    d = runs["difference"].dropna().to_numpy()
    nothing = np.nan, stats.Claim(np.nan, np.nan, np.nan, np.nan, _why(runs)), np.nan, np.nan
    if len(d) < 2 or len(d) < len(runs):  # the runs that happen to have a match are no sample of all runs
        return Matched(method, fixed, measured, runs, *nothing)
    test = ss.ttest_1samp(d, 0)
    interval = test.confidence_interval()
    claim = stats.Claim(float(interval.low), float(interval.high), float(test.pvalue), len(d) - 1)
    return Matched(method, fixed, measured, runs, float(d.mean()), claim, *stats.exact_test(d))


def _why(runs: pd.DataFrame) -> str:
    reasons = [f"seed {row.seed}: {row.reason}" for row in runs.itertuples() if row.reason]
    return "; ".join(reasons) or stats.ONE_SEED


def interpolate(curve: np.ndarray, x: float) -> tuple[float, str]:
    """(y at x, reason) on the polyline `curve` (T, 2) of (x, y) in order of temperature; NaN with reason
    outside it.

    Where noise makes the curve pass x twice, the higher y counts: the control gets the benefit of the
    doubt."""
    found = []
    for (x0, y0), (x1, y1) in zip(curve[:-1], curve[1:], strict=True):
        if min(x0, x1) <= x <= max(x0, x1):
            share = (x - x0) / (x1 - x0) if x1 != x0 else 0.0
            found.append(max(y0, y1) if x1 == x0 else y0 + share * (y1 - y0))
    if found:
        return float(max(found)), ""
    low, high = curve[:, 0].min(), curve[:, 0].max()
    side = "above" if x > high else "below"
    return np.nan, f"{x:.3f} is {side} all that temperature reaches ({low:.3f}-{high:.3f})"


def matched_table(results: Results) -> pd.DataFrame:
    """Every method at equal judge score and at equal diversity; one row each with n and the reason for
    gaps."""
    rows = []
    for method in results.methods:
        if method in ("sft", *UNSEEDED):
            continue
        for fixed, measured in (("judge_mean", "diversity"), ("diversity", "judge_mean")):
            m = at_equal_quality(results, method, fixed, measured)
            rows.append({"method": method, "equal": fixed, "gain_in": measured, "gain": m.mean,
                         "low": m.claim.low, "high": m.claim.high, "p": m.claim.p, "exact_p": m.exact_p,
                         "exact_floor": m.exact_floor, "runs": len(m.runs),
                         "matched_runs": int(m.runs["difference"].notna().sum()), "reason": m.claim.reason})
    return pd.DataFrame(rows)
