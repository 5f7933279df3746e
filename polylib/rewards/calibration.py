"""From differences of scores to probabilities: one temperature, fitted on pairs, and how far off it is.

Pairs grow with the square of a post's replies, so that unweighted one long thread outvotes hundreds of short ones.
Here every post has weight 1, shared equally among its pairs."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

BINS = 20


def tied(target: np.ndarray, likes: np.ndarray, parent: pd.Series) -> np.ndarray:
    """`target` (N,) with its mean over the replies of one parent that were liked alike in place of each value.

    Among equally liked replies controlled engagement is minus what followers and delay predict: fitted to, it teaches
    who wrote, and ranked by, it rewards knowing who wrote. The mean keeps the scale that a regression needs and,
    where values are ranked, gives ties."""
    frame = pd.DataFrame({"target": target, "likes": likes, "parent": np.asarray(parent)})
    return (
        frame.groupby(["parent", "likes"], sort=False)["target"].transform("mean").to_numpy(float)
    )


def margins(
    score: np.ndarray, target: np.ndarray, likes: np.ndarray, parent: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Score of the winner by `target` minus score of the loser, over all pairs within a parent whose likes
    differ, and the pairs' weights: 1 over the number of pairs of the parent.

    All arguments (N,); a pair with equal targets is left out. Which of two equally liked replies has more
    controlled engagement is decided by the control alone, so such pairs say nothing."""
    found, weight = [np.zeros(0)], [np.zeros(0)]
    for rows in parent.groupby(parent.to_numpy()).indices.values():
        i, j = np.triu_indices(len(rows), 1)
        sign = np.sign(target[rows[i]] - target[rows[j]]) * (likes[rows[i]] != likes[rows[j]])
        found.append((sign * (score[rows[i]] - score[rows[j]]))[sign != 0])
        weight.append(np.full(len(found[-1]), 1 / max(len(found[-1]), 1)))
    return np.concatenate(found), np.concatenate(weight)


def accuracy(margin: np.ndarray, weight: np.ndarray) -> float:
    """Weighted share of margins above 0, ties half; NaN without any. With the weights of `margins`: the mean over
    posts of the accuracy within a post."""
    return float(np.average(_right(margin), weights=weight)) if len(margin) else float("nan")


def temperature(margin: np.ndarray, weight: np.ndarray) -> float:
    """T that maximises the weighted likelihood of sigmoid(margin / T): temperature scaling (Guo et al. 2017) on pairs.

    Between exp(-5) and exp(5) times the mean size of the margins. Raises ValueError without a margin."""
    if not len(margin):
        raise ValueError("no pair to fit a temperature on")
    spread = max(float(np.average(np.abs(margin), weights=weight)), 1e-9)
    loss = lambda log_t: weight @ np.logaddexp(0, -margin / (spread * np.exp(log_t))) / weight.sum()  # noqa: E731
    return float(spread * np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def curve(
    margin: np.ndarray, weight: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Mean size of the margins and share ranked right in `bins` groups of equal weight: what a size of margin is
    worth, without assuming a form. Both (at most bins,): a pair of much weight can fill more than one group; one
    point at (0, .5) with fewer pairs than bins."""
    if len(margin) < bins:
        return np.zeros(1), np.full(1, 0.5)
    parts = _groups(margin, weight, bins)
    size = [np.average(np.abs(margin[part]), weights=weight[part]) for part in parts]
    return np.array(size), np.array([accuracy(margin[part], weight[part]) for part in parts])


def _right(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


def _groups(margin: np.ndarray, weight: np.ndarray, bins: int) -> list[np.ndarray]:
    """Positions by rising size of the margin, cut where the weight so far passes a multiple of 1 / bins."""
    order = np.argsort(np.abs(margin), kind="stable")
    middle = np.cumsum(weight[order]) - weight[order] / 2
    group = np.minimum((middle / weight.sum() * bins).astype(int), bins - 1)
    return np.split(order, np.flatnonzero(np.diff(group)) + 1)
