"""How often each method fails in each way of `failures.RULES`, people beside it, with examples (table T3).

rates = failure_table.rates(results)
failure_table.table(rates, results.note).save(paths.figures)        # failures.csv, .tex
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import replies
from polylib.analysis.results import UNSEEDED, Results
from polylib.evaluation import failures
from polylib.figures.plain_tables import Table, number
from polylib.figures.style import METHOD_STYLE

EXAMPLES = ["example_1", "example_2", "example_3"]


def rates(results: Results, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Long: failure, rule, method, runs, rate, low, high, people, example_1 to 3, in the order of RULES and methods.

    rate: share of replies, mean over runs. low, high: 95 % t interval over runs (the run is the unit), NaN with one run
    or where all runs agree and show no spread. people: their rate by the same rule; NaN for truncated, as people have
    no token limit. Examples: one a post, spread evenly over runs and posts; empty text where there are fewer. frame:
    what `replies.load` gave, if at hand. UserError as there."""
    frame = replies.load(results) if frame is None else frame
    rows = []
    for name, rule in failures.RULES.items():
        hit = frame["flags"].map(lambda names, name=name: name in names)
        people = hit[frame["method"].eq("human")].mean() if name != "truncated" else np.nan
        for method in results.methods:
            mine = frame["method"].eq(method)
            shares = (
                [hit[mine & frame["seed"].eq(seed)].mean() for seed in results.cfg.seeds]
                if method not in UNSEEDED
                else [people if method == "human" else hit[mine].mean()]
            )
            rate, *ends = stats.t_interval(np.array(shares))
            low, high = np.clip(ends, 0, 1) if np.ptp(shares) > 1e-12 else (np.nan, np.nan)
            rows.append(
                {
                    "failure": name,
                    "rule": rule,
                    "method": method,
                    "runs": len(shares),
                    "rate": rate,
                    "low": low,
                    "high": high,
                    "people": people,
                    **dict(zip(EXAMPLES, _examples(frame[mine & hit]), strict=True)),
                }
            )
    return pd.DataFrame(rows)


def _examples(hits: pd.DataFrame) -> list[str]:
    """Of each failing post its first reply, then three places at equal distance."""
    first = list(hits.drop_duplicates("post_id")["reply"])
    picked = [first[i] for i in sorted({0, len(first) // 2, len(first) - 1})] if first else []
    return [*picked, *[""] * (len(EXAMPLES) - len(picked))]


def table(rates: pd.DataFrame, note: str) -> Table:
    """`rates` as printed: a row a failure, a column a method, cells like "3.1 % [1.0, 5.2]"; failures nobody shows are
    kept, as a rate of 0 is a finding."""
    cells = rates.assign(
        cell=[
            number(100 * row.rate, ".1f")
            + (" %" if np.isfinite(row.rate) else "")
            + (f" [{100 * row.low:.1f}, {100 * row.high:.1f}]" if np.isfinite(row.low) else "")
            for row in rates.itertuples()
        ]
    )
    order = list(dict.fromkeys(rates["method"]))
    wide = cells.pivot(index="failure", columns="method", values="cell")[order].reindex(
        list(failures.RULES)
    )
    wide = wide.set_axis([METHOD_STYLE[method]["label"] for method in order], axis=1).reset_index()
    return Table(
        "failures",
        rates,
        wide.assign(failure=wide["failure"].str.replace("_", " ")),
        "Share of replies, mean over runs and its 95 % t interval over runs, where there are several and they "
        f"differ. People by the same rules; they have no token limit. {note}.",
    )


def examples(table: pd.DataFrame) -> pd.DataFrame:
    """failure, method, reply: the examples one a row. Text is hostile: escape it where it is shown."""
    rows = [
        (row.failure.replace("_", " "), METHOD_STYLE[row.method]["label"], text)
        for row in table.itertuples()
        for text in (row.example_1, row.example_2, row.example_3)
        if text or row.failure == "empty" and row.rate > 0
    ]
    return pd.DataFrame(rows, columns=["failure", "method", "reply"]).drop_duplicates(
        ignore_index=True
    )
