"""How far the reward and the judge can be trusted: on human pairs by how clear the case is, and against each other."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D

from polylib.analysis.results import Results, means, read_csv
from polylib.config import UserError
from polylib.figures.style import METHOD_STYLE, STYLE, Picture, canvas, finish, point
from polylib.names import METRICS, ordered

MODELS = {
    "combined": ("#0072B2", "o", "-"),
    "learned": ("#56B4E9", "s", "--"),
    "heuristic": ("#CC79A7", "v", ":"),
    "judge": ("#000000", "D", "-."),
    "length_only": ("#999999", "x", (0, (1, 2))),
}
BINS = {
    "ratio": (
        ("1_1.5", "1.5_2", "2_4", "4_inf"),
        ("1–1.5", "1.5–2", "2–4", "> 4"),
        "ratio of likes",
    ),
    "length": (
        ("matched", "1.1_1.5", "1.5_3", "3_inf"),
        ("< 1.1", "1.1–1.5", "1.5–3", "> 3"),
        "ratio of lengths",
    ),
}
COLUMNS = ["dataset", "model", "metric", "value", "lo", "hi", "n"]


def calibration(results: Results, columns: int = 2) -> Picture:
    """Left and middle: share of human pairs ranked right, by how many times the likes, or the length, of one reply are
    those of the other (bars: 95 % over threads; a scorer that fails where lengths are matched reads length). ECE, in
    the legend: error of the differences read as log-odds after one temperature. Right: reward and judge of every run;
    off a rising line they disagree about what is good.

    From results/<study>/reward_model/validation.csv; UserError if it is missing or has none of these rows."""
    table = _validation(results)
    runs = means(results, ["reward_mean", "judge_mean"])
    with rc_context(STYLE):
        figure, axes = canvas(
            *((1, 3) if columns == 2 else (3, 1)), 2.9 if columns == 2 else 6.6, columns
        )
        shown = [name for name in MODELS if name in set(table["model"])]
        for ax, (kind, (bins, names, label)) in zip(axes.flat, BINS.items(), strict=False):
            for i, model in enumerate(shown):
                color, marker, dash = MODELS[model]
                part = (
                    table[table["model"].eq(model)]
                    .set_index("metric")
                    .reindex([f"pair_accuracy_{kind}_{name}" for name in bins])
                )
                x = [j + 0.09 * (i - (len(shown) - 1) / 2) for j in range(len(bins))]
                ax.vlines(x, part["lo"], part["hi"], color=color, lw=0.9, alpha=0.7)
                ax.plot(
                    x,
                    part["value"],
                    color=color,
                    marker=marker,
                    linestyle=dash,
                    markersize=3.5,
                    lw=1,
                )
            ax.axhline(0.5, color="#000000", lw=0.8)
            ax.set_xticks(range(len(bins)), names)
            ax.set(
                xlabel=f"{label} in a pair",
                ylabel="pairs ranked right" if kind == "ratio" or columns == 1 else "",
            )
        last = axes.flat[2]
        for method in ordered(runs["method"]):
            part = runs[runs["method"].eq(method)]
            size = 5 if method != "human" else 8
            last.plot(part["reward_mean"], part["judge_mean"], **point(method, markersize=size))
        last.set(xlabel=METRICS["reward_mean"], ylabel=METRICS["judge_mean"])
        last.margins(0.12)
        legend = [
            Line2D(
                [],
                [],
                color=MODELS[m][0],
                marker=MODELS[m][1],
                linestyle=MODELS[m][2],
                markersize=3.5,
                label=m.replace("_", " "),
            )
            for m in shown
        ]
        legend += [
            Line2D([], [], label=METHOD_STYLE[m]["label"], **point(m))
            for m in ordered(runs["method"])
        ]
        finish(
            figure,
            f"Pairs of human replies on held-out threads. Right: {results.note}.",
            columns,
            extra=legend,
            most=5 if columns == 2 else 2,
        )
    data = pd.concat(
        [table, runs.melt(["method", "seed"], ["reward_mean", "judge_mean"], "metric", "value")],
        ignore_index=True,
    )
    return Picture("calibration", figure, data)


def _validation(results: Results) -> pd.DataFrame:
    """Rows of the bins for MODELS; of several data sets the one with the most pairs."""
    file = results.paths.results("reward_model") / "validation.csv"
    table = read_csv(file, COLUMNS)
    wanted = [f"pair_accuracy_{kind}_{name}" for kind, (bins, *_) in BINS.items() for name in bins]
    table = table[table["model"].isin(MODELS) & table["metric"].isin(wanted)]
    if not table["metric"].isin(wanted).any():
        raise UserError(
            f"{file}: no rows pair_accuracy_ratio_* or pair_accuracy_length_*; run `dvc repro`"
        )
    largest = table.loc[table["n"].idxmax(), "dataset"]
    return table.loc[table["dataset"].eq(largest), COLUMNS].reset_index(drop=True)
