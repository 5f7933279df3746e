"""Best of n by the reward, before any training: one run's while it is measured, or all runs of a study."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from polylib.claims.preflight import COLUMNS, flights, sentence
from polylib.pages.style import STYLE, Picture, canvas, finish

LOOKS = {"proxy": ("#D55E00", "--", "o", "reward (picks)"),  # that is optimised
         "judge": ("#0072B2", "-", "s", "judge (scores the pick)")}  # that is not
SCALES = {"proxy": "reward", "judge": "judge score"}


def picture(table: pd.DataFrame, note: str, columns: int = 2) -> Picture:
    """Reward (dashed) and judge (solid) of the reward's best of n, with 95 % bands and Gao's curve (dotted). What a
    policy can win is where the judge still rises."""
    with rc_context(STYLE):
        drawing, axes = canvas(*((1, 2) if columns == 2 else (2, 1)), 2.7 if columns == 2 else 4.6, columns)
        for ax, (name, (color, dash, marker, _)) in zip(axes.flat, LOOKS.items(), strict=True):
            ax.fill_between(table["n"], table[f"{name}_lo"], table[f"{name}_hi"], color=color, alpha=0.18, lw=0)
            ax.plot(table["n"], table[name], color=color, linestyle=dash, marker=marker, ms=4)
            alpha, beta = table.attrs["fit"][name]
            d = np.sqrt(table["kl"].to_numpy())
            ax.plot(table["n"], table[name].iloc[0] + d * (alpha - beta * d), color="#333333", linestyle=":", lw=1)
            _n_axis(ax, table["n"], [str(n) for n in table["n"]])
            ax.set(xlabel="samples the reward picks from, n", ylabel=SCALES[name])
        handles = [Line2D([], [], color=c, linestyle=dash, marker=m, ms=4, label=label)
                   for c, dash, m, label in LOOKS.values()]
        handles.append(Line2D([], [], color="#333333", linestyle=":", lw=1, label="d(α − βd), d = √KL"))
        finish(drawing, f"{note} Bands: 95 %, over posts. {table.attrs['line'].capitalize()}.", columns, extra=handles)
    return Picture("preflight", drawing, table)


def figure(results, columns: int = 2) -> Picture:
    """Every run's pre-flight: reward and judge of the reward's best of n, before any training. Runs thin with their
    95 % bands over posts, the mean bold; crosses where a run's judge falls. The second row of ticks is the square
    root of the KL bound log n - (n-1)/n, the distance that a trained policy is measured in."""
    table = flights(results)
    kl = table.groupby("n")["kl"].first()
    ticks = [f"{n}\n{np.sqrt(far):.1f}" for n, far in kl.items()]
    with rc_context(STYLE):
        drawing, axes = canvas(*((1, 2) if columns == 2 else (2, 1)), 3.0 if columns == 2 else 5.0, columns)
        for ax, (name, (color, dash, marker, _)) in zip(axes.flat, LOOKS.items(), strict=True):
            for _, part in table.groupby("seed"):
                ax.fill_between(part["n"], part[f"{name}_lo"], part[f"{name}_hi"], color=color, alpha=0.08, lw=0)
                ax.plot(part["n"], part[name], color=color, lw=0.8, alpha=0.6)
                if name == "judge":
                    fallen = part[part["falls"].astype(bool)]
                    ax.plot(fallen["n"], fallen[name], "x", color="#000000", ms=5, mew=1.2, zorder=4)
            mean = table.groupby("n")[name].mean()
            ax.plot(mean.index, mean, color=color, linestyle=dash, marker=marker, ms=4, lw=2)
            _n_axis(ax, mean.index, ticks)
            ax.set(xlabel="samples the reward picks from, n\nand √KL bound, √nats", ylabel=SCALES[name])
        handles = [Line2D([], [], color=c, linestyle=dash, marker=m, ms=4, lw=2, label=label)
                   for c, dash, m, label in LOOKS.values()]
        handles.append(Line2D([], [], color="#555555", lw=0.8, alpha=0.6, label="one run"))
        if table["falls"].any():
            handles.append(Line2D([], [], color="#000000", linestyle="none", marker="x", ms=5, label="the judge falls"))
        posts = results.cfg.reward_model.preflight_posts
        finish(drawing, f"{sentence(table)}. First {posts} validation posts; bands: 95 % over posts. Preset "
               f"{results.cfg.preset}, study {results.paths.study}, {results.engagement} engagement, {results.commit}.",
               columns, extra=handles)
    return Picture("preflight", drawing, table[["seed", *COLUMNS]])


def _n_axis(ax, ns, labels: list[str]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ns))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ns, labels)
    ax.margins(y=0.12)
