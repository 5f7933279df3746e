"""The significance table: registered questions first, everything else after, both claims side by side.

    frame = table(results, preregistration.load(results.paths))

Three families. *primary*: the registered comparisons, Holm. *equivalence*: the registered "quality kept", Holm.
*exploratory*: every other metric and method, Benjamini-Hochberg; a study without a registration has no other. Adjusted
p-values belong to the claim about the method. No stars: an effect with its interval, or the reason why there is none.
"""

from __future__ import annotations

import pandas as pd

from polylib import stats
from polylib.analysis import effects, equivalence, exact
from polylib.analysis.preregistration import Question, Registration
from polylib.analysis.results import Results

ADJUST = {"primary": "holm", "equivalence": "holm", "exploratory": "fdr_bh"}
RULES = {"holm": "Holm", "fdr_bh": "Benjamini-Hochberg"}
# columns of per_prompt.csv that are means over single replies: their columns in generations.jsonl
PER_REPLY = {"judge_mean": "judge", "reward_mean": "reward", "relevance": "relevance"}
NAMED = ["family", "question", "kind", "metric", "equal", "method"]
CLAIMED = [name for name in effects.NUMBERS if name not in effects.EXACT]
COUNTED = ["margin", "verdict", "seeds", "prompts", "dropped", "reason"]
COLUMNS = [*NAMED, *CLAIMED, "p_adjusted", "adjustment", *effects.EXACT, *COUNTED]


def table(
    results: Results, registered: Registration | None, metrics: list[str] | None = None
) -> pd.DataFrame:
    """One row a comparison against SFT. family, question, kind (difference | matched | equivalence), metric, equal,
    method, effect, checkpoints_{low,high,p}, method_{low,high,p,df}, p_adjusted, adjustment, signs_{p,floor} (runs
    paired), ranks_{p,floor} (runs unpaired), margin, verdict, seeds, prompts, dropped, reason.

    verdict: `above` / `below` where the adjusted p of the method claim is under alpha; in an equivalence row
    `equivalent`, or `not worse` where the interval alone excludes a loss of the margin; else `not established`.
    Intervals are 95 %, of equivalence rows 90 %, none of them adjusted."""
    alpha = registered.alpha if registered else 0.05
    asked = registered.questions if registered else {}
    everything = [
        effects.difference(results, metric, method)
        for metric in metrics or effects.compared(results)
        for method in results.trained
    ]
    frame = pd.DataFrame(
        [
            *(_question(results, name, q) for name, q in asked.items()),
            *(
                row | {"family": "exploratory", "question": ""}
                for row in everything + effects.all_matched(results)
            ),
        ],
        columns=COLUMNS,
    ).drop_duplicates(["kind", "metric", "equal", "method"], ignore_index=True)
    frame["adjustment"] = frame["family"].map(ADJUST).map(RULES)
    for family, part in frame.groupby("family"):
        frame.loc[part.index, "p_adjusted"] = stats.adjust(part["method_p"], ADJUST[family])
    frame["verdict"] = [_verdict(row, alpha) for _, row in frame.iterrows()]
    return frame


def _verdict(row: pd.Series, alpha: float) -> str:
    if row["p_adjusted"] < alpha and row["kind"] == "equivalence":
        return "equivalent"
    if row["p_adjusted"] < alpha:
        return "above" if row["effect"] > 0 else "below"
    worse_excluded = row["kind"] == "equivalence" and row["method_low"] > -row["margin"]
    return "not worse" if worse_excluded else "not established"


def _question(results: Results, name: str, q: Question) -> dict:
    named = {
        "family": "equivalence" if q.kind == "equivalence" else "primary",
        "question": name,
        "kind": q.kind,
        "metric": q.metric,
        "equal": q.equal,
        "method": q.method,
        "margin": q.margin,
    }
    absent = {q.metric, q.equal or q.metric} - set(results.columns) or {q.method} - set(
        results.methods
    )
    if absent:
        none = {"seeds": 0, "prompts": 0, "dropped": 0}
        return named | none | {"reason": f"the study has no {min(absent)}"}
    if q.kind == "matched":
        return effects.matched(results, q.metric, q.equal, q.method) | named
    if q.kind == "difference":
        return effects.difference(results, q.metric, q.method) | named
    a, b = effects.pair(results.cells(q.metric), q.method)
    row = effects.row(results, q.kind, q.metric, q.method, a) | named
    if a.shape[1] < 2:
        return row
    found = [claim(a, b, q.margin) for claim in (equivalence.checkpoints, equivalence.method)]
    return row | effects.claims(*found) | {"effect": float((a - b).mean())}


def as_asked(
    results: Results,
    replies: pd.DataFrame | None = None,
    metrics: tuple[str, ...] = ("judge_mean", "diversity"),
) -> pd.DataFrame:
    """metric, method, sample, n, p, delta: the Mann-Whitney test that papers report with Cliff's delta
    (`exact.as_asked`), on means of posts and runs, and on single replies where `replies` (`replies.load`) is given."""
    rows = []
    for metric in metrics:
        for method in results.trained:
            samples = {"means of posts and runs": effects.pair(results.cells(metric), method)}
            if replies is not None and metric in PER_REPLY:
                samples["replies"] = tuple(
                    replies.loc[replies["method"].eq(name), PER_REPLY[metric]].to_numpy(float)
                    for name in (method, "sft")
                )
            for sample, (a, b) in samples.items():
                p, delta = exact.as_asked(a, b)
                rows.append((metric, method, sample, a.size + b.size, p, delta))
    return pd.DataFrame(rows, columns=["metric", "method", "sample", "n", "p", "delta"])
