"""The main table and the study's summary, from files alone.

    table = tables.main(results)
    table.save(paths.figures)                       # table_main.tex, .csv: what a page holds
    tables.everything(results).save(paths.figures)  # table_all: every metric, a row each
    tables.summary(results)                         # results/<study>/summary.json, for `dvc metrics show`

A cell is the mean over runs and posts with half the width of its 95 % interval. The interval is for the
method (runs are a sample too); people, and every row of a study with one seed, have one over posts alone. Bold is
what the method changes: the interval of its difference to SFT, over runs and posts, excludes 0."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import effects
from polylib.analysis.results import Results
from polylib.figures.plain_tables import DASH, Table, number
from polylib.figures.style import METHOD_STYLE
from polylib.names import METRICS

DIGITS = {"self_bleu": 1, "length_words": 1, "length_tokens": 1}  # all others: 3
# What the printed table shows beside the judge and pass@k, as far as a study has it.
PRINTED = (
    "reward_mean",
    "diversity",
    "effective_diversity",
    "distinct_k",
    "self_bleu",
    "bertscore",
    "relevance",
    "length_words",
    "truncated",
)


def columns(results: Results) -> dict[str, str]:
    """{column of per_prompt.csv: heading} of the main table; pass@k at the lowest judge quantile of the
    preset."""
    q = min(results.cfg.evaluation.judge_quantiles)
    passes = {f"pass@{k}_q{q:g}": f"pass@{k}" for k in results.cfg.evaluation.ks}
    rest = {name: METRICS[name] for name in PRINTED if name in results.columns}
    return {"judge_mean": METRICS["judge_mean"], **passes, **rest}


def all_columns(results: Results) -> dict[str, str]:
    """Every metric of `names.METRICS` that all files of the study have, and pass@k at each quantile."""
    rates = {
        name: name.replace("_q", ", q")
        for name in results.columns
        if re.fullmatch(r"pass@\d+_q[\d.]+", name)
    }
    return {name: text for name, text in METRICS.items() if name in results.columns} | rates


def shown(numbers: pd.DataFrame, headings: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(texts, bold): label, then per metric "mean ± half", a dash where it is undefined; bold where `_differs`."""
    texts, bold = (
        pd.DataFrame({"": numbers["label"]}),
        pd.DataFrame({"": np.zeros(len(numbers), dtype=bool)}),
    )
    for metric, heading in headings.items():
        form = f".{DIGITS.get(metric, 3)}f"
        texts[heading] = [
            f"{number(mean, form)} ± {number(half, form)}" if np.isfinite(mean) else DASH
            for mean, half in zip(numbers[metric], numbers[f"{metric}_half"], strict=True)
        ]
        bold[heading] = numbers.get(f"{metric}_differs", pd.Series(False, numbers.index)).astype(
            bool
        )
    return texts, bold


def main(results: Results) -> Table:
    """People, the base model if evaluated, SFT at its own and the control temperatures, all other methods."""
    return _table(results, columns(results), "table_main", "stacked")


def everything(results: Results) -> Table:
    """The rows of `main` as columns, a row for every metric."""
    return _table(results, all_columns(results), "table_all", "long")


def _table(results: Results, headings: dict[str, str], name: str, layout: str) -> Table:
    rows = []
    for temperature in results.temperatures:
        at_training = temperature == results.cfg.sampling.temperature
        cells = {metric: results.cells(metric, temperature) for metric in headings}
        for method in results.methods if at_training else ["sft"]:
            label = METHOD_STYLE[method]["label"] + ("" if at_training else f", T={temperature:g}")
            row = {
                "label": label,
                "method": method,
                "temperature": np.nan if method == "human" else temperature,
            }
            for metric in headings:
                values = stats.matrix(cells[metric], method)[2]
                mean, claim = stats.interval(values)
                row |= {
                    metric: mean,
                    f"{metric}_half": claim.high - mean,
                    f"{metric}_prompts": int(np.isfinite(values).all(axis=0).sum()),
                    f"{metric}_differs": method in results.trained
                    and _differs(cells[metric], method),
                }
            rows.append(row)
    rows.sort(key=lambda row: (results.methods.index(row["method"]), row["temperature"]))
    several = len(results.cfg.seeds) > 1
    runs = "runs and posts" if several else "posts (one run: no claim about a method)"
    replies, q = results.people["n_samples"].mean(), min(results.cfg.evaluation.judge_quantiles)
    heat = {
        frame["n_samples"].iloc[0]
        for (name, _, at), frame in results.frames.items()
        if name == "sft" and at != results.cfg.sampling.temperature
    }
    heat = (
        f" SFT at other temperatures: {', '.join(f'{n:g}' for n in sorted(heat))} replies a post."
        if heat
        else ""
    )
    bold = (
        "Bold: the interval of the method's difference to SFT excludes 0, not adjusted. "
        if several
        else ""
    )
    caption = (
        f"Mean ± half of the 95 % interval over {runs}; people over posts. {bold}{results.note}.{heat} "
        f"People: {replies:.1f} replies a post; their pass@k covers posts with at least k. "
        f"pass@k: one of k replies reaches the judge's {q:g}-quantile of human replies to validation "
        "posts."
    )
    numbers = pd.DataFrame(rows)
    texts, bold = shown(numbers, headings)
    if layout == "long":  # metrics are rows, as in a table of many
        texts, bold = (
            frame.set_index("").T.reset_index(names="")
            for frame in (texts, bold.assign(**{"": texts[""]}))
        )
        bold[""] = False
    return Table(name, numbers, texts, caption, bold, layout=layout)


def _differs(cells: dict, method: str) -> bool:
    """False too where nothing can be said: one run, or no variation."""
    a, b = effects.pair(cells, method)
    claim = stats.method_claim(a - b, (a, b)) if a.shape[1] > 1 else None
    return bool(claim and (claim.low > 0 or claim.high < 0))


def summary(results: Results) -> dict:
    """Means per method for `dvc metrics show`, with n; a number that does not exist carries its reason."""
    metrics, methods = columns(results), {}
    for _, row in main(results).numbers.iterrows():
        control = row["method"] == "sft" and row["temperature"] != results.cfg.sampling.temperature
        name = f"{row['method']}_T{row['temperature']:g}" if control else row["method"]
        methods[name] = {
            metric: float(row[metric])
            if np.isfinite(row[metric])
            else {"value": None, "reason": f"defined at {row[f'{metric}_prompts']} posts"}
            for metric in metrics
        }
    return {
        "methods": methods,
        "engagement": results.engagement,
        "seeds": len(results.cfg.seeds),
        "prompts": len(results.people),
        "preset": results.cfg.preset,
    }
