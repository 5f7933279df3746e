"""Reward and judge against the distance from the start, with Gao's curves and the step where the judge was best."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D

from polylib.analysis.overoptimisation import FEW, fits
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, finish, panels
from polylib.names import ordered


def picture(path: pd.DataFrame, stop: pd.DataFrame, note: str, columns: int = 2) -> Picture:
    """Gain of reward (dashed, hollow) and judge (solid) against sqrt(KL), a panel a method, runs as marks, Gao's curve
    as line. The vertical line is where the judge's mean was best; `stop_here` says whether going on lost anything."""
    methods, curves = ordered(path["method"]), fits(path)
    with rc_context(STYLE):
        figure, axes = panels(len(methods), columns, 2.0, sharey=True)
        for ax, method in zip(axes.flat, methods, strict=False):
            part, color = path[path["method"].eq(method)], METHOD_STYLE[method]["color"]
            ax.axhline(0, color="#000000", lw=0.6)
            ax.axvline(
                stop.loc[stop["method"].eq(method), "d"].iloc[0],
                color=color,
                lw=5,
                alpha=0.18,
                zorder=0,
            )
            for scorer, face, dash in (("proxy", "white", "--"), ("judge", color, "-")):
                ax.plot(
                    part["d"],
                    part[scorer],
                    METHOD_STYLE[method]["marker"],
                    color=color,
                    ms=4,
                    mfc=face,
                    mew=0.9,
                )
                alpha, beta = curves.loc[
                    curves["method"].eq(method) & curves["scorer"].eq(scorer), ["alpha", "beta"]
                ].iloc[0]
                if np.isfinite(alpha):
                    x = np.linspace(1e-3, part["d"].max(), 200)
                    ax.plot(x, x * (alpha - beta * np.log(x)), color=color, linestyle=dash, lw=1.4)
                else:
                    mean = part.groupby("step")[["d", scorer]].mean()
                    ax.plot(mean["d"], mean[scorer], color=color, linestyle=dash, lw=1.0)
            ax.set_title(METHOD_STYLE[method]["label"])
            ax.margins(0.08, 0.1)
        for ax in axes[-1]:
            ax.set_xlabel("√KL to the start, √nats")
        for ax in axes[:, 0]:
            ax.set_ylabel("gain over the start")
        handles = [
            Line2D(
                [],
                [],
                color="#555555",
                linestyle="--",
                marker="o",
                mfc="white",
                ms=4,
                label="reward, sd",
            ),
            Line2D([], [], color="#555555", marker="o", ms=4, label="judge, log-odds"),
            Line2D([], [], color="#555555", lw=5, alpha=0.25, label="best judge score"),
        ]
        form = (
            "Lines: d(α − β log d)." if curves["alpha"].notna().any() else f"Lines: means ({FEW})."
        )
        finish(figure, f"{note}. Validation posts. {form}", columns, extra=handles)
    data = path.merge(stop[["method", "step"]].assign(stop=True), on=["method", "step"], how="left")
    return Picture("over_optimisation", figure, data.assign(stop=data["stop"].eq(True)))
