"""Any table in four forms: CSV of the numbers; Markdown, LaTeX and HTML of what is printed, from one frame of texts.

Table("costs", numbers, shown, caption).save(folder)          # costs.csv, costs.md, costs.tex
csv(folder, hacking=verdicts, stop_here=stop)                 # hacking.csv, stop_here.csv
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.run import atomic_write, write_csv

DASH = "–"  # a number that does not exist
FORMULA = tuple("=+-@\t\n＝＋－＠")  # a spreadsheet computes a cell that begins so
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


@dataclass(frozen=True)
class Table:
    """numbers: what the CSV holds. shown: the same as texts, the first column naming the row. bold: bool, of `shown`'s
    shape. below: more Markdown under the caption. layout: of LaTeX, "plain", "stacked" (headings turned, what follows
    a ± under its number: twelve columns fit a page), "long" (breaks over pages) or "facts" (the second column wraps).
    Texts may hold anything: each form escapes them."""

    name: str
    numbers: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    bold: pd.DataFrame | None = None
    below: str = ""
    layout: str = "plain"

    def _rows(self, cell, strong: str) -> list[list[str]]:
        """Cells through `cell`, the bold ones inside `strong`."""
        bold = np.zeros(self.shown.shape, dtype=bool) if self.bold is None else self.bold.to_numpy()
        return [
            [
                strong.format(cell(str(text))) if on else cell(str(text))
                for text, on in zip(row, marks, strict=True)
            ]
            for row, marks in zip(self.shown.itertuples(index=False), bold, strict=True)
        ]

    def to_markdown(self) -> str:
        """First column left, others right."""

        def cell(text: str) -> str:
            return text.replace("|", "\\|").replace("\n", " ")

        rows = [[cell(str(name)) for name in self.shown], *self._rows(cell, "**{}**")]
        head, *lines = ["| " + " | ".join(row) + " |" for row in rows]
        rule = "|---|" + "---:|" * (self.shown.shape[1] - 1)
        return "\n".join([head, rule, *lines, "", self.caption, ""]) + self.below

    def to_latex(self) -> str:
        """booktabs, the caption as a comment; cells are escaped character by character."""
        stacked, facts = self.layout == "stacked", self.layout == "facts"

        def cell(text: str) -> str:
            mean, _, half = text.partition(" ± ")
            if stacked and half not in ("", DASH):
                return rf"\shortstack{{{escape(mean)}\\{{\scriptsize $\pm${escape(half)}}}}}"
            return escape(text).replace("/", r"/\allowbreak{}") if facts else escape(text)

        form = "longtable" if self.layout == "long" else "tabular"
        columns = (
            r">{\raggedright\arraybackslash}p{0.7\linewidth}"
            if facts
            else "r" * (self.shown.shape[1] - 1)
        )
        heads = [
            rf"\rotatebox{{60}}{{{escape(str(name))}}}" if stacked and i else escape(str(name))
            for i, name in enumerate(self.shown)
        ]
        lines = [rf"\begin{{{form}}}{{l{columns}}}", r"\toprule"]
        lines += [] if facts else [" & ".join(heads) + r" \\", r"\midrule"]
        lines += [r"\endhead"] if self.layout == "long" else []
        lines += [" & ".join(row) + r" \\" for row in self._rows(cell, r"\textbf{{{}}}")]
        return "\n".join(
            [*lines, r"\bottomrule", rf"\end{{{form}}}", f"% {' '.join(self.caption.split())}", ""]
        )

    def _repr_html_(self) -> str:
        cells = pd.DataFrame(
            self._rows(html.escape, "<b>{}</b>"), columns=[html.escape(str(n)) for n in self.shown]
        )
        return (
            cells.to_html(index=False, escape=False)
            + f"<p><small>{html.escape(self.caption)}</small></p>"
        )

    def save(self, folder: Path) -> None:
        """<name>.csv, .md and .tex."""
        csv(folder, **{self.name: self.numbers})
        for ending, text in (("md", self.to_markdown()), ("tex", self.to_latex())):
            atomic_write(Path(folder) / f"{self.name}.{ending}", text.encode("utf-8", "replace"))


def csv(folder: Path, **frames: pd.DataFrame) -> None:
    """<name>.csv of every frame, for people: see `inert`."""
    for name, frame in frames.items():
        write_csv(Path(folder) / f"{name}.csv", inert(frame))


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before every text, headings included, that a spreadsheet would compute. Numbers, as
    texts too, stay numbers; a lone carriage return, which would begin a row, becomes a line end. Not for files that
    code reads back: there an id must stay what it is."""

    def cell(value: object) -> object:
        value = value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value
        if not (isinstance(value, str) and value.startswith(FORMULA)):
            return value
        try:
            float(value)
        except ValueError:
            return f"'{value}"
        return value

    out = frame.rename(columns=cell)
    for place, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            out.isetitem(place, frame.iloc[:, place].map(cell))
    return out


def quoted(text: str, longest: int = 200) -> str:
    """Hostile text on one line of Markdown: nothing in it is markup, what cannot be printed is a blank."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    flat = flat if len(flat) <= longest else flat[: longest - 1] + "…"
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~@:&" else c for c in flat)


def escape(text: str) -> str:
    """Text for LaTeX, character by character, so that no replacement is replaced again."""
    return "".join(LATEX.get(character, character) for character in text)


def number(value: float, form: str = ".3f") -> str:
    """As printed; a dash where there is none."""
    return DASH if pd.isna(value) else f"{value:{form}}"
