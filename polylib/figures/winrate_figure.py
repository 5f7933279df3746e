"""Who would win, by the held-out judge: every method against SFT and against people."""

from __future__ import annotations

from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from polylib.analysis.results import Results
from polylib.analysis.winrate import Found, by_method, runs, win_rates
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish, point
from polylib.names import ordered

OPPONENTS = {"sft": "against SFT", "human": "against people"}


def picture(results: Results, found: Found | None = None, columns: int = 2) -> Picture:
    """Win rate of every method against SFT and against people: filled at equal length with its interval, hollow raw,
    small dots single runs. Left of the line the opponent wins."""
    found = found or runs(results)
    data, single = by_method(results, found), win_rates(results, found)
    methods = ordered(data["method"])
    with rc_context(STYLE):
        down, across = (1, 2) if columns == 2 else (2, 1)
        figure, axes = canvas(
            down,
            across,
            0.9 + down * (0.4 + 0.24 * len(methods)),
            columns,
            sharey=True,
            sharex=True,
        )
        for ax, (opponent, title) in zip(axes.flat, OPPONENTS.items(), strict=True):
            for i, method in enumerate(methods):
                of = data["method"].eq(method) & data["opponent"].eq(opponent)
                for row in data[of].itertuples():
                    color = METHOD_STYLE[method]["color"]
                    ax.plot([row.lc_low, row.lc_high], [i, i], color=color, lw=1.2)
                    lc = single.loc[
                        single["method"].eq(method) & single["opponent"].eq(opponent), "lc"
                    ]
                    if len(lc) > 1:
                        ax.plot(
                            lc,
                            [i + 0.26] * len(lc),
                            **point(method, markersize=3, alpha=0.6, markeredgewidth=0),
                        )
                    ax.plot(
                        row.raw,
                        i,
                        **point(
                            method, markerfacecolor="white", markeredgecolor=color, markersize=5
                        ),
                    )
                    ax.plot(row.lc, i, **point(method, markersize=6))
            ax.axvline(0.5, color="#000000", lw=0.8)
            ax.set(title=title, ylim=(len(methods) - 0.4, -0.6))
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for ax in axes[-1]:
            ax.set_xlabel("pairs of replies won, by the judge")
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        style = {"color": "#555555", "marker": "o", "linestyle": "none"}
        marks = [
            Line2D([], [], **style, markersize=6, label="at equal length"),
            Line2D([], [], **style, markersize=5, markerfacecolor="white", label="raw"),
        ]
        runs_mark = Line2D(
            [], [], **style, markersize=3, alpha=0.6, label="one run, at equal length"
        )
        marks += [runs_mark] if len(results.cfg.seeds) > 1 else []
        random = "runs and posts" if len(results.cfg.seeds) > 1 else "posts (one run)"
        finish(
            figure,
            f"95 % intervals over {random}; ties (judge under 55 % sure) count half. {results.note}.",
            columns,
            extra=marks,
        )
    return Picture("win_rates", figure, data)
