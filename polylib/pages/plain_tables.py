"""Any DataFrame as CSV, Markdown and LaTeX: what the tables without intervals of their own are saved with."""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from polylib.run import atomic_write, write_csv

DASH = "–"  # a number that does not exist
LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
         "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "λ": r"$\lambda$", "±": r"$\pm$",
         "×": r"$\times$", "–": "--", "<": "$<$", ">": "$>$"}


def save(name: str, numbers: pd.DataFrame, shown: pd.DataFrame, folder: Path, caption: str, below: str = "") -> None:
    """<name>.csv of `numbers`; <name>.md and .tex of `shown`, whose cells are text. `below`: more Markdown."""
    write_csv(Path(folder) / f"{name}.csv", numbers)
    for ending, text in (("md", to_markdown(shown, caption) + below), ("tex", to_latex(shown, caption))):
        atomic_write(Path(folder) / f"{name}.{ending}", text.encode("utf-8", "replace"))


def csv(folder: Path, **frames: pd.DataFrame) -> None:
    """<name>.csv of every frame."""
    for name, frame in frames.items():
        write_csv(Path(folder) / f"{name}.csv", frame)


def to_markdown(shown: pd.DataFrame, caption: str) -> str:
    """First column left, others right."""
    lines = [_row(shown.columns), "|---|" + "---:|" * (shown.shape[1] - 1)]
    lines += [_row(row) for row in shown.itertuples(index=False)]
    return "\n".join([*lines, "", caption, ""])


def to_latex(shown: pd.DataFrame, caption: str) -> str:
    """booktabs, the caption as a comment; cells are escaped character by character."""
    head = " & ".join(escape(str(name)) for name in shown.columns)
    lines = [rf"\begin{{tabular}}{{l{'r' * (shown.shape[1] - 1)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    lines += [" & ".join(escape(str(cell)) for cell in row) + r" \\" for row in shown.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {' '.join(caption.split())}", ""])


def quoted(text: str, longest: int = 200) -> str:
    """Hostile text on one line of Markdown: nothing in it is markup, what cannot be printed is a blank."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    flat = flat if len(flat) <= longest else flat[:longest - 1] + "…"
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~@:&" else c for c in flat)


def _row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def escape(text: str) -> str:
    """Text for LaTeX, character by character, so that no replacement is replaced again."""
    return "".join(LATEX.get(character, character) for character in text)
