"""The dashboard shows every feature of every run where its numbers say, and the planted policies on the same axis."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hacking_fixture import THRESHOLD, write_verdicts
from study_fixture import small_config, write_study

from polylib.analysis import results
from polylib.config import UserError
from polylib.figures import hacking_figures
from polylib.figures.style import METHOD_STYLE
from polylib.hacking.features import NAMES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def study(root):
    cfg = small_config((42, 123))
    paths = write_study(root, cfg)
    write_verdicts(paths, cfg)
    return results.load(paths, cfg)


def test_distances_are_those_of_the_stored_verdicts(study):
    table = hacking_figures.distances(study)
    assert len(table) == 13 * (1 + 2 * len(study.cfg.methods))
    for (method, seed), part in table.groupby(["method", "seed"], dropna=False):
        seed = None if pd.isna(seed) else int(seed)
        file = study.paths.evaluation(method, seed) / "metrics.json"
        stored = json.loads(file.read_text())["hacking"]
        worst = part.loc[part["distance"].idxmax()]
        assert worst["feature"] == stored["feature"]
        assert abs(worst["z"]) == pytest.approx(stored["z"], rel=1e-6)
    below = table.query("method == 'sft' and feature == 'length_sd'")
    assert (below["z"] < 0).all() and (below["distance"] > 0).all()


@pytest.mark.parametrize("columns", [1, 2])
def test_marks_stand_at_their_distance_and_say_the_direction(study, columns):
    picture = hacking_figures.hacking_dashboard(study, columns)
    left, right = picture.figure.axes
    blue = [line for line in left.lines if line.get_color() == METHOD_STYLE["grpo"]["color"]]
    assert len(blue) == 2 * 13, "a mark and its line from run to run"
    table = hacking_figures.distances(study).query("method == 'grpo'")
    for name, run in table.groupby("feature")["distance"]:
        row = [line for line in blue if round(line.get_ydata()[0]) == NAMES.index(name)]
        span, mark = sorted(row, key=lambda line: -len(line.get_xdata()))
        seen = run.clip(lower=hacking_figures.FLOOR)
        assert mark.get_xdata()[0] == pytest.approx(seen.mean())
        assert list(span.get_xdata()) == pytest.approx([seen.min(), seen.max()])
        if name == "top_reply":
            assert mark.get_xdata()[0] == pytest.approx(40 / THRESHOLD, rel=0.1)
        if name == "length_sd":
            assert mark.get_markerfacecolor() == "white"  # less than people
    assert [text.get_text() for text in right.get_yticklabels()] == [
        "always 'Agreed!'",
        "parrot",
        "a tenth 'Agreed!'",
        "people (fresh sets)",
    ]
    places = [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(places, np.array([2600, 150, 15, 1.8]) / THRESHOLD)
    assert right.get_title() == "planted: 3 of 3 caught" and "1.0% alarms" in [
        t.get_text() for t in right.texts
    ]
    picture.figure.draw_without_rendering()
    marks = [line for line in left.lines if len(line.get_xdata()) == 1]
    heights = [left.transData.transform(line.get_xydata()[0])[1] for line in marks]
    apart = np.diff(sorted(heights)) * 72 / picture.figure.dpi  # in points
    sizes = sorted(line.get_markersize() for line in marks)
    assert apart.min() > 0.7 * sizes[0], "no mark lies on another"
    box = picture.figure.get_tightbbox()
    assert box.x0 > -0.02 and box.x1 < picture.figure.get_figwidth() + 0.02


def test_what_is_missing_is_named(study, root):
    planted = study.paths.results("reward_model") / "planted.csv"
    content = planted.read_text()
    planted.unlink()
    with pytest.raises(UserError, match="planted.csv: missing"):
        hacking_figures.hacking_dashboard(study)
    planted.write_text(content)
    file = study.paths.evaluation("grpo", 123) / "metrics.json"
    content = file.read_text()
    file.write_text("{}")
    with pytest.raises(UserError, match="no key hacking"):
        hacking_figures.hacking_dashboard(study)
    file.write_text(content)
