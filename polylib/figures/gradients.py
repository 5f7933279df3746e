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
from matplotlib.ticker import LogLocator, NullFormatter

from polylib.config import UserError
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish, point
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
SHORT = {"ce": "CE", "reward": "reward", "diversity": "diversity", "kl": "KL"}
SIDES = {"norm": "gradient norm", "cos": "cosine of two terms' gradients"}


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
        finish(
            figure,
            "Exact, by enumeration of a three-token language with nine replies; marks are means over "
            f"{data['policy'].nunique()} policies, bars their range. Signal along the true gradient for all K "
            "replies. Right of the dotted line: other objectives, not comparable with the left.",
            columns,
            extra=legend,
            kind="point",
            most=5 if columns == 2 else 2,
        )
    return Picture("estimator_snr", figure, data)


def _mark(look: dict, size: float) -> dict:
    rim = look["color"] if look["marker"] == "x" else "white"
    return look | {
        "markersize": size,
        "markeredgecolor": rim,
        "markeredgewidth": 1.2 if rim != "white" else 0.4,
    }


def anatomy_figure(history: pd.DataFrame, note: str = "", columns: int = 2) -> Picture:
    """Norm of each term's gradient (log axis) and cosine of each pair, a row a method and term: small marks are one
    run at one step, darker as training goes on, a line of marks a run; the large one is their mean.

    history: `method`, `seed`, `step` and the columns of `anatomy.COLUMNS`; several runs one after another.
    Steps without an anatomy are dropped, terms without numbers have no row. A norm of exactly 0, which a log axis
    cannot show, is written out. Raises UserError if no step has an anatomy."""
    found = [name for name in COLUMNS if name in history]
    data = history[["method", "seed", "step", *found]]
    data = data[data[found].notna().any(axis=1)].reset_index(drop=True)
    if data.empty:
        raise UserError(
            "history.csv: no gradient anatomy was recorded; set anatomy_every above 0 in the sections "
            "of the preset and run `dvc repro`"
        )
    long = data.melt(["method", "seed", "step"], found, "column").dropna()
    long["age"] = 0.2 + 0.5 * long["step"] / long["step"].max()
    seeds = sorted(set(long["seed"]))
    order = [(method, name) for method in ordered(long["method"]) for name in found]
    given = set(zip(long["method"], long["column"], strict=True))
    rows = {
        side: [key for key in order if key in given and key[1].startswith(side)] for side in SIDES
    }
    rows = {side: keys for side, keys in rows.items() if keys}  # one term has no cosine
    sizes = [len(keys) for keys in rows.values()]
    with rc_context(STYLE):
        figure, axes = canvas(
            *((1, len(rows)) if columns == 2 else (len(rows), 1)),
            1.2 + 0.27 * (max(sizes) if columns == 2 else sum(sizes) + 2),
            columns,
            gridspec_kw={} if columns == 2 else {"height_ratios": sizes},
        )
        for ax, (side, keys) in zip(axes.flat, rows.items(), strict=True):
            ax.set_xscale("log" if side == "norm" else "linear")
            for y, (method, name) in enumerate(keys):
                part = long[long["method"].eq(method) & long["column"].eq(name)]
                if side == "norm" and not part["value"].any():
                    ax.annotate(
                        "exactly 0", (0.02, y), xycoords=("axes fraction", "data"), va="center"
                    )
                    continue
                lanes = y + 0.22 * (part["seed"].map(seeds.index) - (len(seeds) - 1) / 2)
                look = METHOD_STYLE[method]
                ax.scatter(
                    part["value"], lanes, 9, look["color"], look["marker"], alpha=part["age"], lw=0
                )
                ax.plot(part["value"].mean(), y, **point(method, markersize=5.5))
            ax.set_ylim(len(keys) - 0.4, -0.6)
            ax.set_yticks(range(len(keys)), [_row(*key) for key in keys])
            ax.set_xlabel(SIDES[side])
            ax.axvline(0, color="#000000", lw=0.7) if side == "cos" else _decades(ax)
        finish(
            figure,
            "Gradient of each term with its weight, as it enters the loss, before the norm is clipped. Small marks: "
            f"one step of one run, darker later in training; large: their mean over {len(seeds)} "
            f"run{'s' * (len(seeds) > 1)} (seed {', '.join(map(str, seeds))}). {note}".strip(),
            columns,
        )
    return Picture("gradient_anatomy", figure, data)


def _row(method: str, column: str) -> str:
    terms = ", ".join(SHORT[term] for term in column.split("_")[1:])
    return f"{METHOD_STYLE[method]['label']}: {terms}"


def gradient_anatomy(results, columns: int = 2) -> Picture:
    """`anatomy_figure` of all runs of a study as `results.load` returns it; methods without an anatomy are left
    out."""
    runs = [
        frame.assign(method=method, seed=seed)
        for (method, seed), frame in results.histories.items()
    ]
    return anatomy_figure(pd.concat(runs, ignore_index=True), f"{results.note}.", columns)


def _decades(ax) -> None:
    """Plain numbers at 1, 10, 100, and at 2 and 5 where the axis spans hardly more than a decade."""
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 50 else (1, 2, 5), numticks=12))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
