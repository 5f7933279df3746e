"""Win rates against SFT and against people by the held-out judge, from files alone; raw and at equal length.

    found = runs(results)                 # {(method, seed, opponent): WinRate}
    win_rates(results, found)             # one row a run and opponent
    by_method(results, found)             # intervals that take runs as a sample too
    picture(results, found, columns)

Every reply of one side meets every reply of the other side to the same post. The judge's scores are log-odds on
people's likes (its scale is fitted on pairs of threads it did not see), so sigmoid(a - b) is the chance that reply a is
liked more; where it is under 55 % sure the pair is a tie. Win rates by such a judge stay near 50 %, as people's
own likes are hard to foresee: its accuracy on human pairs stands in the note of every table and figure.
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from polylib.config import UserError
from polylib.evaluation import stats
from polylib.evaluation.length_control import WinRate, win_rate
from polylib.evaluation.results import UNSEEDED, Results
from polylib.evaluation.style import METHOD_STYLE, STYLE, Picture, canvas, finish, ordered, point
from polylib.rewards.llm import Comparison

MARGIN = 0.2  # log-odds below which the judge abstains: it is less than 55 % sure
NEEDED = ("post_id", "reply", "temperature")
OPPONENTS = {"sft": "against SFT", "human": "against people"}
Found = dict[tuple[str, int | None, str], WinRate]


class ScoreJudge:
    """A scorer as a pairwise judge, in the form of `LLMReward.compare`: the judge of the evaluation, or any reward.

    scorer(posts, replies) -> (N,) log-odds once divided by `temperature` (1 for the study's judge, which is scaled on
    held-out human pairs; `rewards.calibration.temperature` fits it for others)."""

    def __init__(self, scorer, temperature: float = 1.0, margin: float = MARGIN):
        self.scorer, self.temperature, self.margin = scorer, temperature, margin

    def compare(self, posts: list[str], a: list[str], b: list[str]) -> Comparison:
        """wins 1, 0 or .5 where it abstains; consistent in both orders by construction."""
        soft = soft_wins(self.scorer(posts, a), self.scorer(posts, b), self.temperature, self.margin)
        return Comparison(hard(soft), 1.0, 0.5, 0.0)


def soft_wins(a, b, temperature: float = 1.0, margin: float = MARGIN) -> np.ndarray:
    """sigmoid((a - b) / temperature) of scores (N,); .5, a tie, where the log-odds are within `margin` of 0."""
    odds = (np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) / temperature
    return np.where(np.abs(odds) < margin, 0.5, 0.5 * (1 + np.tanh(odds / 2)))


def hard(soft: np.ndarray) -> np.ndarray:
    """Verdicts 1, 0 and .5 (tie) of soft wins."""
    return 0.5 + 0.5 * np.sign(soft - 0.5)


def replies(results: Results, method: str, seed: int | None, *columns: str) -> pd.DataFrame:
    """The stored replies of one cell at the training temperature (people: all), with `columns`. UserError names the
    file and what it lacks."""
    file = Path(results.paths.evaluation(method, seed)) / "generations.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: missing; run `dvc repro`")
    with file.open(encoding="utf-8") as stream:
        table = pd.DataFrame([json.loads(line) for line in stream])
    lacking = [name for name in (*NEEDED, *columns) if name not in table]
    if lacking:
        raise UserError(f"{file}: no column {lacking[0]}; run `dvc repro`")
    temperature = table["temperature"].astype(float)
    kept = table[temperature.isna() | (temperature - results.cfg.sampling.temperature).abs().lt(1e-9)]
    if "judge" in columns and not np.isfinite(kept["judge"].astype(float)).all():
        raise UserError(f"{file}: a reply has no judge score; run `dvc repro`")
    return kept.assign(length=kept["reply"].str.len()).reset_index(drop=True)


def runs(results: Results, margin: float = MARGIN) -> Found:
    """Every run against SFT of its own seed (SFT itself and the base model: not) and against people's replies."""
    people, found, sft = replies(results, "human", None, "judge"), {}, {}
    for method in results.methods:
        for seed in [None] if method in UNSEEDED else results.cfg.seeds:
            if method == "human":
                continue
            mine = replies(results, method, seed, "judge")
            if method == "sft":
                sft[seed] = mine
            elif seed in sft:
                found[method, seed, "sft"] = _against(mine, sft[seed], margin)
            found[method, seed, "human"] = _against(mine, people, margin)
    return found


def _against(mine: pd.DataFrame, theirs: pd.DataFrame, margin: float) -> WinRate:
    pairs = mine.merge(theirs, on="post_id", suffixes=("", "_other"))
    wins = soft_wins(pairs["judge"], pairs["judge_other"], margin=margin)
    return win_rate(wins, pairs["length"], pairs["length_other"], pairs["post_id"])


def win_rates(results: Results, found: Found | None = None) -> pd.DataFrame:
    """method, seed, opponent, raw, lc, se, low, high, overlap, pairs, n (posts), judge_accuracy, reason: one row a run
    and opponent.

    raw: chance that a reply of the method is liked more than one of the opponent to the same post; lc: at equal length,
    with its standard error and 95 % interval over posts, this run given. overlap: of the lengths. judge_accuracy: share
    of held-out human pairs that the judge ranks right, without which a win rate says little."""
    rows = [{"method": method, "seed": seed, "opponent": opponent, "raw": w.raw, "lc": w.lc, "se": w.se, "low": w.low,
             "high": w.high, "overlap": w.overlap, "pairs": w.pairs, "n": len(w.posts),
             "judge_accuracy": results.judge["pair_accuracy"], "reason": w.reason}
            for (method, seed, opponent), w in (found or runs(results)).items()]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def by_method(results: Results, found: Found | None = None) -> pd.DataFrame:
    """method, opponent, raw, raw_low, raw_high, lc, lc_low, lc_high, overlap (smallest), runs, n (posts),
    judge_accuracy, reason.

    95 % intervals with runs and posts both random (two-way t of `stats`, on lc's pseudo-values per post); with one run
    over posts alone, which `reason` says."""
    found, rows = found or runs(results), []
    for method, opponent in dict.fromkeys((method, opponent) for method, _, opponent in found):
        cells = [w for (m, _, o), w in found.items() if (m, o) == (method, opponent)]
        row = {"method": method, "opponent": opponent}
        why, common = [w.reason for w in cells], set.intersection(*(set(w.posts) for w in cells))
        for name, part in (("raw", "by_post"), ("lc", "lc_by_post")):
            values = [getattr(w, part)[[post in common for post in w.posts]] for w in cells]
            mean, claim = stats.interval(np.array(values))
            row |= {name: mean, f"{name}_low": max(claim.low, 0.0), f"{name}_high": min(claim.high, 1.0)}
            why.append(claim.reason)
        rows.append(row | {"overlap": min(w.overlap for w in cells), "runs": len(cells), "n": len(common),
                           "judge_accuracy": results.judge["pair_accuracy"],
                           "reason": "; ".join(dict.fromkeys(filter(None, why)))})
    return pd.DataFrame(rows)


def picture(results: Results, found: Found | None = None, columns: int = 2) -> Picture:
    """Win rate of every method against SFT and against people: filled at equal length with its interval, hollow raw,
    small dots single runs. Left of the line the opponent wins."""
    found = found or runs(results)
    data, single = by_method(results, found), win_rates(results, found)
    methods = ordered(data["method"])
    with rc_context(STYLE):
        down, across = (1, 2) if columns == 2 else (2, 1)
        figure, axes = canvas(down, across, 0.9 + down * (0.4 + 0.24 * len(methods)), columns, sharey=True, sharex=True)
        for ax, (opponent, title) in zip(axes.flat, OPPONENTS.items(), strict=True):
            for i, method in enumerate(methods):
                of = data["method"].eq(method) & data["opponent"].eq(opponent)
                for row in data[of].itertuples():
                    color = METHOD_STYLE[method]["color"]
                    ax.plot([row.lc_low, row.lc_high], [i, i], color=color, lw=1.2)
                    lc = single.loc[single["method"].eq(method) & single["opponent"].eq(opponent), "lc"]
                    if len(lc) > 1:
                        ax.plot(lc, [i + 0.26] * len(lc), **point(method, markersize=3, alpha=0.6, markeredgewidth=0))
                    ax.plot(row.raw, i, **point(method, markerfacecolor="white", markeredgecolor=color, markersize=5))
                    ax.plot(row.lc, i, **point(method, markersize=6))
            ax.axvline(0.5, color="#000000", lw=0.8)
            ax.set(title=title, ylim=(len(methods) - 0.4, -0.6))
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for ax in axes[-1]:
            ax.set_xlabel("pairs of replies won, by the judge")
        axes[0, 0].set_yticks(range(len(methods)), [METHOD_STYLE[m]["label"] for m in methods])
        style = {"color": "#555555", "marker": "o", "linestyle": "none"}
        marks = [Line2D([], [], **style, markersize=6, label="at equal length"),
                 Line2D([], [], **style, markersize=5, markerfacecolor="white", label="raw")]
        runs_mark = Line2D([], [], **style, markersize=3, alpha=0.6, label="one run, at equal length")
        marks += [runs_mark] if len(results.cfg.seeds) > 1 else []
        random = "runs and posts" if len(results.cfg.seeds) > 1 else "posts (one run)"
        finish(figure, f"95 % intervals over {random}; ties (judge under 55 % sure) count half. {results.note}.",
               columns, extra=marks)
    return Picture("win_rates", figure, data)
