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
from polylib.analysis import effects
from polylib.analysis.results import Results, chain_of
from polylib.names import METHODS, METRICS

NOTHING = "nothing established"
ALPHA = 0.05
GAIN = ["metric", "equal", "gain", "low", "high", "p_holm"]
NOBODY = {"method": "sft", "gain": np.nan, "low": np.nan, "high": np.nan, "p": np.nan} | {
    "reason": "no method to choose from"
}
COLUMNS = ["want", "choose", "because", *GAIN, "versus", "minutes", "excluded"]


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
    """Methods with a run that the detector calls hacked, from `hacked.verdicts`."""
    return sorted(set(verdicts.loc[verdicts["label"].eq("hacked"), "method"]))


def guide(results: Results, hacked: Iterable[str] = ()) -> pd.DataFrame:
    """want, choose, because, metric, equal, gain, low, high, p_holm, versus, minutes, excluded: one row a purpose.

    choose: a method, or SFT with `because` starting "nothing established". gain, low, high: the method's claim, in the
    measure's unit and direction, of the choice or of the nearest miss; minutes: training time of the choice."""
    out = sorted(set(hacked))
    methods = [name for name in results.trained if name not in out]
    excluded = ", ".join(f"{name} (hacked)" for name in out)
    return pd.DataFrame(
        [_row(results, want, methods) | {"excluded": excluded} for want in wants(results)],
        columns=COLUMNS,
    )


def _row(results: Results, want: Want, methods: list[str]) -> dict:
    found = pd.DataFrame([_gain(results, want, method) for method in methods] or [NOBODY])
    found.loc[found["p"].isna(), ["gain", "low", "high"]] = np.nan  # no claim, no number
    found["p_holm"] = stats.adjust(found["p"], "holm")
    won = found[(found["p_holm"] < ALPHA) & (found["gain"] > 0)].sort_values(
        "gain", ascending=False
    )
    tested = found.dropna(subset="p").sort_values("p_holm", kind="stable")
    shown = next(part for part in (won, tested[tested["gain"] > 0], tested, found) if len(part))
    best = shown.iloc[0]
    choose, because = best["method"], _numbers(want, best)
    if won.empty:
        nearest = f"nearest is {METHODS[choose]}, {because}"
        choose, because = "sft", f"{NOTHING}: {nearest if len(tested) else best['reason']}"
    return {
        "want": want.text,
        "metric": want.metric,
        "equal": want.equal,
        "choose": choose,
        "because": because,
        **best[["gain", "low", "high", "p_holm"]],
        "versus": _versus(results, want, *won["method"][:2]) if len(won) > 1 else "",
        "minutes": _minutes(results, choose),
    }


def _gain(results: Results, want: Want, method: str, other: str = "sft") -> dict:
    row = (
        effects.matched(results, want.metric, want.equal, method)
        if want.equal
        else effects.difference(results, want.metric, method, other)
    )
    low, high = sorted(want.sign * row[f"method_{end}"] for end in ("low", "high"))
    return {
        "method": method,
        "gain": want.sign * row["effect"],
        "low": low,
        "high": high,
        "p": row["method_p"],
        "reason": row["reason"],
    }


def _versus(results: Results, want: Want, best: str, other: str) -> str:
    if want.equal:
        return f"also {METHODS[other]}; not compared at equal {_unit(want.equal)}"
    found = _gain(results, want, best, other)
    said = f"{METHODS[other]}: {found['gain']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    if found["low"] > 0:
        return f"better than {said}"
    takes = f"{METHODS[other]} takes {_minutes(results, other):.1f} minutes a run"
    return f"not separated from {said}; {takes}"


def _numbers(want: Want, row: pd.Series) -> str:
    at = f" at equal {_unit(want.equal)}" if want.equal else ""
    return (
        f"{_unit(want.metric)}{at} {want.sign * row['gain']:+.3f} over SFT, gain between {row['low']:+.3f} and "
        f"{row['high']:+.3f}, adjusted p {'< .001' if row['p_holm'] < 0.001 else format(row['p_holm'], '.3f')}"
    )


def _unit(metric: str) -> str:
    return METRICS.get(metric, metric)


def _minutes(results: Results, method: str) -> float:
    """Mean training time of one run with what it starts from; NaN where an env.json is missing."""
    stages, seconds = results.costs["stage"], results.costs["seconds"]
    return float(sum(seconds[stages.eq(name)].mean() for name in chain_of(results, method))) / 60
