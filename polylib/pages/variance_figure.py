"""Where the scores of our own runs vary, and how many runs a claim about a method would have needed: table and figure.

    table(results)                       # metric x (pooled over methods): shares of variance, design, needed runs
    picture(results, columns)            # stacked bars and required runs
    planner(results, "judge_mean")       # effects x posts -> runs
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.patches import Patch

from polylib.claims import stats, variance
from polylib.claims.effects import compared
from polylib.claims.results import UNSEEDED, Results
from polylib.config import UserError
from polylib.names import METRICS
from polylib.pages.style import STYLE, Picture, canvas, finish

# Sequential and distinct in grey print; methods' colours would say the wrong thing here.
PARTS = {"seed": ("runs", "#00224E"), "prompt": ("posts", "#575C6D"), "interaction": ("runs × posts", "#A59C74"),
         "generation": ("replies", "#E8D96B")}
PER_REPLY = {"judge_mean": "judge", "reward_mean": "reward", "relevance": "relevance"}
MOST = 50  # runs; more is "over"
TARGET = 0.5  # SDs of SFT over posts: the effect that required runs are given for


def table(results: Results, metrics: list[str] | None = None, replies: pd.DataFrame | None = None,
          effect: float = TARGET) -> pd.DataFrame:
    """metric, seed, prompt, interaction, generation (shares of variance, means over methods), {..}_variance, by_prompt,
    effect (in the metric's unit: `effect` SDs of SFT's posts), seeds_needed (runs a method at 80 % power with this
    study's posts; NaN: over MOST), prompts_needed (posts for these checkpoints), methods, prompts, reason.

    Without `replies` (`replies.load`) the replies' scatter is inside runs x posts. UserError at one run: nothing varies
    between runs that are one."""
    if len(results.cfg.seeds) < 2:
        raise UserError(f"study {results.paths.study}: one run a method has no variance between runs; add seeds to the "
                        "preset")
    methods = [name for name in results.methods if name not in UNSEEDED]
    rows = []
    for metric in metrics or compared(results):
        values = {name: stats.matrix(results.cells(metric), name)[2] for name in methods}
        keep = np.isfinite(np.concatenate(list(values.values()))).all(axis=0)
        row = {"metric": metric, "methods": len(methods), "prompts": int(keep.sum())}
        if keep.sum() < 2 or max(np.ptp(y[:, keep]) for y in values.values()) < 1e-12:
            rows.append(row | {"reason": f"defined at {keep.sum()} posts" if keep.sum() < 2 else stats.SAME})
            continue
        found = [variance.components(_of_replies(replies, name, PER_REPLY[metric])
                                     if replies is not None and metric in PER_REPLY else y[:, keep])
                 for name, y in values.items()]
        pooled = variance.Components(*(float(np.mean([getattr(c, part) for c in found])) for part in PARTS))
        row |= pooled.shares() | {f"{part}_variance": value for part, value in vars(pooled).items()}
        row |= _needed(values["sft"][:, keep], [y[:, keep] for name, y in values.items() if name != "sft"], effect)
        rows.append(row | {"reason": ""})
    return pd.DataFrame(rows)


def _of_replies(replies: pd.DataFrame, method: str, column: str) -> np.ndarray:
    part = replies[replies["method"].eq(method)].sort_values(["seed", "post_id", "sample"])
    return part[column].to_numpy(float).reshape(part["seed"].nunique(), part["post_id"].nunique(), -1)


def _needed(sft: np.ndarray, others: list[np.ndarray], effect: float) -> dict:
    if not others:
        return {}
    sd, design = sft.mean(axis=0).std(ddof=1), mean_design(sft, others)
    plan = variance.plan(design, [effect * sd], [sft.shape[1]], most=MOST).iloc[0]
    d_z = effect * sd / np.mean([(y - sft).mean(axis=0).std(ddof=1) for y in others]) if sd > 1e-12 else np.nan
    return {"by_prompt": design.by_prompt, "effect": effect * sd, "seeds_needed": plan["seeds"],
            "prompts_needed": variance.prompts_for(d_z) if np.isfinite(d_z) else np.nan}


def mean_design(sft: np.ndarray, others: list[np.ndarray]) -> variance.Design:
    """The design of a comparison with SFT, averaged over methods: each (S, P)."""
    designs = [variance.design(y, sft) for y in others]
    return variance.Design(*(float(np.mean([getattr(d, name) for d in designs]))
                             for name in ("seed", "by_prompt", "residual")))


def planner(results: Results, metric: str, effects: list[float], prompts: list[int]) -> pd.DataFrame:
    """effect, prompts, seeds, power: runs a method that find `effect` (in the metric's unit) at 80 %, from this study's
    variances. seeds NaN: not with MOST runs."""
    values = {name: stats.matrix(results.cells(metric), name)[2] for name in results.methods if name not in UNSEEDED}
    keep = np.isfinite(np.concatenate(list(values.values()))).all(axis=0)
    design = mean_design(values["sft"][:, keep], [y[:, keep] for name, y in values.items() if name != "sft"])
    return variance.plan(design, effects, prompts, most=MOST)


def picture(results: Results, columns: int = 2, replies: pd.DataFrame | None = None) -> Picture:
    """Shares of variance per metric; on the right the runs a method that an effect of half an SD over posts needs."""
    data = table(results, replies=replies)
    drawn = data[data["reason"].eq("")].reset_index(drop=True)
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 1.0 + 0.22 * len(drawn), columns)
        ax, left = axes[0, 0], np.zeros(len(drawn))
        parts = {name: style for name, style in PARTS.items() if drawn[name].gt(0).any()}
        for name, (_, color) in parts.items():
            ax.barh(range(len(drawn)), drawn[name], left=left, color=color, height=0.66, edgecolor="white", lw=0.5)
            left += drawn[name].to_numpy()
        for i, row in drawn.iterrows():
            needs = f"over {MOST}" if np.isnan(row["seeds_needed"]) else f"{row['seeds_needed']:g}"
            ax.annotate(f"{needs} runs", (1.0, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
        ax.set_yticks(range(len(drawn)), [METRICS.get(name, name) for name in drawn["metric"]])
        ax.set(xlim=(0, 1.0), ylim=(len(drawn) - 0.5, -0.5), xlabel="share of variance")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.grid(axis="y", visible=False)
        ax.spines["right"].set_visible(False)
        merged = "" if "generation" in parts else " Runs × posts holds the scatter of replies."
        finish(figure, f"{results.note}. Variance of one run's value at a post, means over methods; negative estimates "
               f"count as 0.{merged} Right: runs a method that find a difference of {TARGET:g} SD of SFT's posts at "
               "80 % power with these posts.", columns,
               extra=[Patch(color=color, label=label) for label, color in parts.values()])
    return Picture("variance", figure, data)
