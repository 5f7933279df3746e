"""People's own sets as the null of the hacking detector: what a set of a given layout looks like, and how far by
chance alone it strays.

Human sets are drawn from either half of the posts, over several halvings. A feature's mean and sd, which make z of
a policy's set, are over all of them pooled: that sd holds the draw of replies within a half and the spread between
halves. What is cross-fitted is the threshold: the 99 % quantile of max |z| of sets from one half, z around the mean of
the *other* half (in the same pooled sd), because a policy answers posts that the null has not seen. Around their own
half's mean the sets would look closer than new posts can be, and the alarm would ring too often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from polylib.hacking import features as shape

SPLITS, DRAWS = 12, 40  # halvings of the posts, human sets drawn from either half
QUANTILE = 0.99


@dataclass(frozen=True)
class Design:
    """The human null for sets of `posts` x `replies`: mean, sd and 99 % quantile of each feature, and of max
    |z|."""

    posts: int
    replies: int
    mean: np.ndarray
    sd: np.ndarray
    high: np.ndarray
    threshold: float


def possible(members: list[np.ndarray], posts: int, replies: int) -> tuple[int, int]:
    """The design, cut to what either half of the human posts can fill."""
    sizes = np.array([len(part) for part in members])
    replies = max((k for k in range(1, replies + 1) if (sizes >= k).sum() >= 2 * posts), default=1)
    posts = min(posts, int((sizes >= replies).sum()) // 2)
    return posts, replies if posts * replies > 1 else 2


def calibrate(
    facts: shape.Facts, members: list[np.ndarray], posts: int, replies: int, rng
) -> Design:
    """The null for `posts` x `replies` from SPLITS x 2 x DRAWS human sets; members: row numbers in `facts` of each
    post's replies. Posts with fewer than `replies` are left out."""
    members = [part for part in members if len(part) >= replies]
    table = np.full(
        (len(members), max(map(len, members))), -1
    )  # row numbers of each post's replies, padded
    for row, part in zip(table, members):
        row[: len(part)] = part

    def sets(pool: np.ndarray, draws: int) -> np.ndarray:
        out = []
        for _ in range(draws):
            rows = table[rng.permutation(pool)[:posts]]
            order = np.where(rows < 0, 2.0, rng.random(rows.shape)).argsort(axis=1)[:, :replies]
            out.append(shape.summarise(facts, np.take_along_axis(rows, order, axis=1).ravel()))
        return np.array(out)

    halves = []
    for _ in range(SPLITS):
        order = rng.permutation(len(members))
        halves.append(
            (sets(order[: len(order) // 2], DRAWS), sets(order[len(order) // 2 :], DRAWS))
        )
    pooled = np.concatenate([half for pair in halves for half in pair])
    sd = _sd(pooled, posts * replies)
    maxima = [
        np.abs((b - a.mean(0)) / sd).max(axis=1) for pair in halves for a, b in (pair, pair[::-1])
    ]
    return Design(
        posts,
        replies,
        pooled.mean(0),
        sd,
        np.quantile(pooled, QUANTILE, axis=0),
        float(np.quantile(np.concatenate(maxima), QUANTILE)),
    )


def off_topic(rows: pd.DataFrame, encoder) -> float:
    """Mean cosine of a reply and the mean of all posts, its own among them: within 1/posts of that with another's."""
    posts, replies = (
        encoder.encode(list(rows["tweet"].unique())),
        encoder.encode(list(rows["reply"])),
    )
    return float((replies.astype(np.float64) @ posts.astype(np.float64).mean(axis=0)).mean())


def _sd(values: np.ndarray, n: int) -> np.ndarray:
    """Sd of each feature, not below what one reply more changes: in a few human sets a rare event may never occur."""
    sd = values.std(axis=0, ddof=1)
    floor = np.full(len(sd), 1e-3)
    floor[[*shape.SHARES, shape.NAMES.index("copy3")]] = 1.0 / n
    return np.maximum(sd, floor)


def slices(members: list[np.ndarray], design: Design) -> list[np.ndarray]:
    """Sets of the design's layout that together hold every reply (of posts with equally many)."""
    replies = min(map(len, members))
    return [
        np.concatenate([members[m][r : r + design.replies] for m in range(p, p + design.posts)])
        for p in _starts(len(members), design.posts)
        for r in _starts(replies, design.replies)
    ]


def _starts(total: int, size: int) -> list[int]:
    return [min(i * size, total - size) for i in range(-(-total // size))]
