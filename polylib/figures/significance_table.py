"""The significance table as people read it, and as files: every comparison with both claims and its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polylib.analysis.results import Results
from polylib.figures.plain_tables import DASH, Table, csv, number
from polylib.names import METHODS, METRICS


def shown(
    frame: pd.DataFrame, families: tuple[str, ...] = ("primary", "equivalence", "exploratory")
) -> pd.DataFrame:
    """The table as people read it, every cell a text."""
    rows = []
    for _, row in frame[frame["family"].isin(families)].iterrows():
        metric = METRICS.get(row["metric"], row["metric"])
        at = f" at equal {METRICS.get(row['equal'], row['equal'])}" if row["equal"] else ""
        kept = f", kept within {row['margin']:g}" if row["kind"] == "equivalence" else ""
        rows.append(
            {
                "comparison with SFT": f"{METHODS[row['method']]}: {metric}{at}{kept}",
                "family": row["family"],
                "effect": number(row["effect"], "+.3f"),
                "these checkpoints": _interval(row, "checkpoints"),
                "p": _p(row["checkpoints_p"]),
                "the method": _interval(row, "method"),
                "p (method)": _p(row["method_p"]),
                "adjusted": _p(row["p_adjusted"]),
                "signs p (floor)": _floored(row, "signs"),
                "ranks p (floor)": _floored(row, "ranks"),
                "posts (dropped)": f"{row['prompts']} ({row['dropped']})",
                "verdict": row["verdict"],
            }
        )
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else number(value)


def _interval(row: pd.Series, claim: str) -> str:
    low, high = row[f"{claim}_low"], row[f"{claim}_high"]
    return f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else DASH


def _floored(row: pd.Series, test: str) -> str:
    p, floor = row[f"{test}_p"], row[f"{test}_floor"]
    return f"{p:.2f} ({floor:.2f})" if np.isfinite(p) else DASH


def table(frame: pd.DataFrame, results: Results) -> Table:
    """table_significance: every column in the CSV, `shown` in the other forms."""
    floors = frame[["signs_floor", "ranks_floor"]].min()
    cannot = " Neither can reach .05 here." if floors.min() >= 0.05 else ""
    caption = (
        "Differences to SFT. These checkpoints: posts are the sample. The method: runs and posts are. Adjusted: "
        "Holm in the registered families, Benjamini-Hochberg in the exploratory one. Signs and ranks: exact "
        f"tests on runs with the smallest p they can give.{cannot} Intervals 95 %, of equivalence 90 %. "
        f"{results.note}."
    )
    return Table("table_significance", frame, shown(frame), caption)


def save(frame: pd.DataFrame, results: Results, folder: Path) -> None:
    """`table`; .tex holds the registered families alone where there are any: what fits a page."""
    registered = frame[frame["family"].ne("exploratory")]
    table(registered if len(registered) else frame, results).save(folder)
    csv(folder, table_significance=frame)
