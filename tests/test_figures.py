"""Figures and tables from files alone, on invented numbers: complete grids only, stable bytes, nothing cut
off."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.weightstats import CompareMeans
from study_fixture import small_config, write_study

from polylib import names, stats
from polylib.analysis import effects, results
from polylib.figures import attempts, curves, plain_tables, style, tables, tradeoffs
from polylib.run import UserError, atomic_write

DRAW = [tradeoffs.quality_diversity, attempts.pass_at_k, curves.training_dynamics]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    cfg = small_config()
    return results.load(write_study(tmp_path_factory.mktemp("study"), cfg), cfg)


@pytest.fixture
def files(study, tmp_path):
    """A copy of the study's files that a test may damage; load with `results.load(files, cfg)`."""
    shutil.copytree(study.paths.root / "results", tmp_path / "results")
    return results.Paths("laptop", tmp_path)


def single(tmp_path):
    """One seed, and metrics that no set of replies defined, as after a smoke run."""
    cfg = small_config(seeds=(42,))
    paths = write_study(tmp_path, cfg)
    for file in paths.results("evaluation").glob("**/per_prompt.csv"):
        pd.read_csv(file).assign(self_bleu=np.nan, truncated=np.nan).to_csv(file, index=False)
    return results.load(paths, cfg)


@pytest.mark.parametrize("draw", DRAW, ids=lambda f: f.__name__)
def test_every_figure_says_what_it_rests_on_and_fits_its_page(study, draw):
    for columns in (1, 2):
        picture = draw(study, columns)
        note = " ".join(picture.figure.get_supxlabel().split())
        assert "24 posts × 10 replies, seeds 42, 123, 456" in note
        assert (
            "preset laptop, study laptop, simulated engagement" in note and "commit 0123456" in note
        )
        assert picture.figure.get_figwidth() == {1: 3.25, 2: 6.75}[columns]
        assert len(picture.data) and picture.data["method"].notna().all()
        picture.figure.draw_without_rendering()
        box = picture.figure.get_tightbbox()  # inches; anything beyond the page would be cut off
        assert box.x0 > -0.02 and box.x1 < picture.figure.get_figwidth() + 0.02
        assert box.y0 > -0.02 and box.y1 < picture.figure.get_figheight() + 0.02


def test_files_are_the_same_bytes_every_time(study, tmp_path):
    for folder in ("a", "b"):
        tradeoffs.quality_diversity(study, 1).save(tmp_path / folder, dpi=80)
        tables.main(study).save(tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "quality_diversity.csv",
        "quality_diversity.pdf",
        "quality_diversity.png",
        "table_main.csv",
        "table_main.tex",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert b"CreationDate" not in (tmp_path / "a" / "quality_diversity.pdf").read_bytes()


def test_the_csv_of_a_figure_holds_what_the_files_hold(study):
    frame = pd.read_csv(study.paths.evaluation("grpo", 123) / "per_prompt.csv")
    data = tradeoffs.quality_diversity(study).data
    row = data[data["method"].eq("grpo") & data["seed"].eq(123)].iloc[0]
    assert row["judge_mean"] == pytest.approx(frame["judge_mean"].mean())
    assert row["diversity"] == pytest.approx(frame["diversity"].mean())
    passes = attempts.pass_at_k(study).data.query("seed == 123 and k == 5 and quantile == 0.75")
    assert passes.set_index("method").loc["grpo", "pass_at_k"] == pytest.approx(
        frame["pass@5_q0.75"].mean()
    )


def test_one_seed_draws_and_says_so(tmp_path):
    one = single(tmp_path)
    row = effects.difference(one, "judge_mean", "grpo")
    assert np.isnan(row["method_p"]) and np.isfinite(row["checkpoints_p"])
    assert row["reason"] == stats.ONE_SEED
    assert "one run" in tables.main(one).caption and "nan" not in tables.main(one).to_latex()
    assert tables.summary(one)["methods"]["grpo"]["self_bleu"] == {
        "value": None,
        "reason": "defined at 0 posts",
    }
    for draw in DRAW:
        assert len(draw(one).data)


def test_methods_look_the_same_everywhere_and_differ_in_three_ways(study):
    for channel in ("color", "marker", "linestyle", "label"):
        assert len({str(s[channel]) for s in style.METHOD_STYLE.values()}) == len(
            style.METHOD_STYLE
        )
    assert names.ordered(study.methods) == study.methods
    with pytest.raises(KeyError, match="rloo"):
        names.ordered(["sft", "rloo"])


def test_training_curves_leave_empty_panels_out(study):
    history = study.histories[("grpo", 42)]
    picture = curves.training_curves(history, "grpo", "Seed 42, simulated engagement")
    assert [ax.get_title() for ax in picture.figure.axes if ax.get_visible()][0].startswith(
        "cross-entropy"
    )
    assert picture.data is history and "simulated" in picture.figure.get_supxlabel()
    sft = curves.training_curves(
        study.histories[("sft", 42)], "sft"
    )  # no reward, no KL: no empty panels
    assert len([ax for ax in sft.figure.axes if ax.get_visible()]) == 2
    curves.training_curves(history[:1], "grpo")._repr_png_()  # the first step of a run in progress


def test_missing_and_foreign_cells_are_refused_by_name(files):
    cfg = small_config()
    shutil.rmtree(files.evaluation("grpo", 123))
    shutil.rmtree(files.evaluation("hybrid", 42))
    with pytest.raises(UserError, match="missing: grpo/s123, hybrid/s42; run `dvc repro`"):
        results.load(files, cfg)
    with pytest.raises(UserError, match="not part of this study: .*sft/s456"):
        results.load(files, dataclasses.replace(cfg, seeds=(42,), methods=("sft",)))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: shutil.rmtree(p.evaluation("human")), "human/per_prompt.csv: missing"),
        (
            lambda p: atomic_write(p.evaluation("sft", 42) / "per_prompt.csv", "a,b\n1,2\n"),
            "no column prompt_id",
        ),
        (
            lambda p: (p.results("grpo", 42) / "history.csv").unlink(),
            "grpo/s42/history.csv: missing",
        ),
        (lambda p: (p.results("data") / "manifest.json").unlink(), "manifest.json: missing"),
        (lambda p: _drop_prompt(p), "repeats posts of the human row"),
        (lambda p: _drop_temperature(p), "no rows at temperature 1;"),
    ],
)
def test_files_that_do_not_fit_are_named_in_one_line(files, damage, message):
    damage(files)
    with pytest.raises(UserError, match=message) as error:
        results.load(files, small_config())
    assert "\n" not in str(error.value)


def _edit(path, keep):
    frame = pd.read_csv(path)
    frame[keep(frame)].to_csv(path, index=False)


def _drop_prompt(paths):
    _edit(paths.evaluation("grpo", 42) / "per_prompt.csv", lambda f: f["prompt_id"] != "p003")


def _drop_temperature(paths):
    _edit(paths.evaluation("sft", 42) / "per_prompt.csv", lambda f: f["temperature"] != 1.0)


def matched_mean(curve: list, x: float) -> tuple[float, str]:
    """What the control gives at x on `curve` of (judge, diversity), by the distance of a run that has 0 diversity."""
    xs, ys = (np.array(curve)[:, [i]][:, :, None] + np.zeros((1, 1, 3)) for i in (0, 1))
    d, reasons = effects.matched_differences(xs, ys, np.full((1, 3), x), np.zeros((1, 3)))
    return -d.mean(), reasons[0]


def test_temperature_control_is_interpolated_per_run():
    curve = [[0.40, 0.75], [0.35, 0.80], [0.30, 0.85]]  # judge, diversity at rising temperature
    assert matched_mean(curve, 0.36) == (pytest.approx(0.79), "")
    assert matched_mean(curve, 0.30) == (pytest.approx(0.85), "")
    value, reason = matched_mean(curve, 0.5)
    assert np.isnan(value) and reason == "0.500 is above all that temperature reaches (0.300-0.400)"
    bent = [[0.40, 0.75], [0.30, 0.80], [0.38, 0.85]]
    assert matched_mean(bent, 0.35)[0] == pytest.approx(0.83125)  # the crossing that favours SFT


def test_main_table_in_all_formats_shows_the_same_numbers(study):
    table = tables.main(study)
    assert list(table.numbers["label"]) == [
        "people",
        "SFT",
        "SFT, T=0.85",
        "SFT, T=1",
        "SFT+ (λ=0)",
        "polychromic",
        "GRPO",
        "hybrid",
    ]
    values = np.array(
        [
            pd.read_csv(study.paths.evaluation("grpo", s) / "per_prompt.csv")["judge_mean"]
            for s in (42, 123, 456)
        ]
    )
    grpo = table.numbers.set_index("method").loc["grpo"]
    assert grpo["judge_mean"] == pytest.approx(values.mean())
    assert grpo["judge_mean_half"] == pytest.approx(stats.interval(values)[1].high - values.mean())
    shown = f"{values.mean():.3f}"
    latex, page = table.to_latex(), table._repr_html_()
    assert shown in latex and shown in page
    assert "24 posts × 10 replies" in page and "simulated engagement" in page
    assert "$\\lambda$" in latex and latex.count("\\toprule") == 1
    assert "nan" not in (latex + page).lower()
    people = table.numbers.iloc[0]
    assert np.isnan(people["pass@10_q0.5"]) and people["pass@10_q0.5_prompts"] == 0
    assert table.numbers.to_csv(index=False).startswith(
        "label,method,temperature,judge_mean,judge_mean_half,"
    )


def test_table_escapes_hostile_labels():
    numbers = pd.DataFrame([{"label": "<script>a|b_50%", "m": 1.0, "m_half": np.nan}])
    texts, bold = tables.shown(numbers, {"m": "x & <y>"})
    table = plain_tables.Table("t", numbers, texts, "cap <b>", bold, layout="stacked")
    assert "<script>" not in table._repr_html_() and "&lt;script&gt;" in table._repr_html_()
    assert r"b\_50\%" in table.to_latex() and r"x \& $<$y$>$" in table.to_latex()


def test_summary_is_what_dvc_shows(study):
    saved = json.loads(json.dumps(tables.summary(study), allow_nan=False))
    controls = {"sft_T0.85", "sft_T1"}
    assert set(saved["methods"]) == {"human", *study.cfg.methods} | controls
    assert saved["methods"]["human"]["truncated"] == {"value": None, "reason": "defined at 0 posts"}
    assert (saved["engagement"], saved["seeds"], saved["prompts"]) == ("simulated", 3, 24)


def test_every_mean_of_the_trade_off_has_the_error_bars_of_the_main_table(study):
    picture = tradeoffs.quality_diversity(study)
    rows = tables.main(study).numbers
    rows = rows[~rows["temperature"].isin([0.85, 1.0])].set_index("method")
    drawn = {
        tuple(np.round(bar.lines[0].get_xydata()[0], 9)): [
            float(np.ptp(lines.get_segments()[0][:, axis])) / 2
            for axis, lines in enumerate(bar.lines[2])
        ]
        for bar in picture.figure.axes[0].containers
    }
    assert len(drawn) == len(study.methods) == 6
    for method in study.methods:
        row = rows.loc[method]
        halves = drawn[tuple(np.round([row["diversity"], row["judge_mean"]], 9))]
        assert halves == pytest.approx([row["diversity_half"], row["judge_mean_half"]]), method
        held = picture.data.set_index("method").loc[[method], ["diversity_half", "judge_mean_half"]]
        assert held.drop_duplicates().to_numpy()[0] == pytest.approx(halves)
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend == [names.METHODS[method] for method in study.methods], "no number unexplained"


def test_sft_does_not_flatten_the_others_and_is_drawn_where_it_is_alone(study):
    both = curves.training_dynamics(study)
    assert set(both.data["method"]) == set(study.cfg.methods) - {"sft"}
    panel = next(ax for ax in both.figure.axes if ax.get_title() == "cross-entropy, nats/token")
    held = [study.histories[m, s]["val_ce"] for m in study.trained for s in study.cfg.seeds]
    low, high = panel.get_ylim()
    span = max(v.max() for v in held) - min(v.min() for v in held)
    assert span > 0.8 * (high - low), "their curves fill the panel"
    sft = {key: frame for key, frame in study.histories.items() if key[0] == "sft"}
    alone = curves.training_dynamics(dataclasses.replace(study, histories=sft))
    assert set(alone.data["method"]) == {"sft"}


def test_bold_is_what_the_method_changes_and_every_metric_has_its_row(study):
    table = tables.main(study)
    rows = [effects.difference(study, "judge_mean", method) for method in study.trained]
    effect = pd.DataFrame(rows).set_index("method")
    rows = table.numbers[~table.numbers["temperature"].isin([0.85, 1.0])].set_index("method")
    for method, row in effect.iterrows():
        assert rows.loc[method, "judge_mean_differs"] == (
            row["method_low"] > 0 or row["method_high"] < 0
        ), method
    assert rows.loc["grpo", "judge_mean_differs"] and not rows.loc["sft", "judge_mean_differs"]
    worse = {
        key: frame.assign(judge_mean=frame["judge_mean"] - (key[0] == "hybrid"))
        for key, frame in study.frames.items()
    }
    lost = tables.main(dataclasses.replace(study, frames=worse)).numbers
    assert lost.set_index("method").loc["hybrid", "judge_mean_differs"]  # a loss is a change, too
    shown = f"{rows.loc['grpo', 'judge_mean']:.3f}"
    assert rf"\textbf{{\shortstack{{{shown}\\" in table.to_latex()
    assert f"<b>{shown} ±" in table._repr_html_()
    wide = tables.everything(study)
    passes = [name for name in study.columns if name.startswith("pass@") and "own" not in name]
    assert len(wide.shown) == len(set(names.METRICS) & set(study.columns)) + len(passes)
    assert wide.to_latex().count("longtable") == 2 and rf"\textbf{{{shown}" in wide.to_latex()


def test_the_note_says_which_code_made_the_cells(files):
    cfg = small_config()
    assert results.load(files, cfg).note.endswith("commit 0123456")
    one = files.evaluation("grpo", 42) / "env.json"
    env = json.loads(one.read_text())
    atomic_write(one, json.dumps(env | {"commit": "fedcba9" + "0" * 33, "dirty": True}))
    assert results.load(files, cfg).note.endswith(
        "several commits (0123456, fedcba9) with uncommitted changes"
    )
    atomic_write(
        one, json.dumps(env | {"commit": {"value": None, "reason": "no git"}, "dirty": None})
    )
    assert results.load(files, cfg).commit == "commit 0123456 with 1 of 16 cells without one"
    one.unlink()
    assert results.load(files, cfg).commit == "commit 0123456 with 1 of 16 cells without one"
    for file in files.results("evaluation").glob("**/env.json"):
        file.unlink()
    assert results.load(files, cfg).commit == "commit unknown"


def test_the_dominated_area_is_that_of_a_grid():
    """Against counting the cells of a fine grid that some point dominates."""
    from polylib.figures.tradeoffs import hypervolume

    points, corner = (
        np.array([[0.2, 0.9], [0.5, 0.6], [0.45, 0.5], [0.8, 0.1], [0.95, 0.05]]),
        np.array([0.1, 0.05]),
    )
    x, y = np.meshgrid((np.arange(2000) + 0.5) / 2000, (np.arange(2000) + 0.5) / 2000)
    inside = np.zeros_like(x, dtype=bool)
    for a, b in points:
        inside |= (x < a) & (y < b) & (x > corner[0]) & (y > corner[1])
    assert hypervolume(points, corner) == pytest.approx(inside.mean(), abs=1e-3)
    assert hypervolume(points[:0], corner) == 0.0
    assert hypervolume(np.array([[0.5, 0.01], [0.05, 0.9]]), corner) == 0.0


def test_at_equal_quality_the_run_is_the_unit(study):
    m = effects.matched(study, "judge_mean", "diversity", "polychromic")
    assert m["seeds"] == 3 and (m["kind"], m["equal"]) == ("matched", "diversity")
    if m["matched_runs"] == 3:
        assert m["method_low"] < m["effect"] < m["method_high"]
        assert m["method_df"] >= 2 and m["signs_floor"] == 0.25
    gone = effects.matched(
        study, "diversity", "judge_mean", "grpo"
    )  # GRPO's judge: above all of SFT's
    assert np.isnan(gone["effect"]) and np.isnan(gone["method_p"])
    assert "seed 42: " in gone["reason"] and "above all" in gone["reason"]
    table = pd.DataFrame(effects.all_matched(study))
    assert len(table) == 8 and (table["effect"].notna() | table["reason"].ne("")).all()


def test_a_difference_holds_both_claims(study):
    row = effects.difference(study, "judge_mean", "grpo")
    assert row["method_low"] < row["checkpoints_low"] < row["effect"]
    assert row["effect"] < row["checkpoints_high"] < row["method_high"]
    assert (row["signs_floor"], row["ranks_floor"]) == (0.25, 0.1)
    frames = {key: frame.assign(judge_mean=np.nan) for key, frame in study.frames.items()}
    none = effects.difference(dataclasses.replace(study, frames=frames), "judge_mean", "grpo")
    assert np.isnan(none["effect"]) and none["reason"] == "defined at 0 of 24 posts"
    assert (none["prompts"], none["dropped"]) == (0, 24)


def test_hypervolumes_compare_methods_at_common_temperatures(study):
    table = tradeoffs.hypervolumes(study).set_index("method")
    every = [
        results.means(study, tradeoffs.AXES, t).query("method != 'human'") for t in (0.7, 0.85, 1.0)
    ]
    points = pd.concat(every)[tradeoffs.AXES].to_numpy()
    worst, best = points.min(axis=0), points.max(axis=0)
    corner = worst - 0.1 * (best - worst)  # the sweep of SFT alone moves the corner, not the areas
    own = results.means(study, tradeoffs.AXES).set_index("method")
    areas = (own["diversity"] - corner[0]) * (own["judge_mean"] - corner[1])
    assert table.loc["grpo", "hypervolume"] == pytest.approx(areas["grpo"].mean())
    low, high = CompareMeans.from_data(areas["grpo"], areas["sft"]).tconfint_diff(usevar="unequal")
    assert table.loc["grpo", ["gain_low", "gain_high"]].tolist() == pytest.approx([low, high])
    assert table.loc["grpo", "gain"] == pytest.approx((low + high) / 2)
    assert np.isnan(table.loc["sft", "gain"])


def test_bands_hold_what_the_files_hold(study):
    folders = [study.paths.evaluation("grpo", s) for s in (42, 123, 456)]
    frames = [pd.read_csv(folder / "per_prompt.csv") for folder in folders]
    passes = attempts.pass_at_k(study).data.query(
        "method == 'grpo' and k == 5 and quantile == 0.75"
    )
    mean, claim = stats.interval(np.array([frame["pass@5_q0.75"] for frame in frames]))
    assert passes["mean"].unique() == pytest.approx([mean])
    assert passes["low"].unique() == pytest.approx([claim.low])
