"""Any table in three forms: CSV of the numbers; LaTeX and HTML of what is printed, from one frame of texts.

Table("costs", numbers, shown, caption).save(folder)          # costs.csv, costs.tex
csv(folder, hacking=verdicts, decision_guide=guide)           # hacking.csv, decision_guide.csv
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

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
    shape. layout: of LaTeX, "plain", "stacked" (headings turned, what follows a ± under its number: twelve columns fit
    a page) or "long" (breaks over pages). Texts may hold anything: each form escapes them."""

    name: str
    numbers: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    bold: pd.DataFrame | None = None
    layout: str = "plain"

    def rows(self, cell, strong: str) -> list[list[str]]:
        """Cells through `cell`, the bold ones inside `strong`."""
        texts = self.shown.map(lambda text: cell(str(text)))
        bold = texts if self.bold is None else texts.mask(self.bold, texts.map(strong.format))
        return bold.to_numpy().tolist()

    def to_latex(self) -> str:
        """booktabs, the caption as a comment; cells are escaped character by character."""
        stacked, long = self.layout == "stacked", self.layout == "long"

        def cell(text: str) -> str:
            mean, _, half = text.partition(" ± ")
            if stacked and half not in ("", DASH):
                return rf"\shortstack{{{escape(mean)}\\{{\scriptsize $\pm${escape(half)}}}}}"
            return escape(text)

        form = "longtable" if long else "tabular"
        heads = [
            rf"\rotatebox{{60}}{{{escape(str(name))}}}" if stacked and i else escape(str(name))
            for i, name in enumerate(self.shown)
        ]
        rows = [" & ".join(row) + r" \\" for row in [heads, *self.rows(cell, r"\textbf{{{}}}")]]
        rows[1:1] = [r"\midrule", r"\endhead"] if long else [r"\midrule"]
        top = [rf"\begin{{{form}}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
        end = [r"\bottomrule", rf"\end{{{form}}}", f"% {' '.join(self.caption.split())}", ""]
        return "\n".join([*top, *rows, *end])

    def _repr_html_(self) -> str:
        cells = pd.DataFrame(
            self.rows(html.escape, "<b>{}</b>"), columns=[html.escape(str(n)) for n in self.shown]
        )
        return (
            cells.to_html(index=False, escape=False)
            + f"<p><small>{html.escape(self.caption)}</small></p>"
        )

    def save(self, folder: Path) -> None:
        """<name>.csv and .tex."""
        csv(folder, **{self.name: self.numbers})
        text = self.to_latex().encode("utf-8", "replace")
        atomic_write(Path(folder) / f"{self.name}.tex", text)


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


def escape(text: str) -> str:
    """Text for LaTeX, character by character, so that no replacement is replaced again."""
    return "".join(LATEX.get(character, character) for character in text)


def number(value: float, form: str = ".3f") -> str:
    """As printed; a dash where there is none."""
    return DASH if pd.isna(value) else f"{value:{form}}"
