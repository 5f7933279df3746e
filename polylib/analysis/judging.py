"""A language model compares every method with SFT: optional, within a budget, after it passed its controls.

    found = llm_comparison(results)      # empty, with one line that says why, unless llm_judge.compare_posts is above 0
    found["controls"], found["runs"], found["methods"]

Same post, no names, both orders, one criterion a call; a win counts if both orders agree, else it is a tie; an answer
that cannot be read is missing and counted. All answers go through the cache, so llm_judge.cache: replay gives the same
tables without a server. A criterion whose controls fail is not asked: its rows hold the reason instead of numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polylib.analysis import replies, winrate
from polylib.analysis.results import Results
from polylib.config import UserError
from polylib.reward_checks.agreement import hard, kappa, soft_wins
from polylib.rewards import llm_controls
from polylib.rewards.llm import CRITERIA, LLMJudge
from polylib.rewards.llm_client import Client

CONTROLS = 24  # posts whose first human reply the controls are made of
OFF = "no language model judges this study: set llm_judge.url, llm_judge.model and llm_judge.compare_posts"


def llm_comparison(
    results: Results, folder: Path | None = None, frame: pd.DataFrame | None = None
) -> dict[str, pd.DataFrame]:
    """{"controls", "runs", "methods"}, or nothing where llm_judge.compare_posts is 0. Prints what it may cost before it
    asks. `folder` holds the answers (default: the polylib cache); frame: what `replies.load` gave, if at hand.

    controls: criterion and the columns of `llm_controls.battery`. runs: one row a criterion, method and seed: raw
    (share of posts won), n (posts with a verdict), missing, consistent (share of pairs that name the same reply in both
    orders), first (share of verdicts for the reply shown first), kappa with the study's own judge, kappa_low,
    kappa_high, reason. methods: `winrate.by_method` with the criterion as `opponent` renamed; empty if all refused.

    UserError before the first question if the estimate exceeds llm_judge.max_calls or max_cost, and for whatever
    `Client.ask` refuses."""
    cfg = results.cfg.llm_judge
    if not cfg.compare_posts or not (cfg.url or cfg.cache == "replay"):
        print(OFF)
        return {}
    frame = replies.load(results) if frame is None else frame
    people = replies.cell(frame, "human", None).drop_duplicates("post").head(CONTROLS)
    known = list(people["post"]), list(people["reply"])
    client, cells = Client(cfg, folder), _cells(results, frame)
    judges = {criterion: LLMJudge(client, CRITERIA[criterion]) for criterion in cfg.criteria}
    total = estimate(judges, known, cells)
    print(
        f"{cfg.model}: {total['questions']} questions, {total['known']} answered already; at most {total['calls']} "
        f"calls, {total['tokens_in'] + total['tokens_out']} tokens, cost {total['cost']:.4g}"
    )
    if total["calls"] > cfg.max_calls or total["cost"] > cfg.max_cost:
        raise UserError(
            f"llm_judge: up to {total['calls']} calls at a cost of {total['cost']:.4g} exceed max_calls "
            f"{cfg.max_calls} or max_cost {cfg.max_cost:g}; lower compare_posts or raise them"
        )
    controls, rows, found = [], [], {}
    for criterion, judge in judges.items():
        table = llm_controls.battery(judge, *known)
        table.insert(0, "criterion", criterion)
        controls.append(table)
        refused = llm_controls.refusal(table)
        for (method, seed), pairs in cells.items():
            row = {"criterion": criterion, "method": method, "seed": seed, "raw": np.nan, "n": 0}
            if refused:
                rows.append(row | {"reason": f"judge refused ({refused})"})
                continue
            seen = judge.compare(*_asked(pairs))
            shares = found[method, seed, criterion] = winrate.by_post(seen.wins, pairs["post_id"])
            own = hard(soft_wins(pairs["judge"], pairs["judge_other"]))
            agreed = kappa(seen.wins, own, pairs["post_id"])
            rows.append(
                row
                | {
                    "raw": shares.mean(),
                    "n": len(shares),
                    "missing": int(np.isnan(seen.wins).sum()),
                    "consistent": seen.consistent,
                    "first": seen.first,
                    "kappa": agreed["kappa"],
                    "kappa_low": agreed["low"],
                    "kappa_high": agreed["high"],
                    "reason": agreed["reason"],
                }
            )
    methods = winrate.by_method(results, found).rename(columns={"opponent": "criterion"})
    methods = methods.drop(columns="judge_accuracy", errors="ignore")  # of the study's own judge
    every = pd.concat(controls, ignore_index=True)
    return {"controls": every, "runs": pd.DataFrame(rows), "methods": methods}


def _asked(pairs: pd.DataFrame) -> list[list[str]]:
    return [list(pairs[name]) for name in ("post", "reply", "reply_other")]


def estimate(judges: dict[str, LLMJudge], known: tuple, cells: dict) -> dict[str, float]:
    """Sum of `Client.estimate` over controls and comparisons of all criteria: an upper guess, nothing is asked."""
    total: dict[str, float] = {}
    for judge in judges.values():
        asked = [judge.questions(*columns) for columns in llm_controls.pairs(*known).values()]
        asked += [judge.questions(*_asked(pairs)) for pairs in cells.values()]
        one = judge.client.estimate([question for part in asked for question in part])
        total = {name: total.get(name, 0) + value for name, value in one.items()}
    return total


def _cells(results: Results, frame: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """{(method, seed): first reply of the run and of SFT with its seed, to the first compare_posts posts}."""

    def first(method: str, seed: int) -> pd.DataFrame:
        table = replies.cell(frame, method, seed).drop_duplicates("post_id")
        return table.head(results.cfg.llm_judge.compare_posts)

    return {
        (method, seed): first(method, seed).merge(
            first("sft", seed), on="post_id", suffixes=("", "_other")
        )
        for seed in results.cfg.seeds
        for method in results.trained
    }
