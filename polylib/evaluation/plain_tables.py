"""Any DataFrame as CSV, Markdown and LaTeX: what the tables without intervals of their own are saved with."""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from polylib.evaluation.tables import escape
from polylib.run import atomic_write

DASH = "–"  # a number that does not exist


def save(name: str, numbers: pd.DataFrame, shown: pd.DataFrame, folder: Path, caption: str, below: str = "") -> None:
    """<name>.csv of `numbers`; <name>.md and .tex of `shown`, whose cells are text. `below`: more Markdown."""
    content = numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    for ending, text in (("csv", content), ("md", to_markdown(shown, caption) + below),
                         ("tex", to_latex(shown, caption))):
        atomic_write(Path(folder) / f"{name}.{ending}", text.encode("utf-8", "replace"))


def csv(folder: Path, **frames: pd.DataFrame) -> None:
    """<name>.csv of every frame, in the form of all files of record: six digits, no index."""
    for name, frame in frames.items():
        atomic_write(Path(folder) / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


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
