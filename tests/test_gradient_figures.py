"""The figures about gradients draw what they are given, say what they rest on, and are the same bytes every
time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from polylib.figures import gradients
from polylib.run import UserError
from polylib.training import toy
from polylib.training.anatomy import COLUMNS

SEEDS = (42, 123)


def history() -> pd.DataFrame:
    """Steps 1 to 6 of three methods; an anatomy every second step, the diversity of polychromic detached."""
    terms = {
        "polychromic": ["ce", "diversity"],
        "grpo": ["reward", "kl"],
        "hybrid": ["ce", "reward", "diversity", "kl"],
    }
    rng, rows = np.random.default_rng(0), []
    for method, present in terms.items():
        for seed in SEEDS:
            for step in range(1, 7):
                row = {"method": method, "seed": seed, "step": step, "loss": 1.0} | dict.fromkeys(
                    COLUMNS, np.nan
                )
                if step % 2:
                    row |= {f"norm_{t}": float(np.exp(rng.normal())) for t in present}
                    row |= {
                        c: rng.uniform(-0.5, 0.5)
                        for c in COLUMNS[4:]
                        if set(c.split("_")[1:]) <= set(present)
                    }
                if step % 2 and method == "polychromic":
                    row |= {"norm_diversity": 0.0, "cos_ce_diversity": np.nan}
                rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table():
    return toy.snr_table((4,), (0, 1))


def fits(picture, columns: int) -> None:
    assert picture.figure.get_figwidth() == {1: 3.25, 2: 6.75}[columns]
    picture.figure.draw_without_rendering()
    box = picture.figure.get_tightbbox()
    assert box.x0 > -0.02 and box.x1 < picture.figure.get_figwidth() + 0.02
    assert box.y0 > -0.02 and box.y1 < picture.figure.get_figheight() + 0.02


def note(picture) -> str:
    return " ".join(picture.figure.get_supxlabel().split())


@pytest.mark.parametrize("columns", [1, 2])
def test_both_fit_their_page_and_say_what_they_rest_on(table, columns):
    anatomy = gradients.anatomy_figure(history(), "Study laptop, simulated engagement.", columns)
    assert "with its weight" in note(anatomy) and "before the norm is clipped" in note(anatomy)
    assert "42, 123" in note(anatomy) and "Study laptop, simulated engagement." in note(anatomy)
    ratio = gradients.snr_figure(table, columns)
    assert "means over 2 policies" in note(ratio) and "not comparable" in note(ratio)
    for picture in (anatomy, ratio):
        fits(picture, columns)


def test_anatomy_draws_the_numbers_of_the_history():
    data = history()
    picture = gradients.anatomy_figure(data)
    norms, cosines = picture.figure.axes
    assert norms.get_xscale() == "log" and not picture.figure.legends
    rows = [text.get_text() for text in norms.get_yticklabels()]
    assert rows[2:4] == ["GRPO: reward", "GRPO: KL"] and len(rows) == 2 + 2 + 4
    given = data[data["method"].eq("grpo")].dropna(subset="norm_reward")
    mean = next(line for line in norms.get_lines() if list(line.get_ydata()) == [2])
    assert mean.get_xdata() == pytest.approx([given["norm_reward"].mean()])
    small = next(c for c in norms.collections if abs(c.get_offsets()[:, 1].mean() - 2) < 1e-9)
    drawn = small.get_offsets()
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(given["norm_reward"])), (
        "a mark a run and step"
    )
    assert len(set(drawn[:, 1])) == len(SEEDS), "a line of marks a run"
    late = {x: alpha for x, alpha in zip(drawn[:, 0], small.get_alpha(), strict=True)}
    for seed in SEEDS:
        own = given[given["seed"].eq(seed)].sort_values("step")["norm_reward"]
        assert np.diff([late[x] for x in own]).min() > 0, "darker as training goes on"
    pairs = [text.get_text() for text in cosines.get_yticklabels()]
    assert pairs[0] == "GRPO: reward, KL" and len(pairs) == 1 + 6
    assert len(picture.data) == 3 * len(SEEDS) * 3 and "loss" not in picture.data


def test_a_detached_term_is_named_because_a_log_axis_cannot_show_zero():
    norms = gradients.anatomy_figure(history()).figure.axes[0]
    rows = [text.get_text() for text in norms.get_yticklabels()]
    (said,) = norms.texts
    assert said.get_text() == "exactly 0" and rows[said.xy[1]] == "polychromic: diversity"
    hybrid = gradients.anatomy_figure(history().query("method == 'hybrid' and seed == 42"))
    assert "1 run (seed 42)" in note(hybrid) and not any(ax.texts for ax in hybrid.figure.axes)
    single = history().query("method == 'hybrid'")
    single = gradients.anatomy_figure(single[["method", "seed", "step", "norm_ce"]])
    assert len(single.figure.axes) == 1, "one term has no cosine, and no empty panel"


def test_a_history_without_an_anatomy_is_refused_with_the_remedy():
    for frame in (
        history().drop(columns=COLUMNS),
        history().assign(**dict.fromkeys(COLUMNS, np.nan)),
    ):
        with pytest.raises(UserError, match="anatomy_every"):
            gradients.anatomy_figure(frame)


def test_a_study_shows_the_methods_that_recorded_one():
    runs = {
        key: frame.drop(columns=["method", "seed"])
        for key, frame in history().groupby(["method", "seed"])
    }
    runs["sft", 42] = runs["grpo", 42].drop(columns=COLUMNS)
    study = SimpleNamespace(histories=runs, note="n = 3 posts, study laptop")
    for columns in (1, 2):
        picture = gradients.gradient_anatomy(study, columns)
        rows = [text.get_text() for text in picture.figure.axes[0].get_yticklabels()]
        assert list(dict.fromkeys(row.split(":")[0] for row in rows)) == [
            "polychromic",
            "GRPO",
            "hybrid",
        ]
        assert "study laptop." in note(picture)
        shown, given = (
            frame.sort_values(["method", "seed", "step"], ignore_index=True)
            for frame in (picture.data, gradients.anatomy_figure(history()).data)
        )
        pd.testing.assert_frame_equal(shown, given, check_like=True)


def test_the_ratio_is_drawn_at_its_mean_over_policies_and_zero_for_detached(table):
    frame = pd.DataFrame(table)
    picture = gradients.snr_figure(table)
    ax = picture.figure.axes[0]
    marks = [
        (line.get_marker(), line.get_xdata()[0], line.get_ydata()[0])
        for line in ax.get_lines()
        if line.get_marker() not in ("None", None)
    ]
    value = frame.query("estimator == 'jackknife'")["aligned_snr"].mean()
    assert min(m for m in marks if m[0] == "o")[2] == pytest.approx(value)
    assert [y for m, _, y in marks if m == "x"] == [0.0] * 1
    shown = {gradients.ESTIMATORS[name]["marker"] for name in set(frame["estimator"])}
    assert {m for m, *_ in marks} == shown and set(frame["estimator"]) == set(gradients.ESTIMATORS)


def test_files_are_the_same_bytes_every_time(table, tmp_path):
    for folder in ("a", "b"):
        gradients.anatomy_figure(history()).save(tmp_path / folder, dpi=60)
        gradients.snr_figure(table).save(tmp_path / folder, dpi=60)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        f"{name}.{kind}"
        for name in ("estimator_snr", "gradient_anatomy")
        for kind in ("csv", "pdf", "png")
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
