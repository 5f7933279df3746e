"""The figures of the paper, from the files of a study alone. Each returns a Picture; `picture.save(folder,
dpi)`.

    results = load(Paths(study), cfg)
    figures.quality_diversity(results, columns=2).save(paths.figures, cfg.paper_figures.dpi)

Small marks and thin lines are single runs, large and bold ones their mean; people are black. Curves over
training steps live in `curves`.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from polylib.config import UserError
from polylib.evaluation import effects as compare
from polylib.evaluation import stats
from polylib.evaluation.results import LABELS, Results
from polylib.evaluation.style import METHOD_STYLE, STYLE, Picture, canvas, finish, line, ordered, point

PEOPLE = "People: posts with at least k replies, where half of them have as many."
RUNS = Line2D([], [], color="#555555", marker="o", markersize=3, linestyle="none", alpha=0.6, label="one run")


def means(results: Results, metrics: list[str], temperature: float | None = None) -> pd.DataFrame:
    """method, seed and the mean over prompts of each metric, one row per cell; NaN prompts are left out, and
    a metric that fewer than half of the prompts define is NaN."""
    columns = {metric: results.cells(metric, temperature) for metric in metrics}
    rows = [{"method": method, "seed": seed} | {
        metric: cells[(method, seed)].mean() if cells[(method, seed)].notna().mean() >= 0.5 else np.nan
        for metric, cells in columns.items()} for method, seed in columns[metrics[0]]]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def quality_diversity(results: Results, columns: int = 2, x: str = "diversity",
                      y: str = "judge_mean") -> Picture:
    """Judge score against diversity. The grey curve is SFT at rising temperatures: what scattering alone
    buys. Above it a method is worth its training. The star is where people are, which is the target."""
    curve = pd.concat([means(results, [x, y], t).query("method == 'sft'").assign(temperature=t)
                       for t in results.temperatures])
    points = means(results, [x, y]).assign(temperature=results.cfg.sampling.temperature)
    with rc_context(STYLE):
        figure, axes = canvas(1, 1, 3.6 if columns == 2 else 3.3, columns)
        ax = axes[0, 0]
        sft = curve.groupby("temperature")[[x, y]].mean()
        ax.plot(sft[x], sft[y], **line("sft", zorder=2))
        for temperature, row in sft.iterrows():
            ax.plot(row[x], row[y], **point("sft", markersize=4.5))
            ax.annotate(f"T={temperature:g}", (row[x], row[y]), xytext=(0, -6), textcoords="offset points",
                        ha="center", va="top", fontsize=6.5, color=METHOD_STYLE["sft"]["color"])
        for method in ordered(points["method"]):
            part = points[points["method"].eq(method)]
            if len(part) > 1:
                ax.plot(part[x], part[y], **point(method, markersize=3.2, alpha=0.6, markeredgewidth=0))
            ax.plot(part[x].mean(), part[y].mean(), **point(method, zorder=4))
        ax.set(xlabel=LABELS[x], ylabel=LABELS[y])
        ax.margins(0.1, 0.12)
        finish(figure, f"{results.note}. Grey line: SFT by temperature.", columns, ordered(points["method"]),
               [RUNS] if len(results.cfg.seeds) > 1 else [], kind="point")
    control = curve[curve["temperature"].ne(results.cfg.sampling.temperature)]
    return Picture("quality_diversity", figure, pd.concat([points, control], ignore_index=True))


def pass_at_k(results: Results, columns: int = 2) -> Picture:
    """Chance that one of k replies is at least as good as a human reply at a quantile of the judge; a panel
    each."""
    quantiles = sorted(results.cfg.evaluation.judge_quantiles)
    ks = _ks(results, f"_q{quantiles[0]:g}")
    data = pd.concat([means(results, [f"pass@{k}_q{q:g}" for k in ks])
                      .rename(columns={f"pass@{k}_q{q:g}": k for k in ks})
                      .melt(["method", "seed"], ks, "k", "pass_at_k").assign(quantile=q) for q in quantiles])
    across = min(len(quantiles), 3) if columns == 2 else 1
    down = -(-len(quantiles) // across)
    with rc_context(STYLE):
        figure, axes = canvas(down, across, 0.9 + 1.9 * down, columns, sharex=True, sharey=True)
        for ax, q in zip(axes.flat, quantiles, strict=False):
            _curves(ax, data[data["quantile"].eq(q)], "pass_at_k")
            ax.set_title(f"beats {q:.0%} of human replies")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _k_axis(axes, ks)
        for ax in axes[:, 0]:
            ax.set_ylabel("pass@k")
        for ax in list(axes.flat)[len(quantiles):]:
            ax.set_visible(False)
        finish(figure, f"{results.note}. {PEOPLE}", columns, ordered(data["method"]))
    return Picture("pass_at_k", figure, data)


def best_of_k(results: Results, columns: int = 2) -> Picture:
    """Judge score of one reply out of k: the best (oracle), the one the trained reward picks, a random one. A
    method per panel. The gap below the oracle is what a better ranker is worth; a falling middle line is
    over-optimisation."""
    ks = _ks(results, "")
    frames = []
    for kind, prefix in (("oracle", "max@"), ("selected", "best@")):
        names = {f"{prefix}{k}": k for k in ks}
        frames.append(means(results, list(names)).rename(columns=names)
                      .melt(["method", "seed"], ks, "k", "judge").assign(choice=kind))
    random = means(results, ["judge_mean"]).rename(columns={"judge_mean": "judge"})
    frames.append(random.merge(pd.DataFrame({"k": ks}), how="cross").assign(choice="random"))
    data = pd.concat(frames, ignore_index=True).dropna(subset="judge")
    methods = ordered(data["method"])
    across = min(len(methods), 3 if columns == 2 else 2)
    down = -(-len(methods) // across)
    lines = {"oracle": "-", "selected": "--", "random": ":"}
    with rc_context(STYLE):
        figure, axes = canvas(down, across, 0.9 + 1.5 * down, columns, sharex=True, sharey=True)
        for ax, method in zip(axes.flat, methods, strict=False):
            for choice, style in lines.items():
                part = data[data["method"].eq(method) & data["choice"].eq(choice)]
                for _, run in part.groupby("seed", dropna=False):
                    ax.plot(run["k"], run["judge"], color=METHOD_STYLE[method]["color"], lw=0.6, alpha=0.35)
                mean = part.groupby("k")["judge"].mean()
                ax.plot(mean.index, mean, color=METHOD_STYLE[method]["color"], linestyle=style)
            ax.set_title(METHOD_STYLE[method]["label"])
        _k_axis(axes, ks)
        for ax in axes[:, 0]:
            ax.set_ylabel("judge score")
        for ax in list(axes.flat)[len(methods):]:
            ax.set_visible(False)
        finish(figure, f"{results.note}. {PEOPLE}", columns, extra=[
            Line2D([], [], color="#333333", linestyle=style, label=label) for style, label in
            zip(lines.values(), ("best of k (oracle)", "picked by the reward", "random"), strict=True)])
    return Picture("best_of_k", figure, data)


def forest(results: Results, columns: int = 2, metrics: list[str] | None = None) -> Picture:
    """Differences to SFT: thick bars for these checkpoints (posts are the sample), thin ones for the method
    (runs are a sample too; absent at one seed)."""
    data = compare.effects(results, metrics)
    panels, methods = list(dict.fromkeys(data["metric"])), ordered(data["method"])
    across = min(len(panels), 3 if columns == 2 else 1)
    down = -(-len(panels) // across)
    with rc_context(STYLE):
        figure, axes = canvas(down, across, 0.9 + down * (0.45 + 0.21 * len(methods)), columns, sharey=True)
        for ax, metric in zip(axes.flat, panels, strict=False):
            for i, method in enumerate(methods):
                row = data[data["metric"].eq(metric) & data["method"].eq(method)].iloc[0]
                color = METHOD_STYLE[method]["color"]
                ax.plot([row["method_low"], row["method_high"]], [i, i], color=color, lw=0.9)
                ax.plot([row["checkpoints_low"], row["checkpoints_high"]], [i, i], color=color, lw=3.2,
                        alpha=0.55, solid_capstyle="butt")
                ax.plot(row["effect"], i, **point(method, markersize=5.5))
            ax.axvline(0, color="#000000", lw=0.8)
            ax.set_title(LABELS[metric])
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4))
        for ax in list(axes.flat)[len(panels):]:
            ax.set_visible(False)
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        thick = Line2D([], [], color="#555555", lw=3.2, alpha=0.55, label="these checkpoints")
        thin = Line2D([], [], color="#555555", lw=0.9, label="the method")
        bars = [thick, thin] if len(results.cfg.seeds) > 1 else [thick]
        missing = "" if len(results.cfg.seeds) > 1 else f". {stats.ONE_SEED.capitalize()}"
        finish(figure, f"Difference to SFT, 95 % intervals. {results.note}{missing}.", columns, extra=bars)
    return Picture("forest", figure, data)


def side_effects(results: Results, columns: int = 2) -> Picture:
    """Length, relevance, truncation and repetition: what a gain elsewhere may have cost. The line is
    people."""
    metrics = ["length_words", "relevance", "truncated", "repeated_elsewhere"]
    data = means(results, metrics)
    methods = [m for m in ordered(data["method"]) if m != "human"]
    with rc_context(STYLE):
        rows, height = (2, 3.4) if columns == 2 else (4, 5.6)
        figure, axes = canvas(rows, columns, height, columns, sharey=True)
        for ax, metric in zip(axes.flat, metrics, strict=True):
            for i, method in enumerate(methods):
                values = data.loc[data["method"].eq(method), metric]
                runs = point(method, markersize=3.2, alpha=0.6, markeredgewidth=0, clip_on=False)
                ax.plot(values, [i] * len(values), **runs)
                ax.plot(values.mean(), i, **point(method, clip_on=False))
            human = data.loc[data["method"].eq("human"), metric]
            if human.notna().all():
                ax.axvline(human.iloc[0], **line("human", lw=1.2))
            if metric in ("truncated", "repeated_elsewhere"):
                ax.xaxis.set_major_formatter(PercentFormatter(1))
                ax.set_xlim(0, max(0.05, 1.1 * data[metric].max(skipna=True)))
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set_xlabel({"repeated_elsewhere": "replies also given to another post",
                           "truncated": "cut off at the token limit"}.get(metric, LABELS[metric]))
            ax.set_ylim(len(methods) - 0.5, -0.5)
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        finish(figure, results.note, columns, ["human"], [RUNS] if len(results.cfg.seeds) > 1 else [],
               kind="line")
    return Picture("side_effects", figure, data)


def cost(results: Results, columns: int = 2) -> Picture:
    """Wall-clock per stage, from env.json. Bars are means over runs, dots the runs."""
    data = results.costs
    if data.empty:
        raise UserError(f"{results.paths.results('data').parent}: no env.json there; run `dvc repro`")
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


def _ks(results: Results, suffix: str) -> list[int]:
    prefix = "pass@" if suffix else "max@"
    names = [n for n in results.columns if n.startswith(prefix) and n.endswith(suffix)]
    return sorted(int(name[len(prefix):].removesuffix(suffix)) for name in names)


def _curves(ax, data: pd.DataFrame, value: str) -> None:
    for method in ordered(data["method"]):
        part = data[data["method"].eq(method)]
        for _, run in part.groupby("seed"):
            ax.plot(run["k"], run[value], **line(method, lw=0.6, alpha=0.4, linestyle="-"))
        mean = part.groupby("k")[value].mean()
        marks = point(method, markersize=3.5 if method != "human" else 6, markeredgewidth=0.4)
        ax.plot(mean.index, mean, **marks | line(method))


def _k_axis(axes, ks: list[int]) -> None:
    """log2, labelled at the powers of two: 8 and 10 side by side would run into each other."""
    powers = [k for k in ks if np.log2(k).is_integer()]
    for ax in axes.flat:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(powers))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(powers, [str(k) for k in powers])
    for ax in axes[-1]:
        ax.set_xlabel("replies a post, k")
