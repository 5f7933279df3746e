"""Quality against diversity, and the area a method commands there.

Large marks are means at the training temperature with their 95 % intervals; people are black.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy.stats import ttest_ind

from polylib import stats
from polylib.analysis.results import UNSEEDED, Results, means
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish, line, point
from polylib.names import METRICS, ordered

AXES = ["diversity", "judge_mean"]
MARGIN = 0.1  # of the range: a method that is worst on one axis still has an area


def quality_diversity(results: Results, columns: int = 2) -> Picture:
    """Judge score against diversity; a method sampled at several temperatures is a curve. SFT's (grey) is what
    scattering alone buys: above it a method is worth its training. The star is where people are, which is the target.

    Bars are the intervals of the main table. The CSV also holds `hypervolumes`."""
    points, (x, y) = _by_temperature(results), AXES
    cells = {axis: results.cells(axis) for axis in AXES}
    rows = []
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 3.9, columns)
        ax = axes[0, 0]
        for method in ordered(points["method"]):
            curve = points[points["method"].eq(method)].groupby("temperature")[[x, y]].mean()
            ax.plot(curve[x], curve[y], **line(method, zorder=2, lw=1.1))
            ax.plot(curve[x], curve[y], **point(method, markersize=3.5))
            for temperature, row in curve.iterrows() if method == "sft" else []:
                ax.annotate(
                    f"T={temperature:g}",
                    (row[x], row[y]),
                    xytext=(0, -6),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=6.5,
                    color=METHOD_STYLE["sft"]["color"],
                    zorder=5,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
            found = [stats.interval(stats.matrix(cells[axis], method)[2]) for axis in AXES]
            (right, up), bars = zip(*((mean, claim.high - mean) for mean, claim in found))
            ax.errorbar(
                right, up, bars[1], bars[0], elinewidth=0.7, capsize=1.8, **point(method, zorder=4)
            )
            rows.append({"method": method, f"{x}_half": bars[0], f"{y}_half": bars[1]})
        ax.set(xlabel=METRICS[x], ylabel=METRICS[y])
        ax.margins(0.05, 0.06)
        ax.xaxis.set_major_locator(MaxNLocator(4 * columns))
        over = "runs and posts" if len(results.cfg.seeds) > 1 else "posts (one run)"
        finish(
            figure,
            f"{results.note}. Bars: 95 % over {over}; people's over posts. Lines and small marks: other "
            "temperatures, those of SFT (grey) written out.",
            columns,
            ordered(points["method"]),
            kind="point",
            most=0 if columns == 2 else 3,
        )
    volumes = hypervolumes(results)[["method", "hypervolume"]]
    data = points.merge(pd.DataFrame(rows), on="method").merge(volumes, on="method", how="left")
    return Picture("quality_diversity", figure, data)


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Area dominated by points (n, 2), larger being better on both axes, beyond the corner `reference` (2,); points
    that do not lie beyond it on both axes add nothing (Zitzler & Thiele 1999)."""
    beyond = points[(points > reference).all(axis=1)]
    area, top = 0.0, reference[1]
    for x, y in beyond[
        np.lexsort((-beyond[:, 1], -beyond[:, 0]))
    ]:  # from the right: a step up each time y rises
        if y > top:
            area += (x - reference[0]) * (y - top)
            top = y
    return float(area)


def hypervolumes(results: Results) -> pd.DataFrame:
    """method, hypervolume, low, high, gain, gain_low, gain_high: a row a method.

    hypervolume is of the temperatures that every method was sampled at, low and high its 95 % t interval over runs
    (NaN at one run); gain over SFT with Welch's interval, the runs of both being independent samples. The reference
    lies a tenth of the range beyond the worst trained cell on each axis, so areas of different studies do not
    compare."""
    points = _by_temperature(results)
    points = points[~points["method"].isin(UNSEEDED)].dropna(subset=AXES)
    worst, best = points[AXES].min().to_numpy(), points[AXES].max().to_numpy()
    reference = worst - MARGIN * (best - worst)
    common = set.intersection(*(set(part["temperature"]) for _, part in points.groupby("method")))
    rows, sft = [], None
    for method in ordered(points["method"]):
        shared = points[points["method"].eq(method) & points["temperature"].isin(common)]
        runs = shared.groupby("seed")[AXES]
        areas = np.array([hypervolume(run.to_numpy(), reference) for _, run in runs])
        mean, low, high = stats.t_interval(areas)
        sft = areas if method == "sft" else sft
        gain, gain_low, gain_high = _welch(areas, sft) if method != "sft" else [np.nan] * 3
        rows.append(
            {
                "method": method,
                "hypervolume": mean,
                "low": low,
                "high": high,
                "gain": gain,
                "gain_low": gain_low,
                "gain_high": gain_high,
            }
        )
    return pd.DataFrame(rows)


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(mean a - mean b, low, high): 95 %, variances of their own; NaN interval for one run."""
    if min(len(a), len(b)) < 2:
        return float(a.mean() - b.mean()), np.nan, np.nan
    found = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return float(a.mean() - b.mean()), float(found.low), float(found.high)


def _by_temperature(results: Results) -> pd.DataFrame:
    """method, seed, temperature (NaN: people) and AXES: a row a cell and temperature."""
    rows = [means(results, AXES).query("method == 'human'").assign(temperature=np.nan)]
    for temperature in sorted({t for _, _, t in results.frames if t is not None}):
        found = means(results, AXES, temperature).query("method != 'human'")
        rows.append(found.assign(temperature=temperature))
    return pd.concat(rows, ignore_index=True)
