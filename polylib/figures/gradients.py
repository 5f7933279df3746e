"""Two figures about gradients: how noisy each diversity estimator is, and what pulled on the weights in
training.

    gradients.snr_figure(toy.snr_table()).save(folder, dpi)
    gradients.anatomy_figure(history.assign(method="hybrid", seed=42), note="Study laptop.")
    gradients.gradient_anatomy(results)
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from polylib.config import UserError
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish
from polylib.names import ordered
from polylib.training.anatomy import COLUMNS

# One colour and marker an estimator; the last two involve the reward and climb other objectives.
ESTIMATORS = {
    "jackknife": {"label": "jackknife (default)", "color": "#0072B2", "marker": "o"},
    "leave_one_out": {"label": "leave one out", "color": "#E69F00", "marker": "s"},
    "set_level": {"label": "subsets of K/2", "color": "#009E73", "marker": "D"},
    "shared": {"label": "shared, exact baseline", "color": "#CC79A7", "marker": "^"},
    "bare": {"label": "shared, no baseline", "color": "#7F7F7F", "marker": "v"},
    "detached": {"label": "detached", "color": "#000000", "marker": "x"},
    "f_poly": {"label": "reward × D of sets", "color": "#56B4E9", "marker": "P"},
    "darling": {"label": "DARLING", "color": "#D55E00", "marker": "X"},
}
OF_DIVERSITY = ("jackknife", "leave_one_out", "set_level", "shared", "bare", "detached")
TERM_STYLE = {
    "ce": {"label": "cross-entropy", "color": "#7F7F7F", "linestyle": "-", "marker": "o"},
    "reward": {"label": "reward", "color": "#0072B2", "linestyle": "-.", "marker": "^"},
    "diversity": {"label": "diversity", "color": "#E69F00", "linestyle": "--", "marker": "s"},
    "kl": {"label": "KL", "color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "marker": "P"},
}
PAIR_MARKERS = dict(zip([c for c in COLUMNS if c.startswith("cos_")], "<>dXvp", strict=True))
SHORT = {"ce": "CE", "reward": "reward", "diversity": "diversity", "kl": "KL"}


def snr_figure(table: Sequence[dict] | pd.DataFrame, columns: int = 2) -> Picture:
    """Signal-to-noise ratio of each estimator, a panel for each K.

    table: rows of `toy.snr_table`. The signal is the part of the mean update along the true gradient for all
    K replies, so that neither scale nor a target of smaller sets counts as signal. Marks are means over
    policies, bars their range."""
    data = pd.DataFrame(table)
    ks = sorted(set(data["K"]))
    drawn = data.assign(aligned_snr=data["aligned_snr"].where(data["signal"].gt(0), 0.0))
    groups = (OF_DIVERSITY, [name for name in ESTIMATORS if name not in OF_DIVERSITY])
    size = 4.5 if columns == 2 else 3.2
    with rc_context(STYLE):
        figure, axes = canvas(len(ks), 1, 1.1 + 1.55 * len(ks), columns, sharex=True, sharey=True)
        for ax, k in zip(axes[:, 0], ks, strict=True):
            part = drawn[drawn["K"].eq(k)]
            for i, names in enumerate(groups):
                for j, name in enumerate(names):
                    values = part.loc[part["estimator"].eq(name), "aligned_snr"]
                    x = i + 0.13 * (j - (len(names) - 1) / 2)
                    look = {key: ESTIMATORS[name][key] for key in ("color", "marker")}
                    ax.plot(
                        [x, x],
                        [values.min(), values.max()],
                        color=look["color"],
                        lw=1.1,
                        alpha=0.45,
                    )
                    ax.plot(x, values.mean(), **_mark(look, size), clip_on=False)
            ax.axvline(0.5, color="#999999", lw=0.7, ls=":")
            ax.set_title(f"K = {k} replies to a prompt", loc="left")
            ax.set_ylabel("signal / noise")
            ax.grid(axis="x", visible=False)
            ax.set_ylim(0, 1.06 * drawn["aligned_snr"].max())
        axes[-1, 0].set_xticks([0, 1], ["mean distance", "with the\nreward"])
        axes[-1, 0].tick_params(axis="x", length=0)
        axes[-1, 0].set_xlim(-0.5, 1.5)
        legend = [
            Line2D(
                [],
                [],
                linestyle="none",
                label=look["label"],
                **_mark({key: look[key] for key in ("color", "marker")}, 5),
            )
            for look in ESTIMATORS.values()
        ]
        _legend(figure, legend, columns, handlelength=1)
        finish(
            figure,
            "Exact, by enumeration of a three-token language with nine replies; marks are means over "
            f"{data['policy'].nunique()} policies, bars their range. Signal along the true gradient for all K "
            "replies. Right of the dotted line: other objectives, not comparable with the left.",
            columns,
        )
    return Picture("estimator_snr", figure, data)


def _legend(figure, handles: list[Line2D], columns: int, **options) -> None:
    """Ten entries need fewer columns than `finish` allows."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 5 if columns == 2 else 2),
        columnspacing=1.1,
        **options,
    )


def _mark(look: dict, size: float) -> dict:
    rim = look["color"] if look["marker"] == "x" else "white"
    return look | {
        "markersize": size,
        "markeredgecolor": rim,
        "markeredgewidth": 1.2 if rim != "white" else 0.4,
    }


def anatomy_figure(history: pd.DataFrame, note: str = "", columns: int = 2) -> Picture:
    """Norm of each term's gradient (log axis) and, below, the cosine of each pair, over steps; a column of
    panels a method.

    history: `method`, `seed`, `step` and the columns of `anatomy.COLUMNS`; several runs one after another.
    Steps without an anatomy are dropped, terms without numbers left out. Thin lines are runs, the bold one
    their mean. A norm of exactly 0, which a log axis cannot show, is named in the note. Raises UserError if no
    step has an anatomy."""
    found = [name for name in COLUMNS if name in history]
    data = history[["method", "seed", "step", *found]]
    data = data[data[found].notna().any(axis=1)].reset_index(drop=True)
    if data.empty:
        raise UserError(
            "history.csv: no gradient anatomy was recorded; set anatomy_every above 0 in the sections "
            "of the preset and run `dvc repro`"
        )
    methods = ordered(data["method"])
    norms, cosines = (
        [c for c in found if c.startswith(kind) and data[c].notna().any()]
        for kind in ("norm_", "cos_")
    )
    # cosines of large vectors are small: the axis ends where they do, not at 1
    reach = min(1.05, 1.15 * max(0.2, data[cosines].abs().max(axis=None))) if cosines else 1.05
    across = len(methods) if columns == 2 else 1
    down = 2 * len(methods) // across
    with rc_context(STYLE):
        figure, axes = canvas(
            down,
            across,
            1.0 + 1.45 * down,
            columns,
            sharex="col",
            sharey="row" if columns == 2 else False,
        )
        for i, method in enumerate(methods):
            top, below = axes[:, i] if columns == 2 else axes[2 * i : 2 * i + 2, 0]
            part = data[data["method"].eq(method)]
            top.set_yscale("log", nonpositive="mask")
            for j, name in enumerate(norms):
                _runs(top, part, name, _term(name), j)
            for j, name in enumerate(cosines):
                _runs(below, part, name, _pair(name), j)
            if not part[cosines].notna().any(axis=None):
                below.text(
                    0.5,
                    0.5,
                    "one term only:\nno cosine",
                    transform=below.transAxes,
                    ha="center",
                    va="bottom",
                    color="#555555",
                )
            below.axhline(0, color="#000000", lw=0.7)
            below.set_ylim(-reach, reach)
            top.set_title(METHOD_STYLE[method]["label"])
            top.tick_params(labelbottom=False)
            below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for i, ax in enumerate(axes[:, 0]):
            ax.set_ylabel("cosine" if i % 2 else "gradient norm")
            if i % 2 == 0:
                _decades(ax)
        for ax in axes[-1]:
            ax.set_xlabel("step")
        legend = [Line2D([], [], label=TERM_STYLE[_of(c)[0]]["label"], **_term(c)) for c in norms]
        legend += [
            Line2D([], [], label=" · ".join(SHORT[t] for t in _of(c)), **_pair(c)) for c in cosines
        ]
        _legend(figure, legend, columns, handlelength=3)
        finish(figure, _say(data, norms, note), columns)
    return Picture("gradient_anatomy", figure, data)


def gradient_anatomy(results, columns: int = 2) -> Picture:
    """`anatomy_figure` of all runs of a study as `results.load` returns it; methods without an anatomy are left
    out."""
    runs = [
        frame.assign(method=method, seed=seed)
        for (method, seed), frame in results.histories.items()
    ]
    return anatomy_figure(pd.concat(runs, ignore_index=True), f"{results.note}.", columns)


def _of(column: str) -> list[str]:
    return column.split("_")[1:]


def _term(column: str) -> dict:
    look = TERM_STYLE[_of(column)[0]]
    return {key: look[key] for key in ("color", "linestyle", "marker")} | {
        "markersize": 3.5,
        "lw": 1.4,
    }


def _pair(column: str) -> dict:
    """Dashes in the colours of both terms."""
    a, b = (TERM_STYLE[term]["color"] for term in _of(column))
    return {
        "color": a,
        "gapcolor": b,
        "linestyle": (0, (3, 3)),
        "marker": PAIR_MARKERS[column],
        "markersize": 3.5,
        "markerfacecolor": b,
        "markeredgecolor": a,
        "markeredgewidth": 0.6,
        "lw": 1.4,
    }


def _runs(ax, part: pd.DataFrame, name: str, look: dict, turn: int) -> None:
    """`turn` shifts the markers, so that those of lines on top of each other stay apart."""
    part = part[["seed", "step", name]].dropna()
    if part.empty or (part[name] == 0).all():
        return
    if part["seed"].nunique() > 1:
        for _, run in part.groupby("seed"):
            ax.plot(run["step"], run[name], color=look["color"], lw=0.5, alpha=0.35)
    mean = part.groupby("step")[name].mean()
    every = max(1, len(mean) // 6)
    ax.plot(mean.index, mean, markevery=(turn * every // 4 % every, every), **look)


def _decades(ax) -> None:
    """Plain numbers at 1, 10, 100, and at 2 and 5 where the axis spans hardly more than a decade."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 50 else (1, 2, 5), numticks=12))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _say(data: pd.DataFrame, norms: list[str], note: str) -> str:
    seeds = sorted(set(data["seed"]))
    runs = (
        "thin lines seeds, bold ones their mean: " if len(seeds) > 1 else "one seed, "
    ) + ", ".join(map(str, seeds))
    per_method = data.groupby("method")[norms].agg(
        lambda values: values.notna().any() and (values.dropna() == 0).all()
    )
    zero = [
        f"{SHORT[_of(c)[0]]} ({METHOD_STYLE[m]['label']})"
        for m in ordered(data["method"])
        for c in norms
        if per_method.loc[m, c]
    ]
    silent = f" Exactly 0, not drawn: {', '.join(zero)}." if zero else ""
    return (
        "Gradient of each term with its weight, as it enters the loss, before the norm is clipped; "
        f"{runs}.{silent} {note}"
    ).strip()
