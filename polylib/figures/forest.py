"""Differences to SFT with both claims: thick bars for these checkpoints (posts are the sample), thin ones for the
method (runs are a sample too; absent at one seed).
"""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from polylib import stats
from polylib.analysis import effects as compare
from polylib.analysis.results import Results
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, finish, panels, point
from polylib.names import METRICS, ordered

KEY = (
    "judge_mean",
    "reward_mean",
    "diversity",
    "effective_diversity",
    "diversity_tfidf",
    "relevance",
    "length_words",
)
THICK = Line2D([], [], color="#555555", lw=3.2, alpha=0.55, label="these checkpoints")
THIN = Line2D([], [], color="#555555", lw=0.9, label="the method")


def forest(results: Results, columns: int = 2, metrics: list[str] | None = None) -> Picture:
    """A panel for each metric, in its own unit: for the few metrics that matter most (default: KEY, as far as every
    file has them)."""
    data = compare.effects(results, metrics or [name for name in KEY if name in results.columns])
    drawn, methods = list(dict.fromkeys(data["metric"])), ordered(data["method"])
    with rc_context(STYLE):
        figure, axes = panels(len(drawn), columns, 0.45 + 0.21 * len(methods), sharey=True)
        for ax, metric in zip(axes.flat, drawn, strict=False):
            for i, method in enumerate(methods):
                row = data[data["metric"].eq(metric) & data["method"].eq(method)].iloc[0]
                _bars(ax, row, i, METHOD_STYLE[method]["color"], 3.2)
                ax.plot(row["effect"], i, **point(method, markersize=5.5))
            ax.axvline(0, color="#000000", lw=0.8)
            ax.set_title(METRICS[metric])
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        finish(
            figure,
            f"Difference to SFT, 95 % intervals. {_missing(results)}.",
            columns,
            extra=_legend(results),
        )
    return Picture("forest", figure, data)


def _bars(ax, row: pd.Series, y: int, color: str, width: float) -> None:
    ax.plot([row["method_low"], row["method_high"]], [y, y], color=color, lw=0.9)
    ax.plot(
        [row["checkpoints_low"], row["checkpoints_high"]],
        [y, y],
        color=color,
        lw=width,
        alpha=0.55,
        solid_capstyle="butt",
    )


def _legend(results: Results) -> list[Line2D]:
    return [THICK, THIN] if len(results.cfg.seeds) > 1 else [THICK]


def _missing(results: Results) -> str:
    return (
        results.note
        if len(results.cfg.seeds) > 1
        else f"{results.note}. {stats.ONE_SEED.capitalize()}"
    )
