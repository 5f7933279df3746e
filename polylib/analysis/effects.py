"""Methods against SFT: at the same temperature, and at the quality or diversity that SFT reaches by
temperature alone.

The second is the control a diversity method has to pass. Sampling SFT hotter also scatters its replies; a
method earns its keep only where it lies above SFT's temperature curve.
"""

from __future__ import annotations

import numpy as np

from polylib import stats
from polylib.analysis import exact
from polylib.analysis.results import Results
from polylib.names import METRICS

# What the significance table compares, where the study has it and names.METRICS names it.
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
CLAIMED = ("low", "high", "p")
EXACT = ("signs_p", "signs_floor", "ranks_p", "ranks_floor")
NUMBERS = (
    "effect",
    *(f"checkpoints_{name}" for name in CLAIMED),
    *(f"method_{name}" for name in (*CLAIMED, "df")),
    *EXACT,
)


def compared(results: Results) -> list[str]:
    """The metrics of COMPARED that every file of the study has."""
    return [name for name in COMPARED if name in results.columns and name in METRICS]


def pair(cells: dict, a: str, b: str = "sft") -> tuple[np.ndarray, np.ndarray]:
    """Values (S, P) of both methods at the prompts that every cell of both defines."""
    ya, yb = stats.matrix(cells, a)[2], stats.matrix(cells, b)[2]
    keep = np.isfinite(ya).all(axis=0) & np.isfinite(yb).all(axis=0)
    return ya[:, keep], yb[:, keep]


def row(
    results: Results, kind: str, metric: str, method: str, values: np.ndarray, equal=""
) -> dict:
    """What a comparison is called and rests on, all its numbers NaN: a row of the significance table. values (S, P)."""
    named = {"kind": kind, "metric": metric, "equal": equal, "method": method}
    prompts = values.shape[1]
    counts = {"seeds": len(values), "prompts": prompts, "dropped": len(results.people) - prompts}
    reason = f"defined at {prompts} of {len(results.people)} posts"  # until there are numbers
    return named | dict.fromkeys(NUMBERS, np.nan) | counts | {"reason": reason}


def claims(checkpoints: stats.Claim, method: stats.Claim) -> dict:
    """Columns of a row from both claims."""
    return (
        {f"checkpoints_{name}": getattr(checkpoints, name) for name in CLAIMED}
        | {f"method_{name}": getattr(method, name) for name in (*CLAIMED, "df")}
        | {"reason": method.reason}
    )


def difference(results: Results, metric: str, method: str, control: str = "sft") -> dict:
    """`method` less `control` at the training temperature: a `row` with effect, both claims, and on run means the exact
    sign-flip test (signs_) and Mann-Whitney (ranks_), each with the smallest p it can give.

    Paired by post. The method's interval takes the runs of both as independent (about 2(S-1) degrees of freedom): using
    the S differences pays at three seeds only if runs of one seed correlate above .6, and errs up to 7 % (simulated).
    Methods of one seed share their SFT run, so it errs on the wide side."""
    a, b = pair(results.cells(metric), method, control)
    named = row(results, "difference", metric, method, a)
    if a.shape[1] < 2:
        return named
    signs, ranks = (
        stats.exact_test((a - b).mean(axis=1)),
        exact.mann_whitney_runs(a.mean(axis=1), b.mean(axis=1)),
    )
    return (
        named
        | claims(stats.checkpoints_claim(a - b), stats.method_claim(a - b, (a, b)))
        | {"effect": float((a - b).mean())}
        | dict(zip(EXACT, (*signs, *ranks), strict=True))
    )


def matched(results: Results, metric: str, equal: str, method: str) -> dict:
    """How much more `metric` a run has than SFT sampled at the temperature that gives it the same `equal`: a `row`, and
    matched_runs, how many runs have such a temperature.

    Per seed, SFT's curve over temperature is interpolated linearly at the run's own `equal`; outside the curve the run
    has no match (no extrapolation), and then there is no claim: the runs that happen to have one are no sample of all
    runs. The claim about the method takes runs and posts as samples (see `matched_differences`). Exchange both metrics
    for "better at equal diversity"."""
    temperatures = [
        [results.cells(name, t) for t in results.temperatures] for name in (equal, metric)
    ]
    curves = [
        np.stack([stats.matrix(cells, "sft")[2] for cells in part]) for part in temperatures
    ]  # (T, S, P)
    mine = [stats.matrix(results.cells(name), method)[2] for name in (equal, metric)]
    keep = np.isfinite(np.concatenate([*curves, *(m[None] for m in mine)])).all(axis=(0, 1))
    (curve_x, curve_y), (x, y) = ([m[..., keep] for m in part] for part in (curves, mine))
    named = row(results, "matched", metric, method, x, equal) | {"matched_runs": 0}
    if keep.sum() < 2:
        return named
    d, reasons = matched_differences(curve_x, curve_y, x, y)
    named |= {"matched_runs": reasons.count("")}
    if len(d) < 2 or any(reasons):
        seeds = stats.matrix(results.cells(equal), method)[0]
        why = [f"seed {s}: {reason}" for s, reason in zip(seeds, reasons, strict=True) if reason]
        return named | {"reason": "; ".join(why) or stats.ONE_SEED}
    return (
        named
        | claims(stats.checkpoints_claim(d), stats.method_claim(d))
        | {"effect": float(d.mean())}
        | dict(zip(EXACT, stats.exact_test(d.mean(axis=1))))
    )


def all_matched(results: Results) -> list[dict]:
    """`matched` for every method at equal judge score and at equal diversity."""
    return [
        matched(results, metric, equal, method)
        for method in results.trained
        for equal, metric in (("judge_mean", "diversity"), ("diversity", "judge_mean"))
    ]


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
