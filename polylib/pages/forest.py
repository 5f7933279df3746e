"""Differences to SFT with both claims: thick bars for these checkpoints (posts are the sample), thin ones for the
method (runs are a sample too; absent at one seed).
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from polylib.claims import effects as compare
from polylib.claims import stats
from polylib.claims.results import UNSEEDED, Results
from polylib.names import METRICS, ordered
from polylib.pages.style import METHOD_STYLE, STYLE, Picture, canvas, finish, point

KEY = ("judge_mean", "reward_mean", "diversity", "effective_diversity", "diversity_tfidf", "relevance", "length_words")
THICK = Line2D([], [], color="#555555", lw=3.2, alpha=0.55, label="these checkpoints")
THIN = Line2D([], [], color="#555555", lw=0.9, label="the method")


def forest(results: Results, columns: int = 2, metrics: list[str] | None = None) -> Picture:
    """A panel for each metric, in its own unit: for the few metrics that matter most (default: KEY, as far as every
    file has them)."""
    data = compare.effects(results, metrics or [name for name in KEY if name in results.columns])
    panels, methods = list(dict.fromkeys(data["metric"])), ordered(data["method"])
    across = min(len(panels), 3 if columns == 2 else 1)
    down = -(-len(panels) // across)
    with rc_context(STYLE):
        figure, axes = canvas(down, across, 0.9 + down * (0.45 + 0.21 * len(methods)), columns, sharey=True)
        for ax, metric in zip(axes.flat, panels, strict=False):
            for i, method in enumerate(methods):
                row = data[data["metric"].eq(metric) & data["method"].eq(method)].iloc[0]
                _bars(ax, row, i, METHOD_STYLE[method]["color"], 3.2)
                ax.plot(row["effect"], i, **point(method, markersize=5.5))
            ax.axvline(0, color="#000000", lw=0.8)
            ax.set_title(METRICS[metric])
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4))
        for ax in list(axes.flat)[len(panels):]:
            ax.set_visible(False)
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        finish(figure, f"Difference to SFT, 95 % intervals. {_missing(results)}.", columns, extra=_legend(results))
    return Picture("forest", figure, data)


def every_metric(results: Results, columns: int = 2, metrics: list[str] | None = None,
                 control: str = "sft") -> Picture:
    """All metrics in one picture: a row a metric, a panel a method, effects in standard deviations of SFT over posts.

    metrics: default all with a label that every cell has. A metric that does not vary or that too few posts define has
    no mark; the CSV has the reason. Bars that leave the axis are cut at its end."""
    metrics = metrics or [name for name in METRICS if name in results.columns]
    methods = [name for name in ordered(results.methods) if name not in (control, *UNSEEDED)]
    data = pd.DataFrame([_standardised(results, metric, method, control) for metric in metrics for method in methods])
    reach = data[["checkpoints_low", "checkpoints_high"]].abs().max(axis=None)
    reach = 1.25 * reach if np.isfinite(reach) else 1.0
    with rc_context(STYLE):
        figure, axes = canvas(1, len(methods), 1.1 + 0.165 * len(metrics), columns, sharey=True, sharex=True)
        for ax, method in zip(axes.flat, methods, strict=True):
            part = data[data["method"].eq(method)].set_index("metric")
            for i, metric in enumerate(metrics):
                _bars(ax, part.loc[metric], i, METHOD_STYLE[method]["color"], 2.6)
                ax.plot(part.loc[metric, "effect"], i, **point(method, markersize=4, markeredgewidth=0.4))
            ax.axvline(0, color="#000000", lw=0.8)
            ax.set_title(METHOD_STYLE[method]["label"], fontsize=8 if columns == 2 else 6)
            ax.set(ylim=(len(metrics) - 0.5, -0.5), xlim=(-reach, reach))
            ax.xaxis.set_major_locator(MaxNLocator(3 if columns == 2 else 2, symmetric=True, integer=reach > 1))
            ax.tick_params(axis="x", labelsize=7 if columns == 2 else 5.5)
        axes[0, 0].set_yticks(range(len(metrics)), [METRICS.get(name, name) for name in metrics],
                              fontsize=7 if columns == 2 else 5.5)
        finish(figure, "Difference to SFT in standard deviations of SFT over posts, 95 % intervals, not adjusted for "
               f"the number of metrics; long bars are cut. {_missing(results)}.", columns, extra=_legend(results))
    return Picture("forest_all", figure, data)


def _standardised(results: Results, metric: str, method: str, control: str) -> dict:
    cells = results.cells(metric)
    found = stats.compare(cells, method, control)
    sd = float(pd.DataFrame(stats.matrix(cells, control)[2]).std(axis=1).mean())  # posts without a value left out
    unit = sd if sd > 1e-12 else np.nan
    row = {"metric": metric, "method": method, "unit": unit, "effect": found.effect / unit}
    for name, claim in (("checkpoints", found.these_checkpoints), ("method", found.method)):
        row |= {f"{name}_low": claim.low / unit, f"{name}_high": claim.high / unit, f"{name}_reason": claim.reason}
    if not np.isfinite(unit):
        row["checkpoints_reason"] = row["checkpoints_reason"] or "SFT does not vary over posts"
    return row | {"seeds": found.seeds, "prompts": found.prompts}


def _bars(ax, row: pd.Series, y: int, color: str, width: float) -> None:
    ax.plot([row["method_low"], row["method_high"]], [y, y], color=color, lw=0.9)
    ax.plot([row["checkpoints_low"], row["checkpoints_high"]], [y, y], color=color, lw=width, alpha=0.55,
            solid_capstyle="butt")


def _legend(results: Results) -> list[Line2D]:
    return [THICK, THIN] if len(results.cfg.seeds) > 1 else [THICK]


def _missing(results: Results) -> str:
    return results.note if len(results.cfg.seeds) > 1 else f"{results.note}. {stats.ONE_SEED.capitalize()}"
