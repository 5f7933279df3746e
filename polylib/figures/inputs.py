"""Two pictures of what training stands on: the engagement in the data, and the rewards fitted to it.

Both show themselves in notebooks 01 and 02; the numbers behind them are in data/ and validation.csv.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D

from polylib.figures.style import STYLE, Picture, canvas, finish

TARGETS = {
    "pair_accuracy_engagement": ("engagement after control", "#0072B2", "o"),
    "pair_accuracy_latent": ("simulated quality (secret)", "#009E73", "s"),
}


def engagement(rows: pd.DataFrame, kind: str, columns: int = 2) -> Picture:
    """Likes against the author's followers, before and after the control. Bins of followers (dots: means with
    95 % intervals over replies): what slopes on the left should lie flat on the right. kind: simulated or
    observed."""
    known = rows.dropna(subset=["reply_author_followers"])
    known = known.assign(
        raw=np.sign(known["reply_likes"]) * np.log1p(known["reply_likes"].abs()),
        followers=known["reply_author_followers"] + 1,
    )
    known["raw"] -= known.groupby("tweet_id")["raw"].transform("mean")
    known["bin"] = pd.qcut(
        known["followers"].rank(method="first"), min(8, max(1, len(known))), labels=False
    )
    panels = {"raw": "log likes, minus the post's mean", "engagement": "engagement after control"}
    with rc_context(STYLE):
        figure, axes = canvas(1, 2, 2.5, columns, sharey=True)
        for ax, (name, label) in zip(axes.flat, panels.items(), strict=True):
            part = known.groupby("bin").agg(
                x=("followers", "median"), y=(name, "mean"), sd=(name, "std"), n=(name, "size")
            )
            ax.plot(
                known["followers"], known[name], ".", color="#BBBBBB", ms=1.5, alpha=0.5, zorder=1
            )
            ax.errorbar(
                part["x"],
                part["y"],
                yerr=1.96 * part["sd"] / np.sqrt(part["n"]),
                fmt="o-",
                color="#0072B2",
                ms=4,
                lw=1.2,
            )
            ax.set(title=label, xscale="log", xlabel="followers of the author of the reply")
        finish(
            figure,
            f"{len(known)} replies by authors of known followers, {kind} engagement.",
            columns,
        )
    return Picture("engagement", figure, known[["reply_id", "followers", "raw", "engagement"]])


def rewards(validation: pd.DataFrame, kind: str, columns: int = 2) -> Picture:
    """Share of reply pairs ranked as people's likes do, with 95 % intervals, rewards above, baselines below."""
    data = validation[validation["metric"].isin(TARGETS)].dropna(subset=["value"])
    fitted = set(
        validation.loc[validation["metric"].eq("mean_human"), "model"]
    )  # baselines have no controls
    models = sorted(dict.fromkeys(data["model"]), key=lambda name: name not in fitted)
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 1.1 + 0.2 * len(models), columns)
        ax = axes[0, 0]
        accuracy_panel(ax, data, models, TARGETS)
        ax.set_yticks(range(len(models)), [name.replace("_", " ") for name in models])
        ax.set(xlabel="pairs of replies to one post that are ranked right")
        shown = {
            metric: style for metric, style in TARGETS.items() if metric in set(data["metric"])
        }
        finish(
            figure,
            f"Held-out posts, {kind} engagement; the line is chance.",
            columns,
            extra=accuracy_legend(shown),
        )
    return Picture("reward_validation", figure, data)


def accuracy_panel(
    ax, data: pd.DataFrame, models: list[str], targets: dict[str, tuple[str, str, str]]
) -> None:
    """Draw value with lo and hi of every model's (rows, top down) pair accuracies, chance as a line. targets:
    {metric: (label, colour, marker)}, two of them side by side."""
    for offset, (metric, (_, color, marker)) in zip((-0.15, 0.15), targets.items(), strict=True):
        for row in data[data["metric"].eq(metric)].itertuples():
            y = models.index(row.model) + offset
            ax.plot([row.lo, row.hi], [y, y], color=color, lw=1.2)
            ax.plot(row.value, y, marker, color=color, ms=3.5)
    ax.axvline(0.5, color="#000000", lw=0.8)
    ax.set_ylim(len(models) - 0.5, -0.5)


def accuracy_legend(targets: dict[str, tuple[str, str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=marker, ms=3.5, label=label)
        for label, color, marker in targets.values()
    ]
