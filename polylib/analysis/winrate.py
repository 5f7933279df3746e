"""Win rates against SFT and against people by the held-out judge, from files alone; raw and at equal length.

    found = runs(results)                 # {(method, seed, opponent): WinRate}
    win_rates(results, found)             # one row a run and opponent
    by_method(results, found)             # intervals that take runs as a sample too

Every reply of one side meets every reply of the other side to the same post. The judge's scores are log-odds on
people's likes (its scale is fitted on pairs of threads it did not see), so sigmoid(a - b) is the chance that reply a is
liked more; where it is under 55 % sure the pair is a tie. Win rates by such a judge stay near 50 %, as people's
own likes are hard to foresee: its accuracy on human pairs stands in the note of every table and figure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib import stats
from polylib.analysis import replies
from polylib.analysis.length_control import WinRate, win_rate
from polylib.analysis.results import UNSEEDED, Results
from polylib.reward_checks.agreement import MARGIN, soft_wins

Found = dict[tuple[str, int | None, str], WinRate]


def runs(results: Results, frame: pd.DataFrame | None = None, margin: float = MARGIN) -> Found:
    """Every run against SFT of its own seed (SFT itself and the base model: not) and against people's replies. frame:
    what `replies.load` gave, if at hand. UserError as there."""
    frame = replies.load(results) if frame is None else frame
    people, found, sft = replies.cell(frame, "human", None), {}, {}
    for method in results.methods:
        for seed in [None] if method in UNSEEDED else results.cfg.seeds:
            if method == "human":
                continue
            mine = replies.cell(frame, method, seed)
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
    rows = [
        {
            "method": method,
            "seed": seed,
            "opponent": opponent,
            "raw": w.raw,
            "lc": w.lc,
            "se": w.se,
            "low": w.low,
            "high": w.high,
            "overlap": w.overlap,
            "pairs": w.pairs,
            "n": len(w.posts),
            "judge_accuracy": results.judge["pair_accuracy"],
            "reason": w.reason,
        }
        for (method, seed, opponent), w in (found or runs(results)).items()
    ]
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
            row |= {
                name: mean,
                f"{name}_low": max(claim.low, 0.0),
                f"{name}_high": min(claim.high, 1.0),
            }
            why.append(claim.reason)
        rows.append(
            row
            | {
                "overlap": min(w.overlap for w in cells),
                "runs": len(cells),
                "n": len(common),
                "judge_accuracy": results.judge["pair_accuracy"],
                "reason": "; ".join(dict.fromkeys(filter(None, why))),
            }
        )
    return pd.DataFrame(rows)
