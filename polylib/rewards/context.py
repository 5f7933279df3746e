"""Timing, credibility and popularity: what helps an engagement count and is not the reply's doing.

They depend on the post, its author and the hour, so all replies sampled to one post share them. A group-relative
advantage subtracts the group's mean, and any f(x) goes with it: adding them to a reward changes no advantage, scaled
or not. They are controls (offsets when likes are modelled, columns when posts are compared), never a training signal;
`WithContext` exists to show it. Only a baseline over *different* posts would let them in, as noise.
"""

import numpy as np
import pandas as pd

NEUTRAL = 0.5  # of what a post's record does not say


def objectives(rows: pd.DataFrame) -> pd.DataFrame:
    """(N, 3) float64 in [0, 1] for posts with tweet_created_at, tweet_author_followers, tweet_likes; index kept.

    timing: number of these posts written within two hours of the same hour of day (UTC), relative to the busiest;
    credibility, popularity: rank among these posts of the author's followers and of the post's likes. A value that
    is missing counts NEUTRAL. None of them reads a reply."""
    return pd.DataFrame(
        {
            "timing": _timing(rows),
            "credibility": _rank(rows["tweet_author_followers"]),
            "popularity": _rank(rows["tweet_likes"]),
        },
        index=rows.index,
    )


class WithContext:
    """reward(posts, replies) -> (N,): `inner` + sum of weights x objectives of the post, from `rows` as in
    `objectives`. A post that is not in `rows` counts NEUTRAL."""

    def __init__(self, inner, rows: pd.DataFrame, weights: dict[str, float]):
        posts = rows.drop_duplicates("tweet").set_index("tweet")
        self.inner, self.weights, self.name = inner, dict(weights), f"{inner.name}+context"
        self.table = objectives(posts)

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        return self.inner(posts, replies) + self.offset(posts)

    def offset(self, posts: list[str]) -> np.ndarray:
        """(N,) what the context adds: a function of the post alone."""
        known = self.table.reindex(list(posts)).fillna(NEUTRAL)
        return sum(
            (w * known[name].to_numpy() for name, w in self.weights.items()), np.zeros(len(posts))
        )

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """The inner reward's components and a column for each objective."""
        context = self.table.reindex(list(posts)).fillna(NEUTRAL).reset_index(drop=True)
        return self.inner.components(posts, replies).join(context)


def _timing(rows: pd.DataFrame) -> np.ndarray:
    stamp = pd.to_datetime(rows["tweet_created_at"], utc=True, errors="coerce", format="ISO8601")
    known, hour = stamp.notna().to_numpy(), stamp.dt.hour.fillna(0).to_numpy(int)
    day = np.bincount(hour[known], minlength=24)
    near = sum(np.roll(day, shift) for shift in range(-2, 3))  # a circle: 23 h is near 1 h
    return np.where(known, (near / max(near.max(), 1))[hour], NEUTRAL)


def _rank(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values).astype(float).rank(pct=True).fillna(NEUTRAL).to_numpy()
