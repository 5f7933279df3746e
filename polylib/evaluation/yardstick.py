"""What people set as bars: how the judge ranks their replies, how near they keep to a post.

    people = yardstick.measure(validation_posts, test_posts, judge, encoder)
    people.thresholds([0.5, 0.9])         # judge scores that half, a tenth of people's replies reach
    people.rank(scores)                   # judge scores -> share of people's replies below, 0 to 1

Bars come from *validation* posts, so that test posts stay unseen. Only a post's own bar needs people's replies to
that very post: it takes the difficulty of posts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from polylib.config import UserError
from polylib.evaluation import failures, overlap
from polylib.metrics import Undefined, pass_at_k

Scorer = Callable[[list[str], list[str]], np.ndarray]
OWN_QUANTILE = 0.5
OWN_REPLIES = 5  # human replies that a post's own bar needs


@dataclass(frozen=True)
class Yardstick:
    """judged: ascending judge scores of people's replies to validation posts; own: {test post id: judge scores of
    people's replies to it, in their order}; off_topic_below: the quantile of people's relevance under which
    `failures` calls a reply off topic; bertscore_floor: mean BERTScore of two people's replies to different posts."""

    judged: np.ndarray
    own: dict[str, np.ndarray]
    off_topic_below: float
    bertscore_floor: float

    def thresholds(self, quantiles: Iterable[float]) -> dict[float, float]:
        """{quantile: judge score}."""
        return {float(q): float(np.quantile(self.judged, q)) for q in quantiles}

    def rank(self, scores: np.ndarray) -> np.ndarray:
        """Share of people's replies that the judge ranks below each score: utility between 0 and 1."""
        return np.searchsorted(self.judged, scores, side="left") / len(self.judged)

    def pass_own(self, post: str, scores: np.ndarray, k: int, leave_one_out: bool = False) -> float:
        """pass@k against the median of people's replies to this very post; Undefined below OWN_REPLIES of them.

        leave_one_out: the scores are people's own replies, in their order, each against the median of the others.
        For k > 1 that is Undefined: about half of them pass by construction, so some of several always do."""
        human = self.own[post]
        if len(human) < OWN_REPLIES:
            raise Undefined(f"fewer than {OWN_REPLIES} human replies to the post")
        bars = np.quantile(human, OWN_QUANTILE)
        if leave_one_out:
            if k > 1:
                raise Undefined("about half of a post's people pass its own bar by construction")
            bars = np.array(
                [np.quantile(np.delete(human, i), OWN_QUANTILE) for i in range(len(human))]
            )
        return float(pass_at_k(len(scores), int((np.asarray(scores) >= bars).sum()), k))


def measure(validation: Iterable, test: Iterable, judge: Scorer, encoder) -> Yardstick:
    """The bars of one study. UserError without human replies to validation posts, ValueError where the judge
    returns a number that is none."""
    validation, test = list(validation), list(test)
    pairs = [(post.text, reply) for post in validation for reply in post.replies]
    if not pairs:
        raise UserError("evaluation: no human replies to validation posts; lower data.min_replies")
    texts, replies = map(list, zip(*pairs, strict=True))
    relevance = (encoder.encode(texts).astype(float) * encoder.encode(replies)).sum(axis=1)
    counts = np.cumsum([len(post.replies) for post in test])[:-1]
    asked = (
        [post.text for post in test for _ in post.replies],
        [reply for post in test for reply in post.replies],
    )
    own = finite(judge, *asked, "judge")
    return Yardstick(
        np.sort(finite(judge, texts, replies, "judge")),
        {post.id: part for post, part in zip(test, np.split(own, counts), strict=True)},
        float(np.quantile(relevance, failures.OFF_TOPIC_QUANTILE)),
        _floor(validation, encoder),
    )


def _floor(posts: list, encoder) -> float:
    """Each post's first reply with the next post's: what BERTScore gives replies that share nothing but language."""
    firsts = [post.replies[0] for post in posts]
    states = encoder.token_states(firsts)
    known = [states[text] for text in firsts if len(states[text])]
    if len(known) < 2:
        raise UserError(
            "evaluation: fewer than 2 validation posts have a first reply with words; use more data"
        )
    return float(np.mean([overlap.match([a], [b])[0, 0] for a, b in zip(known, known[1:])]))


def finite(scorer: Scorer, posts: list[str], replies: list[str], name: str) -> np.ndarray:
    """scorer(posts, replies) as (N,) floats; ValueError if they are not N finite numbers."""
    values = np.asarray(scorer(posts, replies), dtype=float)
    if values.shape != (len(replies),) or not np.isfinite(values).all():
        raise ValueError(
            f"{name}: expected {len(replies)} finite scores, found shape {values.shape} "
            f"with {int((~np.isfinite(values)).sum())} that are not"
        )
    return values
