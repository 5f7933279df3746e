"""Scores as verdicts on pairs of replies, and do two raters agree beyond chance?

judge = ScoreJudge(fitted.judge)                      # the study's judge, in the form of `LLMJudge.compare`
kappa(verdicts, others, posts)                        # {kappa, low, high, agreement, n, ties, missing, reason}
"""

import numpy as np
import pandas as pd

from polylib.rewards.llm import Comparison

MARGIN = 0.2  # log-odds below which the judge abstains: it is less than 55 % sure
DRAWS = 2000
SAME = "one rater gives one answer only: chance agreement is all there is"


class ScoreJudge:
    """A scorer as a pairwise judge, in the form of `LLMJudge.compare`: the judge of the evaluation, or any reward.

    scorer(posts, replies) -> (N,) log-odds, as the study's judge gives them: scaled on held-out human pairs."""

    def __init__(self, scorer):
        self.scorer = scorer

    def compare(self, posts: list[str], a: list[str], b: list[str]) -> Comparison:
        """wins 1, 0 or .5 where it abstains; consistent in both orders by construction."""
        return Comparison(
            hard(soft_wins(self.scorer(posts, a), self.scorer(posts, b))), 1.0, 0.5, 0.0
        )


def soft_wins(a, b, margin: float = MARGIN) -> np.ndarray:
    """sigmoid(a - b) of scores (N,); .5, a tie, where the log-odds are within `margin` of 0."""
    odds = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return np.where(np.abs(odds) < margin, 0.5, 0.5 * (1 + np.tanh(odds / 2)))


def hard(soft: np.ndarray) -> np.ndarray:
    """Verdicts 1, 0 and .5 (tie) of soft wins."""
    return 0.5 + 0.5 * np.sign(soft - 0.5)


def kappa(first, second, posts, seed: int = 0) -> dict:
    """Cohen's kappa (1960) of verdicts 1, 0 and .5 (tie, a category of its own), with a 95 % bootstrap over posts.

    first, second, posts: (N,); NaN is missing, left out and counted. agreement: share of equal verdicts; ties: share of
    pairs with a tie of either. Keys: kappa, low, high, agreement, n, ties, missing, reason (why kappa is NaN)."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(first) & np.isfinite(second)
    a, b, group = first[known], second[known], pd.factorize(np.asarray(posts)[known])[0]
    out = dict.fromkeys(("kappa", "low", "high", "agreement", "ties"), np.nan)
    out |= {"n": len(a), "missing": int((~known).sum()), "reason": "no pair has both verdicts"}
    if not len(a):
        return out
    names = np.unique(np.concatenate([a, b]))
    tables = np.zeros((group.max() + 1, len(names), len(names)))
    np.add.at(tables, (group, np.searchsorted(names, a), np.searchsorted(names, b)), 1)
    value = float(_kappa(tables.sum(axis=0)))
    out |= {
        "kappa": value,
        "agreement": float((a == b).mean()),
        "ties": float(((a == 0.5) | (b == 0.5)).mean()),
        "reason": "" if np.isfinite(value) else SAME,
    }
    if len(tables) > 1 and np.isfinite(value):
        counts = np.random.default_rng(seed).multinomial(
            len(tables), np.full(len(tables), 1 / len(tables)), size=DRAWS
        )
        drawn = _kappa(np.tensordot(counts, tables, axes=1))
        out["low"], out["high"] = (float(q) for q in np.nanquantile(drawn, [0.025, 0.975]))
    return out


def _kappa(table: np.ndarray) -> np.ndarray:
    """Of contingency tables (..., K, K); NaN where both raters give one answer only."""
    share = table / table.sum(axis=(-2, -1), keepdims=True)
    chance = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    seen = np.trace(share, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (seen - chance) / (1 - chance), np.nan)
