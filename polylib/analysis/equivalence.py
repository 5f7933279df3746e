"""Is quality kept? Two one-sided tests against a margin that was fixed beforehand, instead of "p above .05".

The margin comes from the registration, with its reason: that of the laptop study is one SD of the difference between
two random halves of people's replies to the same posts, a loss that nobody could tell from people's own scatter.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from polylib.stats import ONE_SEED, SAME, Claim, two_way_t


def tost(effect: float, error: float, df: float, margin: float) -> Claim:
    """Two one-sided t tests (Schuirmann 1987) of |difference| < margin. p: of "the difference is at least the margin";
    low, high: the 90 % interval that decides it at 5 %, its low end alone decides "worse by the margin or more". NaN
    with the reason where the data do not support it. ValueError for a margin of 0 or less."""
    if not margin > 0:
        raise ValueError(f"an equivalence margin must be above 0, found {margin}")
    if not error > 1e-12:
        return Claim(*[np.nan] * 3, float(df), SAME)
    p = max(stats.t.sf((effect + margin) / error, df), stats.t.cdf((effect - margin) / error, df))
    low, high = stats.t.interval(0.90, df, effect, error)
    return Claim(float(low), float(high), float(p), float(df))


def method(a: np.ndarray, b: np.ndarray, margin: float) -> Claim:
    """Claim about the method: a, b (S, P), runs independent, prompts paired, Satterthwaite degrees of freedom."""
    if len(a) < 2:
        return Claim(*[np.nan] * 4, ONE_SEED)
    return tost(*(float(v) for v in two_way_t(a - b, (a, b))), margin)


def checkpoints(a: np.ndarray, b: np.ndarray, margin: float) -> Claim:
    """Claim about these checkpoints: a, b (S, P), prompts the only sample, seeds averaged."""
    per_prompt = (a - b).mean(axis=0)
    return tost(per_prompt.mean(), stats.sem(per_prompt), len(per_prompt) - 1, margin)
