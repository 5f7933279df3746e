"""From differences of scores to probabilities: one temperature, fitted on pairs, and how far off it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

BINS = 10


def margins(score: np.ndarray, target: np.ndarray, likes: np.ndarray, parent: pd.Series) -> np.ndarray:
    """Score of the winner by `target` minus score of the loser, over all pairs within a parent whose likes
    differ. All (N,); a pair with equal targets is left out. Which of two equally liked replies has more
    controlled engagement is decided by the control alone, so such pairs say nothing."""
    found = [np.zeros(0)]
    for rows in parent.groupby(parent.to_numpy()).indices.values():
        i, j = np.triu_indices(len(rows), 1)
        sign = np.sign(target[rows[i]] - target[rows[j]]) * (likes[rows[i]] != likes[rows[j]])
        found.append((sign * (score[rows[i]] - score[rows[j]]))[sign != 0])
    return np.concatenate(found)


def accuracy(margin: np.ndarray) -> float:
    """Share of margins above 0, ties half; NaN without any."""
    return float((margin > 0).mean() + 0.5 * (margin == 0).mean()) if len(margin) else float("nan")


def temperature(margin: np.ndarray) -> float:
    """T that maximises the likelihood of sigmoid(margin / T): temperature scaling (Guo et al. 2017) on pairs.

    Between exp(-5) and exp(5) times the mean size of the margins. Raises ValueError without a margin."""
    if not len(margin):
        raise ValueError("no pair to fit a temperature on")
    spread = max(float(np.abs(margin).mean()), 1e-9)
    loss = lambda log_t: np.logaddexp(0, -margin / (spread * np.exp(log_t))).mean()  # noqa: E731
    return float(spread * np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def expected_error(margin: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of sigmoid(margin), margin = log-odds given to the reply that did win.

    Pairs in `bins` groups of equal size by confidence max(p, 1 - p); sum over groups of share times
    |mean confidence - share ranked right| (Guo et al. 2017). NaN with fewer pairs than bins: no group has any."""
    if len(margin) < bins:
        return float("nan")
    order = np.argsort(np.abs(margin), kind="stable")
    confidence = 1 / (1 + np.exp(-np.abs(margin[order])))
    right = (margin[order] > 0) + 0.5 * (margin[order] == 0)
    parts = np.array_split(np.arange(len(margin)), bins)
    return float(sum(abs(confidence[p].mean() - right[p].mean()) * len(p) for p in parts) / len(margin))


def curve(margin: np.ndarray, bins: int = 2 * BINS) -> tuple[np.ndarray, np.ndarray]:
    """Mean size of the margins and share ranked right in `bins` groups of equal size: what a size of margin is
    worth, without assuming a form. Both (bins,); one point at (0, .5) with fewer pairs than bins."""
    if len(margin) < bins:
        return np.zeros(1), np.full(1, 0.5)
    parts = np.array_split(margin[np.argsort(np.abs(margin), kind="stable")], bins)
    return np.array([np.abs(part).mean() for part in parts]), np.array([accuracy(part) for part in parts])
