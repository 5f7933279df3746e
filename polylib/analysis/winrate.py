"""Win rates against SFT and against people by the held-out judge, from files alone.

    found = runs(results)                 # {(method, seed, opponent): share won at each post}
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
from polylib.analysis.results import UNSEEDED, Results
from polylib.reward_checks.agreement import soft_wins

Found = dict[tuple[str, int | None, str], pd.Series]


def runs(results: Results, frame: pd.DataFrame | None = None) -> Found:
    """Every run against SFT of its own seed (SFT itself and the base model: not) and against people's replies. frame:
    what `replies.load` gave, if at hand. UserError as there."""
    frame = replies.load(results) if frame is None else frame
    people, found = replies.cell(frame, "human", None), {}
    for method in (name for name in results.methods if name != "human"):
        for seed in [None] if method in UNSEEDED else results.cfg.seeds:
            mine = replies.cell(frame, method, seed)
            if method in results.trained:
                found[method, seed, "sft"] = _against(mine, replies.cell(frame, "sft", seed))
            found[method, seed, "human"] = _against(mine, people)
    return found


def _against(mine: pd.DataFrame, theirs: pd.DataFrame) -> pd.Series:
    pairs = mine.merge(theirs, on="post_id", suffixes=("", "_other"))
    return by_post(soft_wins(pairs["judge"], pairs["judge_other"]), pairs["post_id"])


def by_post(wins: np.ndarray, posts: pd.Series) -> pd.Series:
    """Share won at each post, so that every post weighs the same. wins (N,): 1, 0, between = soft, NaN = no verdict,
    left out. posts (N,)."""
    known = np.isfinite(wins)
    names, group = np.unique(posts[known], return_inverse=True)
    weight = 1 / np.bincount(group)[group]
    return pd.Series(np.bincount(group, weight * wins[known], len(names)), index=names)


def by_method(results: Results, found: Found) -> pd.DataFrame:
    """method, opponent, raw (chance that a reply of the method is liked more than one of the opponent to the same
    post), raw_low, raw_high, runs, n (posts), judge_accuracy (share of held-out human pairs that the judge ranks right,
    without which a win rate says little), reason.

    95 % intervals with runs and posts both random (two-way t of `stats`); with one run over posts alone, which `reason`
    says."""
    rows = []
    for method, opponent in dict.fromkeys((method, opponent) for method, _, opponent in found):
        shares = [s for (m, _, o), s in found.items() if (m, o) == (method, opponent)]
        table = pd.concat(shares, axis=1, join="inner").sort_index()
        raw, claim = stats.interval(table.to_numpy().T)
        rows.append(
            {
                "method": method,
                "opponent": opponent,
                "raw": raw,
                "raw_low": max(claim.low, 0.0),
                "raw_high": min(claim.high, 1.0),
                "runs": len(shares),
                "n": len(table),
                "judge_accuracy": results.judge["pair_accuracy"],
                "reason": claim.reason,
            }
        )
    return pd.DataFrame(rows)
