"""CSV files for people: a spreadsheet computes nothing that a user or a model has written."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest

from polylib.figures import plain_tables, style

FORMULAS = [
    '=HYPERLINK("http://x","y")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1,2)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "-",
]
HARMLESS = ["reply", "a = b", "-1.5", "+2", "1e-3", "-inf", "", "'=1", "–", "5-3"]


def cells(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_formulas_become_text_and_numbers_stay_numbers(tmp_path, kind):
    texts = FORMULAS + HARMLESS
    frame = pd.DataFrame(
        {"=head": pd.Series(texts, dtype=kind), "n": -1.5, "i": -2, "b": True}, index=range(18)
    )
    before = frame.copy(deep=True)
    plain_tables.csv(tmp_path, made=frame)
    head, *rows = cells(tmp_path / "made.csv")
    assert head == ["'=head", "n", "i", "b"]
    assert [row[0] for row in rows] == [
        *(f"'{text}".replace("\r", "\n") for text in FORMULAS),
        *HARMLESS,
    ]
    assert all(row[1:] == ["-1.5", "-2", "True"] for row in rows)
    pd.testing.assert_frame_equal(frame, before)


def test_tables_and_figures_write_them_so(tmp_path):
    frame = pd.DataFrame({"reply": ["=1+1", None], "score": [-1.0, np.nan]})
    plain_tables.Table("table", frame, frame.astype(str), "caption").save(tmp_path)
    with style.matplotlib.rc_context(style.STYLE):
        style.Picture("figure", style.canvas(1, 1, 1.0)[0], frame).save(tmp_path, dpi=20)
    for name in ("table", "figure"):
        assert cells(tmp_path / f"{name}.csv") == [["reply", "score"], ["'=1+1", "-1"], ["", ""]]
