"""What people set as bars: how the judge ranks their replies, how near they keep to a post.

    people = human_baseline.measure(validation_posts, judge, encoder)
    people.thresholds([0.5, 0.9])         # judge scores that half, a tenth of people's replies reach

Bars come from *validation* posts, so that test posts stay unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from polylib.config import UserError
from polylib.evaluation import failures

Scorer = Callable[[list[str], list[str]], np.ndarray]


@dataclass(frozen=True)
class HumanBaseline:
    """judged: ascending judge scores of people's replies to validation posts; off_topic_below: the quantile of
    people's relevance under which `failures` calls a reply off topic."""

    judged: np.ndarray
    off_topic_below: float

    def thresholds(self, quantiles: Iterable[float]) -> dict[float, float]:
        """{quantile: judge score}."""
        return {float(q): float(np.quantile(self.judged, q)) for q in quantiles}


def measure(posts: Iterable, judge: Scorer, encoder) -> HumanBaseline:
    """The bars of one study. UserError without human replies to these validation posts, ValueError where the judge
    returns a number that is none."""
    pairs = [(post.text, reply) for post in posts for reply in post.replies]
    if not pairs:
        raise UserError("evaluation: no human replies to validation posts; lower data.min_replies")
    texts, replies = map(list, zip(*pairs, strict=True))
    relevance = (encoder.encode(texts).astype(float) * encoder.encode(replies)).sum(axis=1)
    return HumanBaseline(
        np.sort(finite(judge, texts, replies, "judge")),
        float(np.quantile(relevance, failures.OFF_TOPIC_QUANTILE)),
    )


def finite(scorer: Scorer, posts: list[str], replies: list[str], name: str) -> np.ndarray:
    """scorer(posts, replies) as (N,) floats; ValueError if they are not N finite numbers."""
    values = np.asarray(scorer(posts, replies), dtype=float)
    if values.shape != (len(replies),) or not np.isfinite(values).all():
        raise ValueError(
            f"{name}: expected {len(replies)} finite scores, found shape {values.shape} "
            f"with {int((~np.isfinite(values)).sum())} that are not"
        )
    return values
