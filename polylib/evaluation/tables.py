"""The main table and the study's summary, from files alone. LaTeX, Markdown, CSV and HTML show the same
DataFrame.

    table = tables.main(results)
    table.save(paths.figures)                   # table_main.tex, .md, .csv
    tables.write_summary(results)               # results/<study>/summary.json, for `dvc metrics show`

A cell is the mean over runs and posts with half the width of its 95 % interval. The interval is for the
method (runs are a sample too); people, and every row of a study with one seed, have one over posts alone. """
from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.evaluation import stats
from polylib.evaluation.results import LABELS, Results
from polylib.evaluation.style import METHOD_STYLE
from polylib.run import atomic_write, write_json

DIGITS = {"self_bleu": 1, "length_words": 1}  # all others: 3
LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
         "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "λ": r"$\lambda$", "±": r"$\pm$",
         "×": r"$\times$", "–": "--"}


def columns(results: Results) -> dict[str, str]:
    """{column of per_prompt.csv: heading} of the main table; pass@k at the lowest judge quantile of the
    preset."""
    q = min(results.cfg.evaluation.judge_quantiles)
    passes = {f"pass@{k}_q{q:g}": f"pass@{k}" for k in results.cfg.evaluation.ks}
    rest = ["reward_mean", "diversity", "diversity_tfidf", "self_bleu", "distinct_2", "rouge_l", "relevance",
            "length_words", "truncated"]
    return {"judge_mean": LABELS["judge_mean"], **passes, **{name: LABELS[name] for name in rest}}


@dataclass(frozen=True)
class Table:
    """data: label, method, temperature, and per metric the mean, `_half` (half the interval), `_prompts`
    (posts that define it). `_repr_html_` escapes, as labels and captions may hold anything."""

    data: pd.DataFrame
    headings: dict[str, str]
    caption: str

    def cell(self, row: pd.Series, metric: str) -> tuple[str, str]:
        """(mean, half-width) as printed; an en dash where it is undefined."""
        digits = DIGITS.get(metric, 3)
        return tuple(f"{row[name]:.{digits}f}" if np.isfinite(row[name]) else "–"
                     for name in (metric, f"{metric}_half"))

    def to_markdown(self) -> str:
        head = ["", *self.headings.values()]
        lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(self.headings)]
        for _, row in self.data.iterrows():
            cells = [" ± ".join(self.cell(row, m)) if np.isfinite(row[m]) else "–" for m in self.headings]
            lines.append("| " + " | ".join([row["label"].replace("|", "\\|"), *cells]) + " |")
        return "\n".join([*lines, "", self.caption, ""])

    def to_latex(self) -> str:
        """booktabs; the half-width stands under its mean, so that twelve columns fit the width of two."""
        head = " & ".join(rf"\rotatebox{{60}}{{{escape(h)}}}" for h in self.headings.values())
        lines = [rf"\begin{{tabular}}{{l{'r' * len(self.headings)}}}", r"\toprule", rf" & {head} \\",
                 r"\midrule"]
        for _, row in self.data.iterrows():
            cells = [self.cell(row, metric) for metric in self.headings]
            halves = [rf"{{\scriptsize $\pm${half}}}" if half != "–" else "" for _, half in cells]
            means = [escape(mean) for mean, _ in cells]
            lines.append(" & ".join([escape(row["label"]), *means]) + r" \\[-2pt]")
            lines.append(" & ".join(["", *halves]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {self.caption}", ""])

    def to_csv(self) -> str:
        return self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(h)}</th>" for h in ("", *self.headings.values()))
        body = ""
        for _, row in self.data.iterrows():
            cells = [self.cell(row, metric) for metric in self.headings]
            tds = "".join(f"<td>{mean}<br><small>{'' if half == '–' else '±' + half}</small></td>"
                          for mean, half in cells)
            body += f"<tr><th style='text-align:left'>{html.escape(row['label'])}</th>{tds}</tr>"
        return (f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
                f"<p><small>{html.escape(self.caption)}</small></p>")

    def save(self, folder: Path) -> None:
        for ending, content in (("tex", self.to_latex()), ("md", self.to_markdown()), ("csv", self.to_csv())):
            atomic_write(Path(folder) / f"table_main.{ending}", content)


def main(results: Results) -> Table:
    """People, the base model if evaluated, SFT at its own and the control temperatures, all other methods."""
    headings = columns(results)
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
                        f"{metric}_prompts": int(np.isfinite(values).all(axis=0).sum())}
            rows.append(row)
    rows.sort(key=lambda row: (results.methods.index(row["method"]), row["temperature"]))
    runs = "runs and posts" if len(results.cfg.seeds) > 1 else "posts (one run: no claim about a method)"
    replies, q = results.people["n_samples"].mean(), min(results.cfg.evaluation.judge_quantiles)
    caption = (f"Mean ± half of the 95 % interval over {runs}; people over posts. {results.note}. "
               f"People: {replies:.1f} replies a post; their pass@k covers posts with at least k. "
               f"pass@k: one of k replies reaches the judge's {q:g}-quantile of human replies to validation "
               "posts.")
    return Table(pd.DataFrame(rows), headings, caption)


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


def escape(text: str) -> str:
    """Text for LaTeX, character by character, so that no replacement is replaced again."""
    return "".join(LATEX.get(character, character) for character in text)
