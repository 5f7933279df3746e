"""The significance table: registered questions first, everything else after, both claims side by side.

    frame = table(results, preregistration.load(results.paths))

Three families. *primary*: the registered comparisons, Holm. *equivalence*: the registered "quality kept", Holm.
*exploratory*: every other metric and method, Benjamini-Hochberg; a study without a registration has no other. Adjusted
p-values belong to the claim about the method. No stars: an effect with its interval, or the reason why there is none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import effects as compare
from polylib.analysis import equivalence, exact
from polylib.analysis.preregistration import Question, Registration
from polylib.analysis.results import UNSEEDED, Results

ADJUST = {"primary": "holm", "equivalence": "holm", "exploratory": "fdr_bh"}
RULES = {"holm": "Holm", "fdr_bh": "Benjamini-Hochberg"}
# columns of per_prompt.csv that are means over single replies: their columns in generations.jsonl
PER_REPLY = {"judge_mean": "judge", "reward_mean": "reward", "relevance": "relevance"}


def table(
    results: Results, registered: Registration | None, metrics: list[str] | None = None
) -> pd.DataFrame:
    """One row a comparison against SFT. family, question, kind (difference | matched | equivalence), metric, equal,
    method, effect, checkpoints_{low,high,p}, method_{low,high,p,df}, p_adjusted, adjustment, signs_{p,floor} (runs
    paired), ranks_{p,floor} (runs unpaired), d_z, margin, verdict, seeds, prompts, dropped, reason.

    verdict: `above` / `below` where the adjusted p of the method claim is under alpha; in an equivalence row
    `equivalent`, or `not worse` where the interval alone excludes a loss of the margin; else `not established`.
    Intervals are 95 %, of equivalence rows 90 %, none of them adjusted."""
    alpha = registered.alpha if registered else 0.05
    rows = (
        [
            _question(results, q, registered.control)
            for q in (*registered.primary, *registered.equivalence)
        ]
        if registered
        else []
    )
    taken = {(row["kind"], row["metric"], row["equal"], row["method"]) for row in rows}
    for row in [*_differences(results, metrics), *_matched(results)]:
        if (row["kind"], row["metric"], row["equal"], row["method"]) not in taken:
            rows.append(row)
    frame = pd.DataFrame(rows)
    frame.insert(frame.columns.get_loc("method_df") + 1, "p_adjusted", np.nan)
    frame.insert(
        frame.columns.get_loc("p_adjusted") + 1,
        "adjustment",
        frame["family"].map(ADJUST).map(RULES),
    )
    for family, part in frame.groupby("family"):
        frame.loc[part.index, "p_adjusted"] = stats.adjust(part["method_p"], ADJUST[family])
    frame["verdict"] = [_verdict(row, alpha) for _, row in frame.iterrows()]
    return frame


def _verdict(row: pd.Series, alpha: float) -> str:
    if row["p_adjusted"] < alpha:
        return (
            "equivalent"
            if row["kind"] == "equivalence"
            else "above"
            if row["effect"] > 0
            else "below"
        )
    worse_excluded = row["kind"] == "equivalence" and row["method_low"] > -row["margin"]
    return "not worse" if worse_excluded else "not established"


def _row(**values) -> dict:
    empty = {
        "family": "exploratory",
        "question": "",
        "kind": "difference",
        "metric": "",
        "equal": "",
        "method": "",
    }
    numbers = [
        "effect",
        "checkpoints_low",
        "checkpoints_high",
        "checkpoints_p",
        "method_low",
        "method_high",
        "method_p",
        "method_df",
        "signs_p",
        "signs_floor",
        "ranks_p",
        "ranks_floor",
        "d_z",
        "margin",
    ]
    return {
        **empty,
        **dict.fromkeys(numbers, np.nan),
        "verdict": "",
        "seeds": 0,
        "prompts": 0,
        "dropped": 0,
        "reason": "",
    } | values


def _question(results: Results, q: Question, control: str) -> dict:
    family = "equivalence" if q.kind == "equivalence" else "primary"
    named = {
        "family": family,
        "question": q.name,
        "kind": q.kind,
        "metric": q.metric,
        "equal": q.equal,
        "method": q.method,
        "margin": q.margin,
    }
    absent = [name for name in (q.metric, q.equal) if name and name not in results.columns]
    if absent or q.method not in results.methods:
        return _row(**named, reason=f"the study has no {absent[0] if absent else q.method}")
    if q.kind == "matched":
        return (
            _of_match(compare.at_equal_quality(results, q.method, q.equal, q.metric, control))
            | named
        )
    if q.kind == "difference":
        return next(_differences(results, [q.metric], q.method, control)) | named
    both = compare.pair(results.cells(q.metric), q.method, control)
    dropped = len(results.people) - both[0].shape[1]
    if both[0].shape[1] < 2:
        return _row(**named, dropped=dropped, reason=f"defined at {both[0].shape[1]} posts")
    here, method = equivalence.checkpoints(*both, q.margin), equivalence.method(*both, q.margin)
    return _row(
        **named,
        effect=method.effect,
        **compare.claims(here, method),
        seeds=len(both[0]),
        prompts=both[0].shape[1],
        dropped=dropped,
        reason=method.reason,
    )


def _differences(
    results: Results, metrics: list[str] | None, method: str | None = None, control: str = "sft"
):
    for _, e in compare.effects(results, metrics, control).iterrows():
        if method in (None, e["method"]):
            kept = {name: e[name] for name in _row() if name in e}
            yield (
                _row()
                | kept
                | {
                    "signs_p": e["exact_p"],
                    "signs_floor": e["exact_floor"],
                    "reason": e["method_reason"],
                }
            )


def _matched(results: Results):
    for method in (name for name in results.methods if name not in ("sft", *UNSEEDED)):
        for equal, metric in (("judge_mean", "diversity"), ("diversity", "judge_mean")):
            yield _of_match(compare.at_equal_quality(results, method, equal, metric))


def _of_match(m: compare.Matched) -> dict:
    return _row(
        kind="matched",
        metric=m.measured,
        equal=m.fixed,
        method=m.method,
        effect=m.mean,
        **compare.claims(m.these_checkpoints, m.claim),
        reason=m.claim.reason,
        signs_p=m.exact_p,
        signs_floor=m.exact_floor,
        seeds=len(m.runs),
        prompts=m.prompts,
        dropped=m.dropped,
    )


def as_asked(
    results: Results,
    replies: pd.DataFrame | None = None,
    metrics: tuple[str, ...] = ("judge_mean", "diversity"),
    control: str = "sft",
) -> pd.DataFrame:
    """metric, method, sample, n, p, delta: the Mann-Whitney test that papers report with Cliff's delta
    (`exact.as_asked`), on means of posts and runs, and on single replies where `replies` (`replies.load`) is given."""
    rows = []
    for metric in metrics:
        for method in (name for name in results.methods if name not in (control, *UNSEEDED)):
            samples = {
                "means of posts and runs": compare.pair(results.cells(metric), method, control)
            }
            if replies is not None and metric in PER_REPLY:
                samples["replies"] = tuple(
                    replies.loc[replies["method"].eq(name), PER_REPLY[metric]].to_numpy(float)
                    for name in (method, control)
                )
            for sample, (a, b) in samples.items():
                p, delta = exact.as_asked(a, b)
                rows.append(
                    {
                        "metric": metric,
                        "method": method,
                        "sample": sample,
                        "n": a.size + b.size,
                        "p": p,
                        "delta": delta,
                    }
                )
    return pd.DataFrame(rows)
