"""Scores of a reply under its post: reward(posts, replies) -> (N,), with components(posts, replies) beside it.

    fitted = rewards.fit_all(rows, encoder, cfg.reward_model, folder, seed, cfg.model)     # notebook 02
    reward = rewards.load(folder, encoder, "combined", cfg.model)                          # every later stage
    judge = rewards.load_judge(folder)                                                     # evaluation only

The language model behind coherence is read only by rewards that use it, and only at their first score."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polylib import run
from polylib.config import ModelConfig, RewardModelConfig, UserError
from polylib.rewards import coherence, heuristic, judge, learned
from polylib.rewards.coherence import Coherence
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
FIT = 300  # human replies behind the floor's median
WIDTH = 0.5  # sd of human cosines over which the floor sets in


class CombinedReward:
    """reward(posts, replies) -> (N,) float64 = w_l learned + w_h heuristic + w_c coherence, lowered below the floor.

    Each part has mean 0 and sd 1 over human training replies and the weights are scaled to sum 1, so .6 and .4 mean
    what they say; the raw heuristic spans a tenth of the learned score's range and would hardly count. `coherence`
    may be None if its weight is 0; then no language model is needed."""

    name = "combined"

    def __init__(
        self,
        learned: EngagementReward,
        heuristic: HeuristicReward,
        learned_weight: float = 0.6,
        heuristic_weight: float = 0.4,
        coherence: Coherence | None = None,
        coherence_weight: float = 0.0,
    ):
        weights = {
            "learned": learned_weight,
            "heuristic": heuristic_weight,
            "coherence": coherence_weight,
        }
        if not sum(weights.values()) > 0:
            raise UserError(
                "reward_model: learned_weight, heuristic_weight, coherence_weight must not all be 0"
            )
        if coherence_weight > 0 and coherence is None:
            raise UserError(
                "reward_model.coherence_weight is above 0, but no language model was given: pass cfg.model"
            )
        self.learned, self.heuristic, self.coherence = learned, heuristic, coherence
        self.weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self.floor: dict[str, float] = {}

    def fit(self, rows: pd.DataFrame, quantile: float, seed: int) -> "CombinedReward":
        """Set the relevance floor from human replies (tweet, reply); quantile 0 = none.

        With c the cosine of post and reply, c_q its `quantile` over people's replies, s the weighted sum, m and d
        median and sd of s over people's replies, and w = smoothstep((c_q - c) / (half an sd of c)) in [0, 1]:

            reward = s - w (d + max(s - m, 0))

        So nothing changes above c_q, and half an sd below it no style reaches the median human reply (at most m - d).
        """
        self.floor = {}
        if quantile > 0:
            some = rows.sample(min(FIT, len(rows)), random_state=seed)
            cosine = self.heuristic.cosine(list(rows["tweet"]), list(rows["reply"]))
            total = self(list(some["tweet"]), list(some["reply"]))
            self.floor = {
                "cosine": float(np.quantile(cosine, quantile)),
                "width": max(WIDTH * float(cosine.std()), 1e-3),
                "median": float(np.median(total)),
                "sd": float(total.std()),
            }
        return self

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        posts, replies = list(posts), list(replies)
        total = self.weights["learned"] * self.learned(posts, replies)
        total = total + self.weights["heuristic"] * self.heuristic.standardised(posts, replies)
        if self.weights["coherence"]:
            total = total + self.weights["coherence"] * self.coherence(posts, replies)
        if self.floor:
            above = np.maximum(total - self.floor["median"], 0)
            total = total - self._off_topic(posts, replies) * (self.floor["sd"] + above)
        return total

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """`learned`, `learned_sd`, `heuristic` (standardised), the heuristic's own components in [0, 1]; coherence's
        components if it has a weight; `off_topic` (w of the floor, 0 to 1) if there is a floor."""
        posts, replies = list(posts), list(replies)
        parts = self.learned.components(posts, replies)
        parts["heuristic"] = self.heuristic.standardised(posts, replies)
        parts = parts.join(self.heuristic.components(posts, replies))
        if self.weights["coherence"]:
            parts = parts.join(self.coherence.components(posts, replies))
        if self.floor:
            parts["off_topic"] = self._off_topic(posts, replies)
        return parts

    def _off_topic(self, posts: list[str], replies: list[str]) -> np.ndarray:
        depth = (self.floor["cosine"] - self.heuristic.cosine(posts, replies)) / self.floor["width"]
        x = np.clip(depth, 0, 1)
        return x * x * (3 - 2 * x)

    def save(self, folder: Path) -> None:
        """Only weights and floor; the parts save themselves."""
        run.write_json(
            Path(folder) / "combined.json", {"weights": self.weights, "floor": self.floor}
        )


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
    `folder`. Coherence is fitted if `cfg_model` is given; UserError if its weight is above 0 and it is not.

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
    sense, stored = None, json.loads((folder / "combined.json").read_text())
    if name == "coherence" or stored["weights"]["coherence"] > 0:
        if cfg_model is None:
            raise UserError(
                f"{folder}: reward {name} scores with the base model; pass cfg.model to rewards.load"
            )
        sense = coherence.load(_existing(folder, "coherence.json"), cfg_model)
    if name == "coherence":
        return sense
    parts = learned.load(folder, encoder), heuristic.load(folder, encoder)
    first, second, third = (
        stored["weights"][part] for part in ("learned", "heuristic", "coherence")
    )
    reward = CombinedReward(*parts, first, second, sense, third)
    reward.floor = stored["floor"]
    return reward


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
