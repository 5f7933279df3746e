"""Curves over training steps: one run as it goes (also inside the training notebooks), or all methods of a
study."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from polylib.figures.style import METHOD_STYLE, STYLE, Picture, finish, lines, panels
from polylib.names import ordered

# (column of every step, its held-out counterpart, label)
PANELS = [
    ("ce", "val_ce", "cross-entropy, nats/token"),
    ("reward", "val_reward", "reward"),
    ("diversity", "val_diversity", "semantic diversity"),
    ("kl", "val_kl", "KL to the start, nats"),
    ("length", "val_length", "length, tokens"),
    ("grad_norm", "", "gradient norm"),
]
HELD_OUT = [
    ("val_reward", "reward"),
    ("val_judge", "judge score"),
    ("val_diversity", "semantic diversity"),
    ("val_kl", "KL to the start, nats"),
    ("val_ce", "cross-entropy, nats/token"),
    ("entropy", "entropy, nats/token"),
    ("val_length", "length, tokens"),
    ("val_truncated", "truncated"),
    ("truncated", "truncated"),
    ("val_duplicates", "duplicate pairs"),
    ("duplicates", "duplicate pairs"),
]
OF_BATCHES = (
    "entropy",
    "truncated",
    "duplicates",
)  # of single training batches, so a mean over five


def training_curves(
    history: pd.DataFrame, method: str, note: str = "", columns: int = 2
) -> Picture:
    """What training did, step by step (thin), and the held-out posts (dots). Panels without numbers are left
    out.

    history: one run's. `note` goes below; say there which study, seed and engagement."""
    shown = set(history.columns[history.notna().any()])
    drawn = [panel for panel in PANELS if shown & set(panel[:2])]
    color, marker = METHOD_STYLE[method]["color"], METHOD_STYLE[method]["marker"]
    with rc_context(STYLE):
        figure, axes = panels(len(drawn), columns, 1.5, 0.7, sharex=True)
        for ax, (step, held_out, label) in zip(axes.flat, drawn, strict=False):
            for name, options in (
                (step, {"lw": 0.9, "alpha": 0.6}),
                (held_out, {"marker": marker, "ms": 4.5, "lw": 1.4}),
            ):
                if name in shown:
                    part = history[["step", name]].dropna()
                    ax.plot(part["step"], part[name], color=color, **options)
            ax.set_title(label)
        _trim(axes, len(drawn), "step")
        legend = [
            Line2D([], [], color=color, lw=0.9, alpha=0.6, label="training batch"),
            Line2D([], [], color=color, marker=marker, ms=4.5, label="held-out posts"),
        ]
        finish(figure, f"{METHOD_STYLE[method]['label']}. {note}".strip(), columns, extra=legend)
    return Picture(f"training_{method}", figure, history)


def training_dynamics(results, columns: int = 2) -> Picture:
    """All methods on held-out posts over training: seeds thin, their mean bold. They start where SFT ended; SFT itself,
    which starts at the base model and moves ten times as far, is drawn only where it is alone. `results`: a study as
    `results.load` returns it (not imported here: a training notebook must not depend on it)."""
    runs = results.histories
    alone = {method for method, _ in runs} == {"sft"}
    data = pd.concat(
        [
            frame.assign(method=method, seed=seed)
            for (method, seed), frame in runs.items()
            if alone or method != "sft"
        ],
        ignore_index=True,
    )
    drawn = [(name, label) for name, label in HELD_OUT if name in data and data[name].notna().any()]
    drawn = list({label: (name, label) for name, label in reversed(drawn)}.values())[
        ::-1
    ]  # held out before batches
    with rc_context(STYLE):
        figure, axes = panels(
            len(drawn), columns, 1.6, most=4 if len(drawn) in (7, 8) else 3, sharex=True
        )
        for ax, (name, label) in zip(axes.flat, drawn, strict=False):
            part = data.dropna(subset=name)
            if name in OF_BATCHES:
                runs = part.groupby(["method", "seed"])[name]
                part = part.assign(
                    **{name: runs.transform(lambda run: run.rolling(5, min_periods=1).mean())}
                )
            markers = {m: METHOD_STYLE[m]["marker"] for m in set(part["method"])}
            few = {} if name in OF_BATCHES else {"markers": markers, "markersize": 3.5}
            lines(ax, part, "step", name, **few)
            ax.set_title(f"{label} (5 batches)" if name in OF_BATCHES else label)
        _trim(axes, len(drawn), "step")
        finish(
            figure,
            f"{results.note}. Held-out posts; thin lines are runs. {'' if alone else 'Step 0 is the SFT model.'}",
            columns,
            ordered(data["method"]),
        )
    keep = ["method", "seed", "step", *(name for name, _ in drawn)]
    return Picture("training_dynamics", figure, data[keep])


def _trim(axes, used: int, label: str) -> None:
    """The axis label under the lowest used panel of each column."""
    flat, across = list(axes.flat), axes.shape[1]
    for i, ax in enumerate(flat):
        if i + across >= used:
            ax.set_xlabel(label)
            ax.tick_params(labelbottom=True)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
