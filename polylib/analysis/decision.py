"""Which method for which purpose, computed from the results: a recommendation needs an established gain.

    guide(results, hacked=decision.hacked(verdicts))    # want, choose, because, ...

Rules, in this order:
1. A method that the detector calls *hacked* in any run is out, whatever its numbers.
2. A purpose has one measure and one direction. The claim is the one about the method (runs and posts are samples), Holm
   over the methods that can be chosen. Intervals shown are the plain 95 %.
3. The choice is the method with the largest gain over SFT among those whose adjusted p is under 5 %. If none is, the
   answer is "nothing established": stay with SFT, which costs least, and the nearest miss is shown.
4. Where other methods pass as well, the choice is compared with the best of them; unless the interval of that
   difference excludes 0 the row says so: then cost decides, and it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import effects as compare
from polylib.analysis.results import UNSEEDED, Results, chain_of
from polylib.names import METHODS, METRICS

NOTHING = "nothing established"
ALPHA = 0.05


@dataclass(frozen=True)
class Want:
    """A purpose: gain in `metric`, times `sign`, at equal `equal` (SFT by temperature) where that is given."""

    text: str
    metric: str
    equal: str = ""
    sign: int = 1


def wants(results: Results) -> list[Want]:
    """Purposes whose columns the study has. `max@k` and `best@k` at the most replies that all methods sampled."""
    ks = [int(name[4:]) for name in results.columns if name.startswith("max@")]
    k = max((n for n in ks if n <= results.cfg.evaluation.samples), default=0)
    listed = [
        Want("a single reply that the judge rates high", "judge_mean"),
        Want(f"one very good reply among {k} to choose from by hand", f"max@{k}"),
        Want(f"one reply out of {k}, picked by the trained reward", f"best@{k}"),
        Want("replies that differ from one another", "diversity"),
        Want("replies that differ and are good enough to count", "effective_diversity"),
        Want("good replies, no less diverse than SFT sampled hotter", "judge_mean", "diversity"),
        Want("diverse replies, no worse than SFT sampled hotter", "diversity", "judge_mean"),
        Want("predicted engagement", "reward_mean"),
        Want("replies that stay with the post", "relevance"),
        Want("replies that end before the token limit", "truncated", sign=-1),
    ]
    return [want for want in listed if {want.metric, want.equal} - {""} <= set(results.columns)]


def hacked(verdicts: pd.DataFrame) -> list[str]:
    """Methods with a run that the detector calls hacked, from `overoptimisation.hacking_table`."""
    return sorted(set(verdicts.loc[verdicts["label"].eq("hacked"), "method"]))


def guide(results: Results, hacked: Iterable[str] = (), control: str = "sft") -> pd.DataFrame:
    """want, choose, because, gain, low, high, p_holm, versus, minutes, excluded: one row a purpose.

    choose: a method, or SFT with `because` starting "nothing established". gain, low, high: the method's claim, in the
    measure's unit and direction, of the choice or of the nearest miss; minutes: training time of the choice."""
    out = sorted(set(hacked))
    methods = [name for name in results.methods if name not in (control, *UNSEEDED, *out)]
    rows = [
        _row(results, want, methods, control)
        | {"excluded": ", ".join(f"{name} (hacked)" for name in out)}
        for want in wants(results)
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "want",
            "choose",
            "because",
            "metric",
            "equal",
            "gain",
            "low",
            "high",
            "p_holm",
            "versus",
            "minutes",
            "excluded",
        ],
    )


def _row(results: Results, want: Want, methods: list[str], control: str) -> dict:
    found = pd.DataFrame(
        [_gain(results, want, method, control) for method in methods],
        columns=["method", "gain", "low", "high", "p", "reason"],
    )
    found["p_holm"] = stats.adjust(found["p"].to_numpy(float), "holm")
    won = found[(found["p_holm"] < ALPHA) & (found["gain"] > 0)].sort_values(
        "gain", ascending=False
    )
    named = {"want": want.text, "metric": want.metric, "equal": want.equal, "versus": ""}
    if won.empty:
        tested = found.dropna(subset="p").sort_values("p_holm", kind="stable")
        near = tested[tested["gain"] > 0].head(1)
        near = near if len(near) else tested.head(1)
        if near.empty:
            why = next((reason for reason in found["reason"] if reason), "no method to choose from")
            nothing = dict.fromkeys(("gain", "low", "high", "p_holm"), np.nan)
            return (
                named
                | nothing
                | {
                    "choose": control,
                    "because": f"{NOTHING}: {why}",
                    "minutes": _minutes(results, control),
                }
            )
        best = near.iloc[0]
        because = f"{NOTHING}: nearest is {_label(best['method'])}, {_numbers(want, best)}"
        return (
            named
            | _of(best)
            | {"choose": control, "because": because, "minutes": _minutes(results, control)}
        )
    best, versus = won.iloc[0], ""
    if len(won) > 1:
        versus = _versus(results, want, best["method"], won.iloc[1]["method"])
    return (
        named
        | _of(best)
        | {
            "choose": best["method"],
            "because": _numbers(want, best),
            "versus": versus,
            "minutes": _minutes(results, best["method"]),
        }
    )


def _gain(results: Results, want: Want, method: str, control: str) -> dict:
    if want.equal:
        m = compare.at_equal_quality(results, method, want.equal, want.metric, control)
        effect, claim = m.mean, m.claim
    else:
        effect, claim = _difference(results, want.metric, method, control)
    low, high = (claim.low, claim.high) if want.sign > 0 else (-claim.high, -claim.low)
    return {
        "method": method,
        "gain": want.sign * effect,
        "low": low,
        "high": high,
        "p": claim.p,
        "reason": claim.reason,
    }


def _difference(results: Results, metric: str, a: str, b: str) -> tuple[float, stats.Claim]:
    ya, yb = compare.pair(results.cells(metric), a, b)
    if ya.shape[1] < 2:
        return np.nan, stats.Claim(*[np.nan] * 4, f"defined at {ya.shape[1]} posts")
    return float((ya - yb).mean()), stats.method_claim(ya - yb, (ya, yb))


def _versus(results: Results, want: Want, best: str, other: str) -> str:
    if want.equal:
        return f"also {_label(other)}; not compared at equal {METRICS.get(want.equal, want.equal)}"
    effect, claim = _difference(results, want.metric, best, other)
    low, high = sorted((want.sign * claim.low, want.sign * claim.high))
    apart = "better than" if low > 0 else "not separated from"
    costs = (
        f"; {_label(other)} takes {_minutes(results, other):.1f} minutes a run"
        if not low > 0
        else ""
    )
    return f"{apart} {_label(other)}: {want.sign * effect:+.3f} [{low:+.3f}, {high:+.3f}]{costs}"


def _of(row: pd.Series) -> dict:
    return {name: row[name] for name in ("gain", "low", "high", "p_holm")}


def _numbers(want: Want, row: pd.Series) -> str:
    unit = METRICS.get(want.metric, want.metric)
    at = f" at equal {METRICS.get(want.equal, want.equal)}" if want.equal else ""
    return (
        f"{unit}{at} {want.sign * row['gain']:+.3f} over SFT, gain between {row['low']:+.3f} and "
        f"{row['high']:+.3f}, adjusted p {'< .001' if row['p_holm'] < 0.001 else format(row['p_holm'], '.3f')}"
    )


def _label(method: str) -> str:
    return METHODS[method]


def _minutes(results: Results, method: str) -> float:
    """Mean training time of one run with what it starts from; NaN where an env.json is missing."""
    stages, seconds = results.costs["stage"], results.costs["seconds"]
    return float(sum(seconds[stages.eq(name)].mean() for name in chain_of(results, method))) / 60
