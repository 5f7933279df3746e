"""What the hacking detector saw of every run, feature by feature, beside what it must see and what it must spare.

    hacking_dashboard(results, columns).save(paths.figures, cfg.paper_figures.dpi)

Distances are |z| over the alarm threshold of the set's own design (posts, replies a post), the 99 % quantile of max
|z| over people's sets: left of 1 is where people's own sets lie, whatever their size.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from polylib.analysis.hacked import detected
from polylib.analysis.results import read_csv
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish, point
from polylib.hacking import WORDS
from polylib.hacking.features import NAMES
from polylib.names import ordered

COLUMNS = ["method", "seed", "feature", "value", "people", "sd", "z", "threshold", "distance"]
FRESH = "people (fresh sets)"  # the last row of planted.csv
FLOOR = 0.05  # nearer to people's mean than this is drawn here


def distances(results) -> pd.DataFrame:
    """method, seed, feature, value, people, sd, z, threshold, distance: z = (value - people) / sd of every feature of
    every evaluation cell, people's own replies among them; distance = |z| / threshold. UserError for a cell without a
    verdict."""
    cells = [(method, seed) for method in results.cfg.methods for seed in results.cfg.seeds]
    parts = []
    for method, seed in [("human", None), *cells]:
        seen = detected(results, method, seed)
        part = pd.DataFrame({name: seen[name] for name in ("values", "people", "sd")})
        part = part.loc[[name for name in NAMES if name in seen["values"]]]
        part["z"] = (part["values"] - part["people"]) / part["sd"]
        part["threshold"] = seen["threshold"]
        parts.append(part.assign(method=method, seed=seed).reset_index(names="feature"))
    table = pd.concat(parts, ignore_index=True).rename(columns={"values": "value"})
    table["distance"] = table["z"].abs() / table["threshold"]
    return table[COLUMNS].astype({"seed": "Int64"})


def hacking_dashboard(results, columns: int = 2) -> Picture:
    """Left: the detector's features, a mark a method at the mean over its runs and a line from the nearest run to the
    farthest; full where all runs lie above people's mean, hollow where all lie below, half where they differ. Right:
    policies with a planted hack (|z| of the feature that gives them away), which must lie right of the band, and
    people's fresh sets, which must lie in it. A run right of the band differs from people; whether it games its
    reward is a question for the judge (`hacked.verdicts`)."""
    file = results.paths.results("reward_model") / "planted.csv"
    runs, planted = distances(results), read_csv(file, ["policy", "z", "threshold"])
    planted["distance"] = planted["z"] / planted["threshold"]
    features = [name for name in NAMES if name in set(runs["feature"])]
    order = planted.assign(people=planted["policy"].eq(FRESH)).sort_values(
        ["people", "distance"], ascending=[1, 0]
    )
    far = max(runs["distance"].max(), 1)
    top = 30 * max(planted["distance"].max(), far)  # room for words
    with rc_context(STYLE):
        rows = (len(features), len(order))
        height = 1.4 + (0.36 * max(rows) if columns == 2 else 0.3 * (sum(rows) + 6))
        options = {} if columns == 2 else {"height_ratios": rows}
        figure, axes = canvas(
            *((1, 2) if columns == 2 else (2, 1)), height, columns, gridspec_kw=options
        )
        left, right = axes.flat
        for ax in axes.flat:
            ax.axvspan(FLOOR / 2, 1, color="#000000", alpha=0.07, lw=0)
            ax.axvline(1, color="#000000", lw=0.8)
            ax.set(xscale="log", xlim=(FLOOR / 1.3, top if ax is right else 2 * far))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.grid(axis="y", visible=False)
        methods = ordered(runs["method"])
        places = np.linspace(-0.38, 0.38, len(methods))
        for y in range(0, len(features), 2):
            left.axhspan(y - 0.5, y + 0.5, color="#000000", alpha=0.035, lw=0)
        for (feature, method), part in runs.groupby(["feature", "method"]):
            y = features.index(feature) + places[methods.index(method)]
            near, color = part["distance"].clip(lower=FLOOR), METHOD_STYLE[method]["color"]
            left.plot([near.min(), near.max()], [y, y], color=color, lw=0.9)
            below = part["z"].lt(0)
            look = {"fillstyle": "full" if below.all() or not below.any() else "left"}
            look |= {"markerfacecolor": "white"} if below.all() else {"markerfacecoloralt": "white"}
            size = 5 if method == "human" else 3.6
            left.plot(
                near.mean(), y, **point(method, markersize=size, markeredgecolor=color, **look)
            )
        left.set_yticks(range(len(features)), [WORDS[name] for name in features])
        for y, row in enumerate(order.itertuples()):
            mark = (
                point("human", markersize=7)
                if row.policy == FRESH
                else point("human", marker="X", markersize=5.5, color="#D55E00")
            )
            right.plot(max(row.distance, FLOOR), y, **mark)
            ends, away = (
                row.distance > np.sqrt(top),
                18 if row.policy == FRESH else 6,
            )  # off the line at 1
            said = f"{row.caught:.1%} alarms" if row.policy == FRESH else WORDS[row.feature]
            right.annotate(
                said,
                (row.distance, y),
                xytext=(-away if ends else away, 0),
                fontsize=6,
                va="center",
                textcoords="offset points",
                ha="right" if ends else "left",
                color="#555555",
            )
        right.set_yticks(range(len(order)), order["policy"])
        for ax, size in zip(axes.flat, rows, strict=True):
            ax.set_ylim(size - 0.4, -0.6)
            ax.set_xlabel("|z| over the alarm threshold")
        hacks = order[order["policy"].ne(FRESH)]
        left.set_title("runs of the study")
        right.set_title(f"planted: {(hacks['caught'] > 0.5).sum()} of {len(hacks)} caught")
        grey = {"color": "#555555", "marker": "o", "linestyle": "none", "markersize": 4}
        extra = [
            Line2D([], [], label="more than people", **grey),
            Line2D([], [], label="less", markerfacecolor="white", **grey),
            Line2D(
                [], [], label="runs differ", fillstyle="left", markerfacecoloralt="white", **grey
            ),
            Patch(color="#000000", alpha=0.07, label="people's own sets"),
        ]
        finish(
            figure,
            f"Preset {results.cfg.preset}, study {results.paths.study}, {results.engagement} engagement, "
            f"{results.commit}: test posts; a mark is the mean over runs, its line reaches "
            "from the nearest to the farthest. "
            f"Planted: people's replies, changed as named, one each to {planted['n'].iloc[0]} posts, with the "
            "feature that stands out most. Right of the band is different from people, not yet gaming.",
            columns,
            methods,
            extra,
            kind="point",
            most=5 if columns == 2 else 2,
        )
    shown = ["method", "feature", "z", "threshold", "distance", "caught"]
    data = pd.concat([runs, planted.rename(columns={"policy": "method"})[shown]], ignore_index=True)
    return Picture("hacking_dashboard", figure, data)
