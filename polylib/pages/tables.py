"""The main table and the study's summary, from files alone. LaTeX, Markdown, CSV and HTML show the same
DataFrame.

    table = tables.main(results)
    table.save(paths.figures)                       # table_main.tex, .md, .csv: what a page holds
    tables.everything(results).save(paths.figures)  # table_all: every metric, a row each
    tables.write_summary(results)                   # results/<study>/summary.json, for `dvc metrics show`

A cell is the mean over runs and posts with half the width of its 95 % interval. The interval is for the
method (runs are a sample too); people, and every row of a study with one seed, have one over posts alone. Bold is
what the method changes: the interval of its difference to SFT, over runs and posts, excludes 0. """
from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.claims import stats
from polylib.claims.results import UNSEEDED, Results
from polylib.evaluation import provenance
from polylib.names import METRICS
from polylib.pages.plain_tables import escape
from polylib.pages.style import METHOD_STYLE
from polylib.run import atomic_write, write_csv, write_json

DIGITS = {"self_bleu": 1, "length_words": 1, "length_tokens": 1}  # all others: 3
# What the printed table shows beside the judge and pass@k, as far as a study has it; the others fill up to WIDE.
PRINTED = ("reward_mean", "diversity", "effective_diversity", "distinct_k", "self_bleu", "chrf", "bertscore",
           "relevance", "length_words", "truncated")
FILL = ("diversity_tfidf", "distinct_2", "rouge_l")
WIDE = 9


def columns(results: Results) -> dict[str, str]:
    """{column of per_prompt.csv: heading} of the main table; pass@k at the lowest judge quantile of the
    preset."""
    q = min(results.cfg.evaluation.judge_quantiles)
    passes = {f"pass@{k}_q{q:g}": f"pass@{k}" for k in results.cfg.evaluation.ks}
    shown = [name for name in PRINTED if name in results.columns]
    spare = [name for name in FILL if name in results.columns][:max(0, WIDE - len(shown))]
    order = (*PRINTED[:5], *FILL, *PRINTED[5:])
    rest = sorted({*shown, *spare}, key=order.index)
    return {"judge_mean": METRICS["judge_mean"], **passes, **{name: METRICS.get(name, name) for name in rest}}


def all_columns(results: Results) -> dict[str, str]:
    """Every metric that all files of the study have: those with a label first, then pass@k by quantile and the rest."""
    numbers = [name for name in results.columns if name not in ("temperature", "n_samples")
               and pd.api.types.is_numeric_dtype(results.people[name])]
    labelled = [name for name in METRICS if name in numbers]
    return {name: METRICS.get(name, name.replace("_q", ", q")) for name in dict.fromkeys([*labelled, *numbers])}


@dataclass(frozen=True)
class Table:
    """data: label, method, temperature, and per metric the mean, `_half` (half the interval), `_prompts`
    (posts that define it), `_differs` (from SFT). `turned`: metrics are rows, as in a table of many. `_repr_html_`
    escapes, as labels and captions may hold anything."""

    data: pd.DataFrame
    headings: dict[str, str]
    caption: str
    name: str = "table_main"
    turned: bool = False

    def cell(self, row: pd.Series, metric: str) -> tuple[str, str]:
        """(mean, half-width) as printed; an en dash where it is undefined."""
        digits = DIGITS.get(metric, 3)
        return tuple(f"{row[name]:.{digits}f}" if np.isfinite(row[name]) else "–"
                     for name in (metric, f"{metric}_half"))

    def grid(self) -> tuple[list[str], list[list]]:
        """(headings, rows of [label, (mean, half-width, bold), ...]) as printed."""
        cells = {(i, m): (*self.cell(row, m), bool(row.get(f"{m}_differs", False)))
                 for i, (_, row) in enumerate(self.data.iterrows()) for m in self.headings}
        labels = list(self.data["label"])
        if self.turned:
            return labels, [[h, *(cells[i, m] for i in range(len(labels)))] for m, h in self.headings.items()]
        return list(self.headings.values()), [[label, *(cells[i, m] for m in self.headings)]
                                              for i, label in enumerate(labels)]

    def to_markdown(self) -> str:
        head, rows = self.grid()
        lines = ["| " + " | ".join(["", *head]) + " |", "|---|" + "---:|" * len(head)]
        for label, *cells in rows:
            shown = [mean if half == "–" and mean == "–" else f"{mean} ± {half}" for mean, half, _ in cells]
            shown = [f"**{text}**" if bold else text for text, (*_, bold) in zip(shown, cells, strict=True)]
            lines.append("| " + " | ".join([label.replace("|", "\\|"), *shown]) + " |")
        return "\n".join([*lines, "", self.caption, ""])

    def to_latex(self) -> str:
        """booktabs; the half-width stands under its mean, so that twelve columns fit the width of two. A turned table
        has it beside the mean and breaks over pages (longtable)."""
        head, rows = self.grid()
        form = "longtable" if self.turned else "tabular"
        heads = " & ".join(rf"\rotatebox{{60}}{{{escape(h)}}}" for h in head)
        lines = [rf"\begin{{{form}}}{{l{'r' * len(head)}}}", r"\toprule", rf" & {heads} \\", r"\midrule"]
        lines += [r"\endhead"] if self.turned else []
        for label, *cells in rows:
            size = r"\tiny" if self.turned else r"\scriptsize"
            halves = [rf"{{{size} $\pm${half}}}" if half != "–" else "" for _, half, _ in cells]
            means = [rf"\textbf{{{escape(mean)}}}" if bold else escape(mean) for mean, _, bold in cells]
            if self.turned:
                both = [f"{mean} {half}".strip() for mean, half in zip(means, halves, strict=True)]
                lines.append(" & ".join([escape(label), *both]) + r" \\")
            else:
                lines.append(" & ".join([escape(label), *means]) + r" \\[-2pt]")
                lines.append(" & ".join(["", *halves]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", rf"\end{{{form}}}", f"% {self.caption}", ""])

    def _repr_html_(self) -> str:
        head, rows = self.grid()
        titles = "".join(f"<th>{html.escape(h)}</th>" for h in ("", *head))
        body = ""
        for label, *cells in rows:
            tds = "".join(f"<td>{f'<b>{mean}</b>' if bold else mean}<br><small>{'' if half == '–' else '±' + half}"
                          "</small></td>" for mean, half, bold in cells)
            body += f"<tr><th style='text-align:left'>{html.escape(label)}</th>{tds}</tr>"
        return (f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
                f"<p><small>{html.escape(self.caption)}</small></p>")

    def save(self, folder: Path) -> None:
        write_csv(Path(folder) / f"{self.name}.csv", self.data)
        for ending, content in (("tex", self.to_latex()), ("md", self.to_markdown())):
            atomic_write(Path(folder) / f"{self.name}.{ending}", content)


def main(results: Results) -> Table:
    """People, the base model if evaluated, SFT at its own and the control temperatures, all other methods."""
    return _table(results, columns(results), "table_main", turned=False)


def everything(results: Results) -> Table:
    """The rows of `main` as columns, a row for every metric."""
    return _table(results, all_columns(results), "table_all", turned=True)


def _table(results: Results, headings: dict[str, str], name: str, turned: bool) -> Table:
    rows = []
    for temperature in results.temperatures:
        at_training = temperature == results.cfg.sampling.temperature
        cells = {metric: results.cells(metric, temperature) for metric in headings}
        for method in results.methods if at_training else ["sft"]:
            label = METHOD_STYLE[method]["label"] + ("" if at_training else f", T={temperature:g}")
            row = {"label": label, "method": method,
                   "temperature": np.nan if method == "human" else temperature}
            for metric in headings:
                values = stats.matrix(cells[metric], method)[2]
                mean, claim = stats.interval(values)
                row |= {metric: mean, f"{metric}_half": claim.high - mean,
                        f"{metric}_prompts": int(np.isfinite(values).all(axis=0).sum()),
                        f"{metric}_differs": method not in ("sft", *UNSEEDED) and _differs(cells[metric], method)}
            rows.append(row)
    rows.sort(key=lambda row: (results.methods.index(row["method"]), row["temperature"]))
    several = len(results.cfg.seeds) > 1
    runs = "runs and posts" if several else "posts (one run: no claim about a method)"
    replies, q = results.people["n_samples"].mean(), min(results.cfg.evaluation.judge_quantiles)
    heat = {frame["n_samples"].iloc[0] for (name, _, at), frame in results.frames.items()
            if name == "sft" and at != results.cfg.sampling.temperature}
    heat = f" SFT at other temperatures: {', '.join(f'{n:g}' for n in sorted(heat))} replies a post." if heat else ""
    bold = "Bold: the interval of the method's difference to SFT excludes 0, not adjusted. " if several else ""
    caption = (f"Mean ± half of the 95 % interval over {runs}; people over posts. {bold}{results.note}.{heat} "
               f"People: {replies:.1f} replies a post; their pass@k covers posts with at least k. "
               f"pass@k: one of k replies reaches the judge's {q:g}-quantile of human replies to validation "
               "posts.")
    return Table(pd.DataFrame(rows), headings, caption, name, turned)


def _differs(cells: dict, method: str) -> bool:
    """False too where nothing can be said: one run, or no variation."""
    y, start = (stats.matrix(cells, name)[2] for name in (method, "sft"))
    keep = np.isfinite(y).all(axis=0) & np.isfinite(start).all(axis=0)
    if keep.sum() < 2:
        return False
    claim = stats.method_claim(y[:, keep] - start[:, keep], (y[:, keep], start[:, keep]))
    return bool(claim.low > 0 or claim.high < 0)


@dataclass(frozen=True)
class Facts:
    """Two columns of text, what and value, in all formats of `Table`."""

    data: pd.DataFrame
    caption: str
    name: str

    def to_markdown(self) -> str:
        rows = (f"| {row.what} | {str(row.value).replace('|', chr(92) + '|')} |" for row in self.data.itertuples())
        return "\n".join(["| | |", "|---|---|", *rows, "", self.caption, ""])

    def to_latex(self) -> str:
        """booktabs; long values break inside their column."""
        rows = (rf"{escape(row.what)} & {breakable(str(row.value))} \\" for row in self.data.itertuples())
        return "\n".join([r"\begin{tabular}{l>{\raggedright\arraybackslash}p{0.7\linewidth}}", r"\toprule", *rows,
                          r"\bottomrule", r"\end{tabular}", f"% {self.caption}", ""])

    def _repr_html_(self) -> str:
        return self.data.to_html(index=False, header=False) + f"<p><small>{html.escape(self.caption)}</small></p>"

    def save(self, folder: Path) -> None:
        content = self.data.to_csv(index=False, lineterminator="\n")
        for ending, text in (("tex", self.to_latex()), ("md", self.to_markdown()), ("csv", content)):
            atomic_write(Path(folder) / f"{self.name}.{ending}", text)


def reproducibility(results: Results) -> Facts:
    """Code, settings, data, models, seeds, machine and versions (T4), from env.json, the manifest and the preset."""
    return Facts(provenance.facts(results), f"{results.note}.", "reproducibility")


def summary(results: Results) -> dict:
    """Means per method for `dvc metrics show`, with n; a number that does not exist carries its reason."""
    table = main(results)
    methods = {}
    for _, row in table.data.iterrows():
        control = row["method"] == "sft" and row["temperature"] != results.cfg.sampling.temperature
        name = f"{row['method']}_T{row['temperature']:g}" if control else row["method"]
        methods[name] = {metric: float(row[metric]) if np.isfinite(row[metric]) else
                         {"value": None, "reason": f"defined at {row[f'{metric}_prompts']} posts"}
                         for metric in table.headings}
    return {"methods": methods, "engagement": results.engagement, "seeds": len(results.cfg.seeds),
            "prompts": len(results.people), "preset": results.cfg.preset}


def write_summary(results: Results) -> None:
    write_json(results.paths.summary, summary(results))



def breakable(text: str) -> str:
    """`escape`, and a line may end after the slashes of a path."""
    return escape(text).replace("/", r"/\allowbreak{}")
