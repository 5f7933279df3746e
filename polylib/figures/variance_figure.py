"""Where the scores of our own runs vary, and how many runs a claim about a method would have needed.

table(results)                       # a row a metric: shares of variance, runs needed
picture(results, columns)            # the shares as bars
sentence(results, "judge_mean")      # how many runs find which effect
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context

from polylib import stats
from polylib.analysis import variance
from polylib.analysis.effects import compared
from polylib.analysis.results import UNSEEDED, Results
from polylib.config import UserError
from polylib.figures.style import STYLE, Picture, canvas, finish
from polylib.names import METRICS

# Sequential and distinct in grey print; methods' colours would say the wrong thing here.
PARTS = {
    "seed": ("runs", "#00224E"),
    "prompt": ("posts", "#575C6D"),
    "interaction": ("runs × posts", "#A59C74"),
}
MOST = 50  # runs; more is "over"
TARGET = 0.5  # SDs of SFT over posts: the effect that required runs are given for


def table(results: Results, metrics: list[str] | None = None) -> pd.DataFrame:
    """metric, seed, prompt, interaction (shares of variance, means over methods; the replies' scatter is inside
    interaction), effect (TARGET SDs of SFT's posts, in the metric's unit), seeds_needed (runs a method that find it at
    80 % power with this study's posts; NaN: over MOST), prompts, reason (why there are no numbers).

    UserError at one run: nothing varies between runs that are one."""
    rows = []
    for metric in metrics or compared(results):
        values = _values(results, metric)
        prompts = values["sft"].shape[1]
        if prompts < 2 or max(np.ptp(y) for y in values.values()) < 1e-12:
            reason = f"defined at {prompts} posts" if prompts < 2 else stats.SAME
            rows.append(
                {"metric": metric, "prompts": prompts, "reason": reason, "seeds_needed": np.nan}
            )
            continue
        found = [variance.components(y) for y in values.values()]
        pooled = variance.Components(
            *(float(np.mean([getattr(c, part) for c in found])) for part in PARTS)
        )
        effect = TARGET * values["sft"].mean(axis=0).std(ddof=1)
        rows.append(
            {
                "metric": metric,
                **pooled.shares(),
                "effect": effect,
                "prompts": prompts,
                "reason": "",
                "seeds_needed": variance.runs_needed(_design(values), effect, prompts, most=MOST),
            }
        )
    return pd.DataFrame(rows)


def sentence(results: Results, metric: str, effects: tuple[float, ...] = (0.05, 0.1, 0.2)) -> str:
    """How many runs a method find each of `effects`, in the metric's unit, at 80 % power with this study's posts."""
    values = _values(results, metric)
    needed = [
        variance.runs_needed(_design(values), effect, values["sft"].shape[1], most=MOST)
        for effect in effects
    ]
    said = ", ".join(
        f"{effect:g} with {'over ' + str(MOST) if np.isnan(n) else f'{n:g}'}"
        for effect, n in zip(effects, needed, strict=True)
    )
    return (
        f"At 80 % power and {values['sft'].shape[1]} posts a difference in {METRICS[metric]} is found: {said} "
        "runs a method"
    )


def _values(results: Results, metric: str) -> dict[str, np.ndarray]:
    """{method: (S, P)} at the posts that every cell defines."""
    if min(len(results.cfg.seeds), len(results.cfg.methods)) < 2:
        raise UserError(
            f"study {results.paths.study}: variances between runs need two runs of two methods; add them "
            "to the preset"
        )
    values = {
        name: stats.matrix(results.cells(metric), name)[2]
        for name in results.methods
        if name not in UNSEEDED
    }
    keep = np.isfinite(np.concatenate(list(values.values()))).all(axis=0)
    return {name: y[:, keep] for name, y in values.items()}


def _design(values: dict[str, np.ndarray]) -> variance.Design:
    """The design of a comparison with SFT, averaged over methods."""
    designs = [variance.design(y, values["sft"]) for name, y in values.items() if name != "sft"]
    return variance.Design(
        *(
            float(np.mean([getattr(d, name) for d in designs]))
            for name in ("seed", "by_prompt", "residual")
        )
    )


def picture(results: Results, columns: int = 2) -> Picture:
    """Shares of variance per metric; on the right the runs a method that an effect of half an SD over posts needs."""
    data = table(results)
    drawn = data[data["reason"].eq("")].reset_index(drop=True)
    bars = drawn[list(PARTS)].set_axis([label for label, _ in PARTS.values()], axis=1)
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 1.2 + 0.22 * len(drawn), columns)
        ax = axes[0, 0]
        bars.plot.barh(
            ax=ax,
            stacked=True,
            color=[color for _, color in PARTS.values()],
            width=0.7,
            legend=False,
        )
        for i, runs in enumerate(drawn["seeds_needed"]):
            ax.annotate(
                f"{f'over {MOST}' if np.isnan(runs) else f'{runs:g}'} runs",
                (1.0, i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        ax.set_yticks(range(len(drawn)), [METRICS.get(name, name) for name in drawn["metric"]])
        ax.set(xlim=(0, 1.0), ylim=(len(drawn) - 0.5, -0.5), xlabel="share of variance")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.grid(axis="y", visible=False)
        finish(
            figure,
            f"{results.note}. Variance of one run's value at a post, means over methods; negative estimates "
            f"count as 0. Runs × posts holds the scatter of replies. Right: runs a method that find a difference of "
            f"{TARGET:g} SD of SFT's posts at 80 % power with these posts.",
            columns,
            extra=ax.get_legend_handles_labels()[0],
        )
    return Picture("variance", figure, data)
