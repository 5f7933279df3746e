"""What each combination of loss weights does, from the files of notebook 10 alone (figure F6 of a paper).

ablation_figure.heatmaps(paths, cfg).save(paths.figures, dpi)
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn
from matplotlib import rc_context
from matplotlib.patches import Rectangle

from polylib import run, stats
from polylib.config import Config, UserError
from polylib.experiments.ablation import START, choose
from polylib.figures.style import STYLE, Picture, canvas, finish
from polylib.hacking import LEVELS

PANELS = {"judge": "judge score", "diversity": "semantic diversity", "level": "detector"}
NAMES = {
    "alpha": "α (cross-entropy)",
    "beta": "β (reward)",
    "lam": "λ (diversity)",
    "kappa": "κ (KL)",
}


def read(paths: run.Paths, cfg: Config) -> pd.DataFrame:
    """prompts.csv of every seed of the preset with a column seed. UserError naming the seeds that have none."""
    files = {seed: paths.evaluation("ablation", seed) / "prompts.csv" for seed in cfg.seeds}
    missing = [f"s{seed}" for seed, file in files.items() if not file.is_file()]
    if missing:
        raise UserError(
            f"{paths.results('evaluation')}/ablation: prompts.csv missing: {', '.join(missing)}; run "
            "`dvc repro`"
        )
    return pd.concat(
        [
            pd.read_csv(file, dtype={"post_id": str}).assign(seed=seed)
            for seed, file in files.items()
        ],
        ignore_index=True,
    )


def table(prompts: pd.DataFrame, split: str = "validation") -> pd.DataFrame:
    """cell, metric, mean, se, difference (to the start), low, high, runs, posts: a row a trained cell and metric.

    se and the interval of the difference take runs and posts as samples; at one seed se is over posts and the interval
    is NaN, because one run says nothing about the weights. level: the worst over runs."""
    part, rows = prompts[prompts["split"].eq(split)], []
    for metric in ("judge", "diversity"):
        wide = {
            cell: frame.pivot(index="seed", columns="post_id", values=metric).to_numpy(float)
            for cell, frame in part.groupby("cell", sort=False)
        }
        for cell in (name for name in wide if name != START):
            own, start = wide[cell], wide[START]
            several = len(own) > 1
            mean, se, _ = (
                stats.two_way_t(own)
                if several
                else (own.mean(), own.std(ddof=1) / own.size**0.5, 0)
            )
            claim = stats.method_claim(own - start)
            rows.append(
                {
                    "cell": cell,
                    "metric": metric,
                    "mean": mean,
                    "se": se,
                    "difference": (own - start).mean(),
                    "low": claim.low,
                    "high": claim.high,
                    "runs": len(own),
                    "posts": own.shape[1],
                }
            )
    for cell, frame in part[part["cell"].ne(START)].groupby("cell", sort=False):
        rows.append(
            {
                "cell": cell,
                "metric": "level",
                "mean": frame["level"].max(),
                "runs": frame["seed"].nunique(),
                "posts": frame["post_id"].nunique(),
            }
        )
    found = pd.DataFrame(rows)
    weights = [dict(pair.split("=") for pair in cell.split()) for cell in found["cell"]]
    return found.join(pd.DataFrame(weights, index=found.index).astype(float))


def heatmaps(paths: run.Paths, cfg: Config, columns: int = 2) -> Picture:
    """Judge, diversity and the detector's worst verdict over the grid; a sweep of one weight is one row.

    Colour: the difference to the SFT model that training started from, white at none. Text: mean ± standard error over
    runs and posts. Hatched: the difference's interval includes 0, or there is one run, which says nothing about the
    weights. Frame: the cells that a seed's `ablation.choose` takes. Raises UserError where a seed has no file."""
    prompts = read(paths, cfg)
    data, chosen = table(prompts), {choose(part) for _, part in prompts.groupby("seed")}
    keys = [name for name in NAMES if name in data][:2]
    keys = [*([] if len(keys) > 1 else [None]), *keys]  # (rows, columns)
    rows = data[keys[0]].nunique() if keys[0] else 1
    shape = (1, 3) if columns == 2 else (3, 1)
    with rc_context(STYLE):
        figure, axes = canvas(
            *shape, (0.95 + 0.42 * rows) * (1 if columns == 2 else 2.4) + 0.7, columns
        )
        for ax, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
            part, level = data[data["metric"].eq(metric)], metric == "level"
            reach = max(part["difference"].abs().max(), 1e-9)
            wide = part.assign(
                text=[
                    LEVELS[int(row.mean)] if level else f"{row.mean:.2f}\n±{row.se:.2f}"
                    for row in part.itertuples()
                ],
                row=part[keys[0]] if keys[0] else 0,
            )
            grid = {
                name: wide.pivot(index="row", columns=keys[1], values=name)
                for name in ("mean", "difference", "low", "high", "text", "cell")
            }
            ends = (
                {"vmin": 0, "vmax": 5, "cmap": "Greys"}
                if level
                else {"vmin": -reach, "vmax": reach, "cmap": "PuOr"}
            )
            seaborn.heatmap(
                grid["mean" if level else "difference"],
                annot=grid["text"],
                fmt="",
                cbar=False,
                ax=ax,
                linewidths=0.6,
                annot_kws={"fontsize": 5.5},
                **ends,
            )
            unsure = ~(grid["low"].gt(0) | grid["high"].lt(0)) & (not level)
            framed = grid["cell"].isin(chosen) & (metric == "judge")
            hatch, frame = (
                {"ec": "#888888", "lw": 0, "hatch": "///", "alpha": 0.35},
                {"ec": "#000000", "lw": 1.6},
            )
            for marks, style in ((unsure, hatch), (framed, frame)):
                for y, x in np.argwhere(marks.to_numpy()):
                    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, zorder=2.5, **style))
            ax.invert_yaxis()
            ax.set(title=title, xlabel=NAMES[keys[1]], ylabel="")
            ax.tick_params(length=0, labelleft=bool(keys[0]))
            ax.tick_params(axis="y", rotation=0)
            ax.grid(visible=False)
        for ax in axes[:, 0]:
            ax.set_ylabel(NAMES[keys[0]] if keys[0] else "")
        finish(figure, _note(data, paths, cfg), columns)
    return Picture("ablation", figure, data)


def _note(data: pd.DataFrame, paths: run.Paths, cfg: Config) -> str:
    runs = "seeds " if len(cfg.seeds) > 1 else "one seed, "
    return (
        f"n = {data['posts'].max():.0f} validation posts × {cfg.ablation.samples} replies, {runs}"
        f"{', '.join(map(str, cfg.seeds))}, {cfg.ablation.steps} steps, T = {cfg.sampling.temperature:g}, preset "
        f"{cfg.preset}, study {paths.study}. Colour: difference to SFT. Hatched: 95 % interval over runs and posts "
        "includes 0, or one run. Frame: a seed's best judge score among cells that its detector does not suspect, "
        "if any: partly luck; cells.csv has the gain on test posts."
    )
