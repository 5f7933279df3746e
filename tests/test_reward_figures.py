"""The figure of reward accuracies on several data sets, from invented tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from polylib.figures import reward_figures
from polylib.run import UserError


def write(root, study, dataset, pairs, learned=0.7):
    lines = [
        {
            "dataset": dataset,
            "model": model,
            "metric": metric,
            "value": value,
            "lo": value - 0.05,
            "hi": value + 0.05,
        }
        for metric in ("pair_accuracy_engagement", "pair_accuracy_balanced", "spearman_engagement")
        for model, value in (
            ("length_only", 0.55),
            ("learned", learned),
            ("random", 0.5),
            ("judge", np.nan),
        )
    ]
    folder = root / study / "reward_model"
    folder.mkdir(parents=True)
    pd.DataFrame(lines).assign(n=pairs).to_csv(folder / "validation.csv", index=False)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "laptop", "corpus", 1000)
    write(tmp_path, "smoke", "corpus", 90, learned=0.9)
    write(tmp_path, "laptop-x", "x", 400, learned=0.6)
    return tmp_path


def test_one_study_a_data_set_the_largest(root):
    found = reward_figures.everywhere(root)
    assert set(zip(found["study"], found["dataset"])) == {("laptop", "corpus"), ("laptop-x", "x")}
    assert len(found) == 2 * 12
    with pytest.raises(UserError, match="run stage reward_model"):
        reward_figures.everywhere(root / "nowhere")


@pytest.mark.parametrize("columns", [1, 2])
def test_a_panel_a_data_set_and_every_interval_is_drawn(root, columns):
    picture = reward_figures.forest(reward_figures.everywhere(root), columns)
    panels = [ax for ax in picture.figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["corpus\n1,000 pairs", "x\n400 pairs"]
    for ax, learned in zip(panels, (0.7, 0.6)):
        bars = [
            line.get_xdata()
            for line in ax.lines
            if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) > 0
        ]
        assert len(bars) == 2 * 3 and any(
            np.allclose(bar, [learned - 0.05, learned + 0.05]) for bar in bars
        )
        assert any(
            np.allclose(line.get_xdata(), 0.5) and np.ptp(line.get_ydata()) > 0 for line in ax.lines
        )
    picture.figure.draw_without_rendering()
    box = picture.figure.get_tightbbox()
    assert box.x0 > -0.02 and box.x1 < picture.figure.get_figwidth() + 0.02
    assert len(picture.data) == 2 * 2 * 3
