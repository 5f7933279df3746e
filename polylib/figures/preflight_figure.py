"""Best of n by the reward, before any training: one run's while it is measured, or all runs of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from polylib.figures.style import STYLE, Picture, canvas, finish
from polylib.hacking.preflight import COLUMNS, flights, sentence

LOOKS = {
    "proxy": ("#D55E00", "--", "o", "reward (picks)"),  # that is optimised
    "judge": ("#0072B2", "-", "s", "judge (scores the pick)"),
}  # that is not
SCALES = {"proxy": "reward", "judge": "judge score"}


def picture(table: pd.DataFrame, note: str, columns: int = 2) -> Picture:
    """Reward (dashed) and judge (solid) of the reward's best of n, before any training: runs thin with their 95 % bands
    over posts, the mean bold; crosses where a run's judge falls. What a policy can win is where the judge still rises.

    table: of `preflight.preflight`, or several runs' with a column seed. The second row of ticks is the square root of
    the KL bound log n - (n-1)/n, the distance that a trained policy is measured in."""
    runs = table if "seed" in table else table.assign(seed=0)
    kl = runs.groupby("n")["kl"].first()
    with rc_context(STYLE):
        drawing, axes = canvas(
            *((1, 2) if columns == 2 else (2, 1)), 3.0 if columns == 2 else 5.0, columns
        )
        for ax, (name, (color, dash, marker, _)) in zip(axes.flat, LOOKS.items(), strict=True):
            for _, part in runs.groupby("seed"):
                ax.fill_between(
                    part["n"], part[f"{name}_lo"], part[f"{name}_hi"], color=color, alpha=0.08, lw=0
                )
                ax.plot(part["n"], part[name], color=color, lw=0.8, alpha=0.6)
            if name == "judge":
                fallen = runs[runs["falls"].astype(bool)]
                ax.plot(fallen["n"], fallen[name], "x", color="#000000", ms=5, mew=1.2, zorder=4)
            mean = runs.groupby("n")[name].mean()
            ax.plot(mean.index, mean, color=color, linestyle=dash, marker=marker, ms=4, lw=2)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(kl.index, [f"{n}\n{np.sqrt(far):.1f}" for n, far in kl.items()])
            ax.margins(y=0.12)
            ax.set(
                xlabel="samples the reward picks from, n\nand √KL bound, √nats", ylabel=SCALES[name]
            )
        handles = [
            Line2D([], [], color=c, linestyle=dash, marker=m, ms=4, lw=2, label=label)
            for c, dash, m, label in LOOKS.values()
        ]
        handles.append(
            Line2D(
                [], [], color="#000000", linestyle="none", marker="x", ms=5, label="the judge falls"
            )
        )
        said = f" {table.attrs['line'].capitalize()}." if "line" in table.attrs else ""
        finish(drawing, f"{note} Bands: 95 %, over posts.{said}", columns, extra=handles)
    return Picture(
        "preflight", drawing, table[[name for name in ("seed", *COLUMNS) if name in table]]
    )


def figure(results, columns: int = 2) -> Picture:
    """`picture` of every run of a study, with what they say together."""
    table, posts = flights(results), results.cfg.reward_model.preflight_posts
    return picture(
        table,
        f"{sentence(table)}. First {posts} validation posts. Preset {results.cfg.preset}, study "
        f"{results.paths.study}, {results.engagement} engagement, {results.commit}.",
        columns,
    )
