"""The reward that trains policies by default: learned and heuristic, both in standard deviations of human
replies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from polylib import run
from polylib.rewards.heuristic import HeuristicReward
from polylib.rewards.learned import EngagementReward


class CombinedReward:
    """reward(posts, replies) -> (N,) float64 = w_l * learned + w_h * standardised heuristic, weights scaled
    to sum 1.

    Each part has mean 0 and sd 1 over the human training replies, so .6 and .4 mean what they say; the raw
    heuristic spans a tenth of the learned score's range and would hardly count."""

    name = "combined"

    def __init__(
        self,
        learned: EngagementReward,
        heuristic: HeuristicReward,
        learned_weight: float = 0.6,
        heuristic_weight: float = 0.4,
    ):
        total = learned_weight + heuristic_weight
        self.learned, self.heuristic = learned, heuristic
        self.learned_weight, self.heuristic_weight = learned_weight / total, heuristic_weight / total

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        return self.learned_weight * self.learned(posts, replies) + self.heuristic_weight * self.heuristic.standardised(
            posts, replies
        )

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """`learned`, `learned_sd`, `heuristic` (standardised) and the heuristic's own components in [0,
        1]."""
        parts = self.learned.components(posts, replies)
        parts["heuristic"] = self.heuristic.standardised(posts, replies)
        return parts.join(self.heuristic.components(posts, replies))

    def save(self, folder: Path) -> None:
        """Only the weights; the two parts save themselves."""
        run.write_json(
            Path(folder) / "combined.json",
            {"learned": self.learned_weight, "heuristic": self.heuristic_weight},
        )

    @classmethod
    def load(cls, folder: Path, learned: EngagementReward, heuristic: HeuristicReward) -> CombinedReward:
        weights = json.loads((Path(folder) / "combined.json").read_text())
        return cls(learned, heuristic, weights["learned"], weights["heuristic"])
