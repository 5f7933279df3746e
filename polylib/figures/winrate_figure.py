"""Who would win, by the held-out judge: every method against SFT and against people."""

from __future__ import annotations

from matplotlib import rc_context
from matplotlib.ticker import PercentFormatter

from polylib.analysis.results import Results
from polylib.analysis.winrate import Found, by_method
from polylib.figures.style import METHOD_STYLE, RUN, STYLE, Picture, canvas, finish, point, small
from polylib.names import ordered

OPPONENTS = {"sft": "against SFT", "human": "against people"}


def picture(results: Results, found: Found, columns: int = 2) -> Picture:
    """Win rate of every method against SFT and against people with its interval, small dots single runs. Left of the
    line the opponent wins. found: of `winrate.runs`."""
    data = by_method(results, found)
    methods, several = ordered(data["method"]), len(results.cfg.seeds) > 1
    with rc_context(STYLE):
        down, across = (1, 2) if columns == 2 else (2, 1)
        height = 0.9 + down * (0.4 + 0.24 * len(methods))
        figure, axes = canvas(down, across, height, columns, sharey=True, sharex=True)
        for ax, (opponent, title) in zip(axes.flat, OPPONENTS.items(), strict=True):
            for row in data[data["opponent"].eq(opponent)].itertuples():
                i, color = methods.index(row.method), METHOD_STYLE[row.method]["color"]
                ax.plot([row.raw_low, row.raw_high], [i, i], color=color, lw=1.2)
                single = [s.mean() for (m, _, o), s in found.items() if (m, o) == row[1:3]]
                if len(single) > 1:
                    ax.plot(single, [i + 0.26] * len(single), **small(row.method))
                ax.plot(row.raw, i, **point(row.method, markersize=6))
            ax.axvline(0.5, color="#000000", lw=0.8)
            ax.set(title=title, ylim=(len(methods) - 0.4, -0.6))
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for ax in axes[-1]:
            ax.set_xlabel("pairs of replies won, by the judge")
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        random = "runs and posts" if several else "posts (one run)"
        finish(
            figure,
            f"95 % intervals over {random}; ties (judge under 55 % sure) count half. {results.note}.",
            columns,
            extra=[RUN] * several,
        )
    return Picture("win_rates", figure, data)
