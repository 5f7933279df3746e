"""Scores as verdicts on pairs of replies: who wins, and when the scorer had better abstain."""

from __future__ import annotations

import numpy as np

from polylib.rewards.llm import Comparison

MARGIN = 0.2  # log-odds below which the judge abstains: it is less than 55 % sure


class ScoreJudge:
    """A scorer as a pairwise judge, in the form of `LLMReward.compare`: the judge of the evaluation, or any reward.

    scorer(posts, replies) -> (N,) log-odds once divided by `temperature` (1 for the study's judge, which is scaled on
    held-out human pairs; `rewards.calibration.temperature` fits it for others)."""

    def __init__(self, scorer, temperature: float = 1.0, margin: float = MARGIN):
        self.scorer, self.temperature, self.margin = scorer, temperature, margin

    def compare(self, posts: list[str], a: list[str], b: list[str]) -> Comparison:
        """wins 1, 0 or .5 where it abstains; consistent in both orders by construction."""
        soft = soft_wins(
            self.scorer(posts, a), self.scorer(posts, b), self.temperature, self.margin
        )
        return Comparison(hard(soft), 1.0, 0.5, 0.0)


def soft_wins(a, b, temperature: float = 1.0, margin: float = MARGIN) -> np.ndarray:
    """sigmoid((a - b) / temperature) of scores (N,); .5, a tie, where the log-odds are within `margin` of 0."""
    odds = (np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) / temperature
    return np.where(np.abs(odds) < margin, 0.5, 0.5 * (1 + np.tanh(odds / 2)))


def hard(soft: np.ndarray) -> np.ndarray:
    """Verdicts 1, 0 and .5 (tie) of soft wins."""
    return 0.5 + 0.5 * np.sign(soft - 0.5)
