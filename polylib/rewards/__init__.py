"""Scores of a reply under its post: reward(posts, replies) -> (N,), with components(posts, replies) beside it.

    fitted = rewards.fit_all(rows, encoder, cfg.reward_model, folder, seed, cfg.model)     # notebook 02
    reward = rewards.load(folder, encoder, "combined", cfg.model)                          # every later stage
    judge = rewards.load_judge(folder)                                                     # evaluation only

The language model behind coherence is read only by rewards that use it, and only at their first score."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from polylib import run
from polylib.config import ModelConfig, RewardModelConfig, UserError
from polylib.rewards import coherence, combined, heuristic, judge, learned
from polylib.rewards.coherence import Coherence
from polylib.rewards.combined import CombinedReward
from polylib.rewards.heuristic import HeuristicReward
from polylib.rewards.judge import Judge
from polylib.rewards.learned import EngagementReward

__all__ = [
    "Coherence",
    "CombinedReward",
    "EngagementReward",
    "Fitted",
    "HeuristicReward",
    "Judge",
    "fit_all",
    "load",
    "load_judge",
]
NAMES = ("combined", "learned", "heuristic", "coherence")


@dataclass(frozen=True)
class Fitted:
    """What `fit_all` fitted; coherence is None without a language model."""

    learned: EngagementReward
    heuristic: HeuristicReward
    combined: CombinedReward
    judge: Judge
    coherence: Coherence | None = None


def fit_all(
    rows: pd.DataFrame,
    encoder,
    cfg: RewardModelConfig,
    folder: Path,
    seed: int,
    cfg_model: ModelConfig | None = None,
) -> Fitted:
    """Fit rewards on split train (learned: stopped on validation) and the judge on split judge; save all in
    `folder`. Coherence is fitted if `cfg_model` is
    given; UserError if its weight is above 0 and it is not.

    `rows` are those of data.prepare.load_rows; nothing of split test is read here."""
    train, validation, judged = (
        rows[rows["split"] == name] for name in ("train", "validation", "judge")
    )
    engagement = learned.fit(train, validation, encoder, cfg, seed)
    rules = HeuristicReward(encoder, cfg.heuristic).fit(train)
    sense = Coherence(cfg_model).fit(train, seed) if cfg_model is not None else None
    both = CombinedReward(
        engagement, rules, cfg.learned_weight, cfg.heuristic_weight, sense, cfg.coherence_weight
    ).fit(train, cfg.relevance_floor, seed)
    fitted = Fitted(engagement, rules, both, judge.fit(judged, seed), sense)
    for part in filter(None, (engagement, rules, both, fitted.judge, sense)):
        part.save(folder)
    run.seal(folder)
    return fitted


def load(
    folder: Path,
    encoder,
    name: str = "combined",
    cfg_model: ModelConfig | None = None,
) -> CombinedReward | EngagementReward | HeuristicReward | Coherence:
    """The reward `name` that `fit_all` saved: combined, learned, heuristic or coherence. UserError if it is not there,
    or if it scores with a language model (coherence, or combined with a weight on it) and `cfg_model` is not given."""
    if name not in NAMES:
        raise UserError(f"unknown reward {name!r}; use {', '.join(NAMES)}")
    folder = _existing(folder, "card.json")
    if name == "learned":
        return learned.load(folder, encoder)
    if name == "heuristic":
        return heuristic.load(folder, encoder)
    sense = None
    if name == "coherence" or combined.needs_language_model(folder):
        if cfg_model is None:
            raise UserError(
                f"{folder}: reward {name} scores with the base model; pass cfg.model to rewards.load"
            )
        sense = coherence.load(folder, cfg_model)
    if name == "coherence":
        return sense
    return CombinedReward.load(
        folder, learned.load(folder, encoder), heuristic.load(folder, encoder), sense
    )


def load_judge(folder: Path) -> Judge:
    """The judge that `fit_all` saved. UserError if it is not there."""
    return judge.load(_existing(folder, "judge.json"))


def _existing(folder: Path, file: str) -> Path:
    if not (Path(folder) / file).is_file():
        raise UserError(
            f"{folder}: no fitted rewards here ({file} is missing); run stage reward_model first"
        )
    run.check(folder, "run stage reward_model again")
    return Path(folder)
