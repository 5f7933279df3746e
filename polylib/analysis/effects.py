"""Methods against SFT: at the same temperature, and at the quality or diversity that SFT reaches by
temperature alone.

The second is the control a diversity method has to pass. Sampling SFT hotter also scatters its replies; a
method earns its keep only where it lies above SFT's temperature curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import exact
from polylib.analysis.results import UNSEEDED, Results
from polylib.names import METRICS

# What a forest shows by default, where the study has it and names.METRICS names it.
COMPARED = [
    "judge_mean",
    "reward_mean",
    "diversity",
    "diversity_tfidf",
    "effective_diversity",
    "vendi",
    "self_bleu",
    "distinct_2",
    "rouge_l",
    "relevance",
    "length_words",
    "truncated",
    "duplicates",
    "copy_rate",
    "repeated_elsewhere",
]


def compared(results: Results) -> list[str]:
    """The metrics of COMPARED that every file of the study has."""
    return [name for name in COMPARED if name in results.columns and name in METRICS]


def effects(
    results: Results, metrics: list[str] | None = None, control: str = "sft"
) -> pd.DataFrame:
    """One row per metric and method: effect against `control`, both claims, exact test, Holm over the
    methods.

    Columns: metric, method, effect, checkpoints_{low,high,p}, method_{low,high,p,df,p_holm,reason},
    boot_{low,high} (hierarchical bootstrap, a check on the t interval), exact_p, exact_floor (signs of runs), ranks_p,
    ranks_floor (Mann-Whitney on run means), d_z (effect in SDs of the posts' differences), seeds, prompts,
    dropped."""
    rows = []
    for metric in metrics or compared(results):
        cells = results.cells(metric)
        family = []
        for method in results.methods:
            if method in (control, *UNSEEDED):
                continue
            c, both = stats.compare(cells, method, control), pair(cells, method, control)
            family.append(
                {
                    "metric": metric,
                    "method": method,
                    "effect": c.effect,
                    **claims(c.these_checkpoints, c.method),
                    "method_reason": c.method.reason,
                    **_bootstrap(*both, results.cfg.paper_figures.bootstrap),
                    "exact_p": c.exact_p,
                    "exact_floor": c.exact_floor,
                    **_by_rank(*both),
                    "seeds": c.seeds,
                    "prompts": c.prompts,
                    "dropped": c.dropped,
                }
            )
        adjusted = stats.adjust([row["method_p"] for row in family], "holm")
        rows += [{**row, "method_p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return pd.DataFrame(rows)


def claims(checkpoints, method) -> dict[str, float]:
    """Columns of a table from both claims, or both answers to a question of equivalence."""
    return {f"checkpoints_{name}": getattr(checkpoints, name) for name in ("low", "high", "p")} | {
        f"method_{name}": getattr(method, name) for name in ("low", "high", "p", "df")
    }


def pair(cells: dict, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (S, P) of both methods at the prompts that every cell of both defines."""
    ya, yb = stats.matrix(cells, a)[2], stats.matrix(cells, b)[2]
    keep = np.isfinite(ya).all(axis=0) & np.isfinite(yb).all(axis=0)
    return ya[:, keep], yb[:, keep]


def _by_rank(ya: np.ndarray, yb: np.ndarray) -> dict[str, float]:
    if ya.shape[1] < 2:
        return {"ranks_p": np.nan, "ranks_floor": np.nan, "d_z": np.nan}  # method_reason says why
    p, floor = exact.mann_whitney_runs(ya.mean(axis=1), yb.mean(axis=1))
    return {"ranks_p": p, "ranks_floor": floor, "d_z": exact.d_z(ya - yb)}


def _bootstrap(ya: np.ndarray, yb: np.ndarray, draws: int) -> dict[str, float]:
    if len(ya) < 2 or ya.shape[1] < 2:
        return {"boot_low": np.nan, "boot_high": np.nan}  # method_reason says why
    _, low, high = stats.hierarchical_bootstrap(ya, yb, lambda y: y.mean(axis=(-2, -1)), draws)
    return {"boot_low": low, "boot_high": high}


@dataclass(frozen=True)
class Matched:
    """Method minus temperature control. runs: seed, fixed, method, control, difference, reason; both claims, exact test
    on runs; prompts used, and dropped because some cell does not define them."""

    method: str
    fixed: str
    measured: str
    runs: pd.DataFrame
    mean: float
    claim: stats.Claim  # the method
    these_checkpoints: stats.Claim
    exact_p: float
    exact_floor: float
    prompts: int
    dropped: int


def at_equal_quality(
    results: Results,
    method: str,
    fixed: str = "judge_mean",
    measured: str = "diversity",
    control: str = "sft",
) -> Matched:
    """How much more `measured` a run has than `control` sampled at the temperature that gives it the same
    `fixed`.

    Per seed, the control's curve over temperature is interpolated linearly at the run's own `fixed`; outside
    the curve the run has no match and gets NaN with the reason (no extrapolation). The claim about the method takes
    runs and posts as samples (see `matched_differences`). Exchange `fixed` and `measured` for "better at equal
    diversity"."""
    by_temperature = [
        [results.cells(name, t) for t in results.temperatures] for name in (fixed, measured)
    ]
    curves = [
        np.stack([stats.matrix(cells, control)[2] for cells in part]) for part in by_temperature
    ]  # (T, S, P)
    mine = [stats.matrix(results.cells(name), method)[2] for name in (fixed, measured)]
    keep = np.isfinite(np.concatenate([*curves, *(m[None] for m in mine)])).all(axis=(0, 1))
    (curve_x, curve_y), (x, y) = ([m[..., keep] for m in part] for part in (curves, mine))
    counts = int(keep.sum()), int((~keep).sum())
    if counts[0] < 2:
        d, reasons = (
            np.full_like(x, np.nan),
            [f"defined at {counts[0]} of {len(keep)} prompts"] * len(x),
        )
    else:
        d, reasons = matched_differences(curve_x, curve_y, x, y)
    means = (m.mean(axis=1) if counts[0] else np.full(len(m), np.nan) for m in (x, y, d))
    runs = pd.DataFrame(dict(zip(("fixed", "method", "difference"), means, strict=True)))
    seeds = stats.matrix(results.cells(fixed), method)[0]
    runs = runs.assign(seed=seeds, control=runs["method"] - runs["difference"], reason=reasons)
    runs = runs[["seed", "fixed", "method", "control", "difference", "reason"]]
    if (
        len(d) < 2 or not np.isfinite(d).all()
    ):  # the runs that happen to have a match are no sample of all runs
        nothing = stats.Claim(np.nan, np.nan, np.nan, np.nan, _why(runs))
        return Matched(
            method, fixed, measured, runs, np.nan, nothing, nothing, np.nan, np.nan, *counts
        )
    return Matched(
        method,
        fixed,
        measured,
        runs,
        float(d.mean()),
        stats.method_claim(d),
        stats.checkpoints_claim(d),
        *stats.exact_test(d.mean(axis=1)),
        *counts,
    )


def matched_differences(
    curve_x: np.ndarray, curve_y: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """(differences (S, P), reasons): per run, y less the control's y where the control's mean x equals the run's.

    curve_x, curve_y (T, S, P), x, y (S, P), finite. Each run's mean is its distance from the control's polyline over
    temperature; single posts are first-order (delta method): y - control y - slope (x - control x), all at the
    interpolated temperature. All runs answer the same posts, so a t test on the runs' distances alone takes what these
    posts happen to favour for the method's merit (simulated in tests/test_error_rates.py). NaN row where there is no
    match."""
    d, reasons = np.full(x.shape, np.nan), []
    for s in range(len(x)):
        curve = np.stack([curve_x[:, s].mean(axis=1), curve_y[:, s].mean(axis=1)], axis=1)
        i, share, reason = _crossing(curve, x[s].mean())
        reasons.append(reason)
        if reason:
            continue
        (x0, y0), (x1, y1) = curve[i], curve[i + 1]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
        at = [(1 - share) * m[i, s] + share * m[i + 1, s] for m in (curve_x, curve_y)]
        d[s] = y[s] - at[1] - slope * (x[s] - at[0])
    return d, reasons


def _why(runs: pd.DataFrame) -> str:
    reasons = [f"seed {row.seed}: {row.reason}" for row in runs.itertuples() if row.reason]
    return "; ".join(reasons) or stats.ONE_SEED


def _crossing(curve: np.ndarray, x: float) -> tuple[int, float, str]:
    """(segment, share of its far end, reason for none) where the polyline `curve` (T, 2) of (x, y) passes x. Where
    noise makes it pass twice, the higher y counts: the control gets the benefit of the doubt."""
    found = []
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(curve[:-1], curve[1:], strict=True)):
        if min(x0, x1) <= x <= max(x0, x1):
            share = (x - x0) / (x1 - x0) if x1 != x0 else float(y1 > y0)
            found.append((y0 + share * (y1 - y0), i, share))
    if found:
        return *max(found)[1:], ""
    low, high = curve[:, 0].min(), curve[:, 0].max()
    side = "above" if x > high else "below"
    return 0, 0.0, f"{x:.3f} is {side} all that temperature reaches ({low:.3f}-{high:.3f})"


def matched_table(results: Results) -> pd.DataFrame:
    """Every method at equal judge score and at equal diversity; one row each with n and the reason for
    gaps."""
    rows = []
    for method in results.methods:
        if method in ("sft", *UNSEEDED):
            continue
        for fixed, measured in (("judge_mean", "diversity"), ("diversity", "judge_mean")):
            m = at_equal_quality(results, method, fixed, measured)
            rows.append(
                {
                    "method": method,
                    "equal": fixed,
                    "gain_in": measured,
                    "gain": m.mean,
                    "low": m.claim.low,
                    "high": m.claim.high,
                    "p": m.claim.p,
                    "exact_p": m.exact_p,
                    "exact_floor": m.exact_floor,
                    "runs": len(m.runs),
                    "matched_runs": int(m.runs["difference"].notna().sum()),
                    "reason": m.claim.reason,
                }
            )
    return pd.DataFrame(rows)
