"""How every figure looks: one colour, marker and line per method, print sizes, byte-stable files.

Okabe-Ito colours (colour-blind safe, yellow left out as it vanishes on white); marker and line style repeat
the information for black-and-white print. Set in code, not in a matplotlibrc, which would hang on the working
directory."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from polylib.figures.plain_tables import csv
from polylib.names import METHODS, ordered
from polylib.run import atomic_write

WIDTH = {1: 3.25, 2: 6.75}  # inches of one and two columns
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.dpi": 110,
    "savefig.bbox": "standard",
    "pdf.fonttype": 42,
    "svg.hashsalt": "polylib",
}
LOOKS = {
    "human": {"color": "#000000", "marker": "*", "linestyle": (0, (1, 1))},
    "base": {"color": "#BBBBBB", "marker": "x", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "sft": {"color": "#7F7F7F", "marker": "o", "linestyle": "-"},
    "lambda0": {"color": "#CC79A7", "marker": "v", "linestyle": (0, (3, 1, 1, 1))},
    "polychromic": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "grpo": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "hybrid": {"color": "#009E73", "marker": "D", "linestyle": (0, (5, 1))},
    "dpo": {"color": "#56B4E9", "marker": "P", "linestyle": (0, (1, 2))},
    "ppo": {"color": "#D55E00", "marker": "X", "linestyle": (0, (4, 2, 1, 2))},
}
DASHES = {
    "-": "",
    "--": (3.7, 1.6),
    "-.": (6.4, 1.6, 1, 1.6),
}  # as matplotlib draws them, for seaborn
RUN = Line2D(  # in a legend
    [], [], color="#555555", marker="o", markersize=3, linestyle="none", alpha=0.6, label="one run"
)
METHOD_STYLE = {method: {"label": METHODS[method]} | look for method, look in LOOKS.items()}


@dataclass(frozen=True)
class Picture:
    """A figure with the numbers it was drawn from. Shows itself in a notebook; `save` writes .pdf, .png and
    .csv."""

    name: str
    figure: Figure
    data: pd.DataFrame

    def _repr_png_(self) -> bytes:
        return self._bytes("png", dpi=110)

    def save(self, folder: Path, dpi: int = 150) -> None:
        """The same input gives the same bytes: no dates, no software version."""
        atomic_write(Path(folder) / f"{self.name}.pdf", self._bytes("pdf"))
        atomic_write(Path(folder) / f"{self.name}.png", self._bytes("png", dpi=dpi))
        csv(folder, **{self.name: self.data})

    def _bytes(self, kind: str, **options) -> bytes:
        keys = ("Software",) if kind == "png" else ("CreationDate", "Producer", "Creator")
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(buffer, format=kind, metadata=dict.fromkeys(keys), **options)
        return buffer.getvalue()


def canvas(rows: int, cols: int, height: float, columns: int = 2, **options):
    """(figure, axes (rows, cols)) `height` inches high and one or two columns wide; call inside
    `rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH[columns], height), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False, **options)


def panels(
    count: int,
    columns: int,
    height: float,
    top: float = 0.9,
    most: int = 3,
    narrow: int = 1,
    **options,
):
    """`canvas` of `count` panels, `most` in a row of a wide figure and `narrow` of a narrow one, each `height` inches
    high beside `top` for what stands around them; what is left of the last row is hidden."""
    across = min(count, most if columns == 2 else narrow)
    down = -(-count // across)
    figure, axes = canvas(down, across, top + height * down, columns, **options)
    for ax in list(axes.flat)[count:]:
        ax.set_visible(False)
    return figure, axes


def line(method: str, **changes) -> dict:
    return {key: METHOD_STYLE[method][key] for key in ("color", "linestyle")} | changes


def point(method: str, **changes) -> dict:
    """Filled marker with a white rim, so that overlapping points stay apart; crosses have no face to fill."""
    style = METHOD_STYLE[method]
    rim = style["color"] if style["marker"] == "x" else "white"
    size = 10 if style["marker"] == "*" else 6.5
    return {
        "color": style["color"],
        "marker": style["marker"],
        "linestyle": "none",
        "markersize": size,
        "markeredgecolor": rim,
        "markeredgewidth": 1.4 if rim != "white" else 0.6,
    } | changes


def small(method: str) -> dict:
    """The mark of a single run beside its method's."""
    return point(method, markersize=3.2, alpha=0.6, markeredgewidth=0)


def lines(ax, data: pd.DataFrame, x: str, y: str, **mean) -> None:
    """A line a method from `data` (method, seed, x, y): its runs thin, their mean bold. mean: how that one is drawn
    besides, the same for all methods."""
    shown = ordered(data["method"])
    same = {
        "data": data,
        "x": x,
        "y": y,
        "hue": "method",
        "hue_order": shown,
        "legend": False,
        "ax": ax,
        "palette": {method: METHOD_STYLE[method]["color"] for method in shown},
    }
    seaborn.lineplot(**same, units="seed", estimator=None, linewidth=0.5, alpha=0.4)
    seaborn.lineplot(
        **same,
        style="method",
        style_order=shown,
        errorbar=None,
        markeredgewidth=0.4,
        dashes={
            method: DASHES.get(look := METHOD_STYLE[method]["linestyle"], look[-1])
            for method in shown
        },
        **mean,
    )
    ax.set(xlabel="", ylabel="")


def finish(
    figure: Figure,
    note: str,
    columns: int,
    methods: Iterable[str] = (),
    extra: Iterable[Line2D] = (),
    kind: str = "both",
    most: int = 0,
) -> None:
    """One legend above, the note below; both are part of the layout, so they cover nothing.

    `kind` is how the methods are drawn: "point", "line" or "both"; `most` is the number of entries in a row."""
    handles = [
        Line2D(
            [],
            [],
            label=METHOD_STYLE[method]["label"],
            **{"point": point(method), "line": line(method), "both": point(method) | line(method)}[
                kind
            ],
        )
        for method in methods
    ]
    handles += list(extra)
    if handles:
        most = most or (7 if columns == 2 else 4 if kind == "point" else 2)
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(len(handles), most),
            handlelength=1 if kind == "point" else 3,
            columnspacing=1.1,
        )
    wrapped = "\n".join(textwrap.wrap(note, 62 * columns))
    figure.supxlabel(wrapped, fontsize=6.5, color="#555555", x=0.01, horizontalalignment="left")
