"""Quality against diversity, and the area a method commands there.

Small marks are single runs, large ones their mean; people are black.
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
from polylib.figures.style import (
    METHOD_STYLE,
    RUN,
    STYLE,
    Picture,
    canvas,
    finish,
    line,
    point,
    small,
)
from polylib.names import METRICS, ordered

AXES = ["diversity", "judge_mean"]
MARGIN = 0.1  # of the range: a method that is worst on one axis still has an area


def quality_diversity(results: Results, columns: int = 2) -> Picture:
    """Judge score against diversity; a method sampled at several temperatures is a curve. SFT's (grey) is what
    scattering alone buys: above it a method is worth its training. The star is where people are, which is the target.

    In the legend: hypervolume at the temperatures that all methods have, see `hypervolumes`."""
    points, (x, y) = _by_temperature(results), AXES
    own = points[
        points["temperature"].isna() | points["temperature"].eq(results.cfg.sampling.temperature)
    ]
    volumes = hypervolumes(results).set_index("method")
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 3.7 if columns == 2 else 3.9, columns)
        ax = axes[0, 0]
        for method in ordered(points["method"]):
            curve = points[points["method"].eq(method)].groupby("temperature")[[x, y]].mean()
            if len(curve) > 1:
                ax.plot(curve[x], curve[y], **line(method, zorder=2))
                ax.plot(curve[x], curve[y], **point(method, markersize=4.5))
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
            part = own[own["method"].eq(method)]
            if len(part) > 1:
                ax.plot(part[x], part[y], **small(method))
            ax.plot(part[x].mean(), part[y].mean(), **point(method, zorder=4))
        ax.set(xlabel=METRICS[x], ylabel=METRICS[y])
        ax.margins(0.1, 0.12)
        ax.xaxis.set_major_locator(MaxNLocator(4 * columns))
        labels = {
            method: f"{METHOD_STYLE[method]['label']} {_area(volumes.loc[method])}"
            for method in volumes.index
        }
        finish(
            figure,
            f"{results.note}. Numbers: hypervolume ×1000 beyond the worst corner, 95 % over runs. "
            "Lines: by temperature, on SFT's grey one with its values.",
            columns,
            ordered(points["method"]),
            [RUN] if len(results.cfg.seeds) > 1 else [],
            kind="point",
            labels=labels,
            most=4 if columns == 2 else 2,
        )
    data = points.merge(
        volumes["hypervolume"].rename("method_hypervolume"), on="method", how="left"
    )
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


def _area(row: pd.Series) -> str:
    """Whole numbers where they say enough: a legend of one column has no room for more."""
    digits = 0 if 1000 * row["hypervolume"] >= 10 else 1
    area, low, high = (f"{1000 * row[name]:.{digits}f}" for name in ("hypervolume", "low", "high"))
    return f"{area} [{low}, {high}]" if np.isfinite(row["low"]) else area
