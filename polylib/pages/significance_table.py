"""The significance table as people read it, and as files: every comparison with both claims and its verdict."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polylib.claims.results import Results
from polylib.names import METHODS, METRICS
from polylib.pages import plain_tables
from polylib.run import atomic_write


def shown(frame: pd.DataFrame, families: tuple[str, ...] = ("primary", "equivalence", "exploratory")) -> pd.DataFrame:
    """The table as people read it, every cell a text."""
    rows = []
    for _, row in frame[frame["family"].isin(families)].iterrows():
        metric = METRICS.get(row["metric"], row["metric"])
        at = f" at equal {METRICS.get(row['equal'], row['equal'])}" if row["equal"] else ""
        kept = f", kept within {row['margin']:g}" if row["kind"] == "equivalence" else ""
        rows.append({
            "comparison with SFT": f"{METHODS[row['method']]}: {metric}{at}{kept}",
            "family": row["family"], "effect": _number(row["effect"], "+.3f"),
            "these checkpoints": _interval(row, "checkpoints"),
            "p": _number(row["checkpoints_p"]), "the method": _interval(row, "method"),
            "p (method)": _number(row["method_p"]), "adjusted": _number(row["p_adjusted"]),
            "signs p (floor)": _floored(row, "signs"), "ranks p (floor)": _floored(row, "ranks"),
            "posts (dropped)": f"{row['prompts']} ({row['dropped']})", "verdict": row["verdict"]})
    return pd.DataFrame(rows)


def _number(value: float, form: str = ".3f") -> str:
    if not np.isfinite(value):
        return plain_tables.DASH
    return "<.001" if form == ".3f" and value < 0.001 else f"{value:{form}}"


def _interval(row: pd.Series, claim: str) -> str:
    low, high = row[f"{claim}_low"], row[f"{claim}_high"]
    return f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else plain_tables.DASH


def _floored(row: pd.Series, test: str) -> str:
    p, floor = row[f"{test}_p"], row[f"{test}_floor"]
    return f"{p:.2f} ({floor:.2f})" if np.isfinite(p) else plain_tables.DASH


def caption(frame: pd.DataFrame, results: Results) -> str:
    floors = frame[["signs_floor", "ranks_floor"]].min()
    cannot = " Neither can reach .05 here." if floors.min() >= 0.05 else ""
    return ("Differences to SFT. These checkpoints: posts are the sample. The method: runs and posts are. Adjusted: "
            "Holm in the registered families, Benjamini-Hochberg in the exploratory one. Signs and ranks: exact tests "
            f"on runs with the smallest p they can give.{cannot} Intervals 95 %, of equivalence 90 %. {results.note}.")


def save(frame: pd.DataFrame, results: Results, folder: Path) -> None:
    """table_significance.csv (every column) and .md (as `shown`); .tex holds the registered families alone where there
    are any: what fits a page."""
    below, registered = caption(frame, results), frame[frame["family"].ne("exploratory")]
    plain_tables.save("table_significance", frame, shown(frame), folder, below)
    page = plain_tables.to_latex(shown(registered if len(registered) else frame), below)
    atomic_write(Path(folder) / "table_significance.tex", page)
