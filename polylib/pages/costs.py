"""What a study costs, and what the cost buys: hours of training and sampled tokens against the reply one would post."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D

from polylib.claims.results import UNSEEDED, Results, chain_of, section
from polylib.config import UserError
from polylib.names import ordered
from polylib.pages.attempts import BAND, spread
from polylib.pages.style import METHOD_STYLE, STYLE, Picture, canvas, finish, line, point


def cost(results: Results, columns: int = 2) -> Picture:
    """Wall-clock per stage, from env.json. Bars are means over runs, dots the runs."""
    data = _known(results)
    order = list(dict.fromkeys(["data", "reward_model", *results.cfg.methods, *sorted(set(data["stage"]))]))
    stages = [stage for stage in order if stage in set(data["stage"])]
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 0.8 + 0.22 * len(stages), columns)
        ax = axes[0, 0]
        for i, stage in enumerate(stages):
            minutes = data.loc[data["stage"].eq(stage), "seconds"] / 60
            color = METHOD_STYLE[stage]["color"] if stage in METHOD_STYLE else "#BBBBBB"
            ax.barh(i, minutes.mean(), color=color, height=0.62)
            ax.plot(minutes, [i] * len(minutes), "o", color="#333333", markersize=2.5)
            ax.annotate(f"{minutes.mean():.1f}", (minutes.max(), i), xytext=(5, 0),
                        textcoords="offset points", va="center", fontsize=7)
        labels = [METHOD_STYLE[s]["label"] if s in METHOD_STYLE else s.replace("_", " ") for s in stages]
        ax.set_yticks(range(len(stages)), labels)
        ax.set_ylim(len(stages) - 0.5, -0.5)
        ax.set_xlabel("minutes a run")
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.1)
        devices = "; ".join(sorted(set(data["device"])))
        finish(figure, f"{results.note}. Measured on {devices}; peak memory "
               f"{data['memory_mb'].max() / 1024:.1f} GiB.", columns)
    return Picture("cost", figure, data)


def cost_benefit(results: Results, columns: int = 2) -> Picture:
    """Judge score of the reply that the trained reward picks out of k, against what it took.

    Left: hours of training (of cores on a processor, of the device otherwise), a method's own and those of the SFT it
    starts from, at the most replies k. Right: tokens sampled to answer one post, k = 1 to the most. SFT with more
    samples is the control that costs no training: a method is worth its hours above SFT's line. The reward model's
    hours, which all methods share once their picks are made by it, are not counted."""
    trained, spent = _training(results), _curve(results)
    k = int(spent["k"].max())
    data = spent.merge(trained, on=["method", "seed"], how="left")
    unit = "core" if results.costs["device"].astype(str).str.startswith("cpu").all() else "device"
    methods = [m for m in ordered(data["method"]) if m not in UNSEEDED]
    with rc_context(STYLE):
        shape = (1, 2) if columns == 2 else (2, 1)
        figure, axes = canvas(*shape, 2.9 if columns == 2 else 5.0, columns, sharey=True)
        left, right = axes.flat
        for method in methods:
            part = data[data["method"].eq(method)]
            color, most = METHOD_STYLE[method]["color"], part[part["k"].eq(k)]
            x = most["training_hours"].mean()
            left.plot([x, x], [most["low"].iloc[0], most["high"].iloc[0]], color=color, lw=0.9)
            left.plot(most["training_hours"], most["value"], **point(method, markersize=3.2, alpha=0.6,
                                                                     markeredgewidth=0))
            left.plot(x, most["mean"].iloc[0], **point(method))
            curve = part.groupby("k")[["tokens", "mean", "low", "high"]].mean()
            right.fill_between(curve["tokens"], curve["low"], curve["high"], color=color, alpha=BAND, lw=0)
            right.plot(curve["tokens"], curve["mean"], **point(method, markersize=3.5, markeredgewidth=0.4) |
                       line(method))
        control = data[data["method"].eq("sft")].groupby("k")["mean"].first()
        for at in [n for n in (1, control.index.max()) if n in control.index]:
            left.axhline(control[at], **line("sft", lw=0.8, linestyle=":"))
            left.annotate(f"SFT, k = {at}", (0, control[at]), xycoords=("axes fraction", "data"), xytext=(2, 2),
                          textcoords="offset points", va="bottom", fontsize=6.5, color="#555555")
        left.set(xlabel=f"training, {unit}-hours a run", ylabel="judge score of the pick", title=f"picked out of {k}")
        left.set_xlim(0, None)
        right.set(xlabel="tokens sampled a post", title="picked out of 1, 2, … replies")
        right.set_xscale("log", base=2)
        right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        right.tick_params(labelleft=True)
        if columns == 1:
            right.set_ylabel("judge score of the pick")
        several = len(results.cfg.seeds) > 1
        bars = "95 % for the method" if several else "95 % over posts"
        finish(figure, f"{results.note}. Bars and bands: {bars}. Hours include the SFT run a method starts from.",
               columns, methods, [Line2D([], [], color="#555555", marker="o", markersize=3, linestyle="none", alpha=0.6,
                                         label="one run")] if several else [])
    return Picture("cost_benefit", figure, data)


def _known(results: Results) -> pd.DataFrame:
    if results.costs.empty:
        raise UserError(f"{results.paths.results('data').parent}: no env.json there; run `dvc repro`")
    return results.costs


def _training(results: Results) -> pd.DataFrame:
    """method, seed, training_hours (with the parents' that it starts from), sampled_tokens (in its own training)."""
    hours = _known(results).dropna(subset="seed").astype({"seed": int}).set_index(["stage", "seed"])["hours"]
    rows = []
    for (method, seed), history in results.histories.items():
        chain = chain_of(results, method)
        missing = [name for name in chain if (name, seed) not in hours.index]
        if missing:
            raise UserError(f"{results.paths.results(missing[0], seed)}/env.json: missing; run `dvc repro`")
        settings = section(results, method)
        draws = vars(settings).get("samples_per_prompt", 0) * settings.prompts_per_step
        fresh = draws / vars(settings).get("updates_per_rollout", 1)  # the same rollouts serve several steps
        length = history["length"].sum() if "length" in history else 0.0
        rows.append({"method": method, "seed": seed, "training_hours": sum(hours[name, seed] for name in chain),
                     "sampled_tokens": length * fresh})
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _curve(results: Results) -> pd.DataFrame:
    """method, seed, k, value, mean, low, high, tokens: the reward's pick out of k, and what k replies take."""
    ks = sorted(int(name[len("best@"):]) for name in results.columns if name.startswith("best@"))
    length = {cell: values.mean() for cell, values in results.cells("length_tokens").items()}
    parts = []
    for k in ks:
        found = spread(results.cells(f"best@{k}"))
        found = found[~found["method"].isin(UNSEEDED)]
        tokens = [k * length[method, seed] for method, seed in zip(found["method"], found["seed"], strict=True)]
        parts.append(found.assign(k=k, tokens=np.array(tokens, dtype=float)))
    return pd.concat(parts, ignore_index=True)
