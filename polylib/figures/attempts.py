"""Several replies to one post: the chance of a good one.

Bold lines are means over runs, thin ones the runs. Bands are 95 % intervals for the method (other runs and other
posts); for people, and in a study with one run, over posts alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import NullLocator, PercentFormatter

from polylib import stats
from polylib.analysis.results import Results
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, finish, lines, panels
from polylib.names import ordered

PEOPLE = "People: posts with at least k replies, where half of them have as many."
BANDS = "Bands: 95 % for the method, over runs and posts."
ONE_RUN = "Bands: 95 % over posts; one run says nothing about the method."


def spread(cells: Mapping) -> pd.DataFrame:
    """method, seed, pass_at_k (mean of one run), mean, low, high (of its method) from {(method, seed): Series by
    prompt}.

    Prompts that any run leaves undefined do not count for the interval; a run with fewer than half of its prompts
    defined is NaN, and so is then its method."""
    rows = []
    for method in dict.fromkeys(method for method, _ in cells):
        seeds, _, values = stats.matrix(cells, method)
        known = np.isfinite(values)
        enough = known.mean(axis=1) >= 0.5
        mean, claim = stats.interval(values if enough.all() else values[:, :0])
        rows += [
            (method, seed, own[there].mean() if half else np.nan, mean, claim.low, claim.high)
            for seed, own, there, half in zip(seeds, values, known, enough, strict=True)
        ]
    columns = ["method", "seed", "pass_at_k", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"})


def pass_at_k(results: Results, columns: int = 2) -> Picture:
    """Chance that one of k replies is at least as good as a human reply at a quantile of the judge; a panel
    each."""
    quantiles = sorted(results.cfg.evaluation.judge_quantiles)
    names = (re.fullmatch(rf"pass@(\d+)_q{quantiles[0]:g}", name) for name in results.columns)
    ks = sorted(int(name[1]) for name in names if name)
    data = pd.concat(
        [
            spread(results.cells(f"pass@{k}_q{q:g}")).assign(k=k, quantile=q)
            for q in quantiles
            for k in ks
        ],
        ignore_index=True,
    )
    with rc_context(STYLE):
        figure, axes = panels(len(quantiles), columns, 1.9, 1.0, sharex=True, sharey=True)
        for ax, q in zip(axes.flat, quantiles, strict=False):
            _curves(ax, data[data["quantile"].eq(q)])
            ax.set_title(f"beats {q:.0%} of human replies")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        low = data[["pass_at_k", "low"]].min(axis=None)
        axes[0, 0].set_ylim(max(0.0, low - 0.03) if np.isfinite(low) else 0.0, 1.03)
        _k_axis(axes, ks)
        for ax in axes[:, 0]:
            ax.set_ylabel("pass@k")
        bands = BANDS if len(results.cfg.seeds) > 1 else ONE_RUN
        finish(figure, f"{results.note}. {bands} {PEOPLE}", columns, ordered(data["method"]))
    return Picture("pass_at_k", figure, data)


def _curves(ax, data: pd.DataFrame) -> None:
    markers = {m: METHOD_STYLE[m]["marker"] for m in set(data["method"])}
    lines(ax, data, "k", "pass_at_k", markersize=4.5, markers=markers)
    for method, part in data.dropna(subset="low").groupby("method"):
        band = part.groupby("k")[["low", "high"]].first()
        color = METHOD_STYLE[method]["color"]
        ax.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.1, lw=0)


def _k_axis(axes, ks: list[int]) -> None:
    """log2, labelled at the powers of two: 8 and 10 side by side would run into each other."""
    powers = [k for k in ks if np.log2(k).is_integer()]
    for ax in axes.flat:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(powers, [str(k) for k in powers])
    for ax in axes[-1]:
        ax.set_xlabel("replies a post, k")
