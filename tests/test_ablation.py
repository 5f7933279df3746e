"""The grid of loss weights: its cells, the choice and what is left of it, the figure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from study_fixture import ROOT

from polylib import config, stats
from polylib.experiments import ablation
from polylib.figures import ablation_figure
from polylib.run import Paths, UserError

CFG = config.load("smoke", ROOT)


def prompts(seed: int, gains=(0.0, 0.3, 0.6, 0.1), level=0, posts=8) -> pd.DataFrame:
    """Invented: the start and the four cells of the smoke grid on the same validation posts; test rows of two."""
    rng, rows = np.random.default_rng(seed), []
    base = rng.normal(size=posts)
    for cell, gain in zip((ablation.START, *ablation.grid(CFG)), (0.0, *gains), strict=True):
        rows.append(
            pd.DataFrame(
                {
                    "cell": cell,
                    "split": "validation",
                    "post_id": [f"p{i}" for i in range(posts)],
                    "judge": base + gain + 0.05 * rng.normal(size=posts),
                    "reward": base,
                    "length": 9.0,
                    "diversity": 0.7 + gain / 10,
                    "level": level if gain == 0.6 else 0,
                    "z": 1.0,
                }
            )
        )
    best = ablation.choose(pd.concat(rows))
    for cell in (ablation.START, best):
        rows.append(
            rows[0].assign(cell=cell, split="test", post_id=[f"t{i}" for i in range(posts)])
        )
    return pd.concat(rows, ignore_index=True)[ablation.COLUMNS]


def test_the_grid_is_every_combination_and_changes_nothing_else():
    grid = ablation.grid(CFG)
    assert list(grid) == ["lam=0 beta=0", "lam=0 beta=1", "lam=1 beta=0", "lam=1 beta=1"]
    for name, section in grid.items():
        assert (
            name == f"lam={section.lam:g} beta={section.beta:g}"
            and section.steps == CFG.ablation.steps
        )
    one, other = (dataclasses.asdict(grid[name]) for name in ("lam=0 beta=0", "lam=1 beta=0"))
    assert {key for key in one if one[key] != other[key]} == {"lam"}
    empty = dataclasses.replace(CFG, ablation=dataclasses.replace(CFG.ablation, grid={}))
    with pytest.raises(UserError, match="smoke.yaml: ablation.grid is empty"):
        ablation.grid(empty)


def test_the_choice_is_made_on_validation_and_avoids_what_the_detector_suspects():
    assert ablation.choose(prompts(0)) == "lam=1 beta=0"
    assert ablation.choose(prompts(0, level=2)) == "lam=0 beta=1"
    table = prompts(0)
    table.loc[table["split"].eq("test"), "judge"] = 99.0  # whatever test posts say
    assert ablation.choose(table) == "lam=1 beta=0"
    gains = ablation.winners_curse(prompts(0)).set_index("metric")
    assert (
        gains.loc["judge", "validation"] == pytest.approx(0.6, abs=0.1)
        and gains.loc["judge", "test"] == 0
    )


def test_cells_hold_means_and_errors_of_prompts(tmp_path):
    table = prompts(1)
    ablation.save(table, tmp_path)
    cells = pd.read_csv(tmp_path / "cells.csv").set_index(["cell", "split"])
    part = table[table["cell"].eq("lam=0 beta=1") & table["split"].eq("validation")]["judge"]
    assert cells.loc[("lam=0 beta=1", "validation"), "judge"] == pytest.approx(
        part.mean(), rel=1e-5
    )
    assert cells.loc[("lam=0 beta=1", "validation"), "judge_se"] == pytest.approx(
        part.std() / 8**0.5, rel=1e-5
    )
    assert cells["chosen"].groupby("cell").first().sum() == 1


@pytest.mark.parametrize("seeds", [(42,), (42, 123, 456)])
def test_the_figure_hatches_what_is_not_shown_and_names_missing_seeds(tmp_path, seeds):
    cfg, paths = dataclasses.replace(CFG, seeds=seeds), Paths("smoke", tmp_path)
    with pytest.raises(UserError, match="prompts.csv missing: s42"):
        ablation_figure.heatmaps(paths, cfg)
    for seed in seeds:
        ablation.save(prompts(seed), paths.evaluation("ablation", seed))
    picture = ablation_figure.heatmaps(paths, cfg, 1)
    picture.figure.draw_without_rendering()
    data = picture.data[picture.data["metric"].eq("judge")].set_index("cell")
    hatched = [patch for patch in picture.figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == (
        4 if len(seeds) == 1 else (~(data["low"].gt(0) | data["high"].lt(0))).sum()
    )
    if len(seeds) > 1:
        frames = [
            prompts(seed)
            .query("split == 'validation'")
            .pivot(index="post_id", columns="cell", values="judge")
            for seed in seeds
        ]
        d = np.array([frame["lam=1 beta=0"] - frame["start"] for frame in frames])
        claim = stats.method_claim(d)
        assert (
            data.loc["lam=1 beta=0", "low"] == pytest.approx(claim.low, rel=1e-3) and claim.low > 0
        )


def test_the_frame_is_around_what_was_chosen_not_around_what_the_detector_suspects(tmp_path):
    cfg, paths = dataclasses.replace(CFG, seeds=(42, 123)), Paths("smoke", tmp_path)
    ablation.save(prompts(42), paths.evaluation("ablation", 42))
    ablation.save(
        prompts(123, level=2), paths.evaluation("ablation", 123)
    )  # its best cell is suspicious
    judge = ablation_figure.heatmaps(paths, cfg).figure.axes[0]
    framed = {
        (patch.get_x(), patch.get_y()) for patch in judge.patches if patch.get_linewidth() > 1
    }
    assert framed == {(0, 1), (1, 0)}  # columns lam 0, 1; rows beta 0, 1
