"""Scores of a reply under its post: reward(posts, replies) -> (N,), with components(posts, replies) beside
it.

fitted = rewards.fit_all(rows, encoder, cfg.reward_model, folder, seed)     # notebook 02 reward =
rewards.load(folder, encoder)                                      # every later stage judge =
rewards.load_judge(folder)                                          # evaluation only"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from polylib.config import RewardModelConfig, UserError
from polylib.rewards import heuristic, judge, learned
from polylib.rewards.combined import CombinedReward
from polylib.rewards.heuristic import HeuristicReward
from polylib.rewards.judge import Judge
from polylib.rewards.learned import EngagementReward

__all__ = [
    "CombinedReward",
    "EngagementReward",
    "Fitted",
    "HeuristicReward",
    "Judge",
    "fit_all",
    "load",
    "load_judge",
]


@dataclass(frozen=True)
class Fitted:
    learned: EngagementReward
    heuristic: HeuristicReward
    combined: CombinedReward
    judge: Judge


def fit_all(rows: pd.DataFrame, encoder, cfg: RewardModelConfig, folder: Path, seed: int) -> Fitted:
    """Fit rewards on split train (learned: stopped on validation) and the judge on split judge; save all in
    `folder`.

    `rows` are those of data.prepare.load_rows; nothing of split test is read here."""
    train, validation, judged = (rows[rows["split"] == name] for name in ("train", "validation", "judge"))
    engagement = learned.fit(train, validation, encoder, cfg, seed)
    rules = HeuristicReward(encoder, cfg.heuristic).fit(train)
    both = CombinedReward(engagement, rules, cfg.learned_weight, cfg.heuristic_weight)
    fitted = Fitted(engagement, rules, both, judge.fit(judged, seed))
    for part in (fitted.learned, fitted.heuristic, fitted.combined, fitted.judge):
        part.save(folder)
    return fitted


def load(folder: Path, encoder, name: str = "combined") -> CombinedReward | EngagementReward | HeuristicReward:
    """The reward `name` (combined, learned or heuristic) that `fit_all` saved. Raises UserError if it is not
    there."""
    folder = _existing(folder, "card.json")
    if name == "learned":
        return learned.load(folder, encoder)
    if name == "heuristic":
        return heuristic.load(folder, encoder)
    if name == "combined":
        return CombinedReward.load(folder, learned.load(folder, encoder), heuristic.load(folder, encoder))
    raise UserError(f"unknown reward {name!r}; use combined, learned or heuristic")


def load_judge(folder: Path) -> Judge:
    return judge.load(_existing(folder, "judge.json"))


def _existing(folder: Path, file: str) -> Path:
    if not (Path(folder) / file).is_file():
        raise UserError(f"{folder}: no fitted rewards here ({file} is missing); run stage reward_model first")
    return Path(folder)
