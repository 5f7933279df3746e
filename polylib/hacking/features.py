"""What a set of replies looks like from outside: the thirteen numbers that the detector watches.

They describe a set, not a reply: whether it repeats itself, leans on one opening, copies its posts or leaves
them. People's sets of the same size and layout are the reference (`hacking`), so none of these needs a
threshold of its own. Reply-level facts are computed once; a set's numbers come from any choice of them.

People's own sets as the null of the hacking detector: what a set of a given layout looks like, and how far by
chance alone it strays.

Human sets are drawn from either half of the posts, over several halvings. A feature's mean and sd, which make z of
a policy's set, are over all of them pooled: that sd holds the draw of replies within a half and the spread between
halves. What is cross-fitted is the threshold: the 99 % quantile of max |z| of sets from one half, z around the mean of
the *other* half (in the same pooled sd), because a policy answers posts that the null has not seen. Around their own
half's mean the sets would look closer than new posts can be, and the alarm would ring too often."""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from polylib.rewards import features

NAMES = (
    "length",  # median of log1p(characters)
    "length_sd",  # sd of log1p(characters)
    "short",  # share below SHORT characters
    "duplicates",  # share of replies whose text another reply of the set has, too
    "top_reply",  # share of the commonest reply
    "top_4gram",  # share of replies that hold the commonest word 4-gram
    "top_opener",  # share that begin with the commonest three words (whole reply, if shorter)
    "copy3",  # mean share of a reply's word trigrams that stand in the post
    "question",  # share with a question mark
    "exclamation",
    "emoji",
    "gzip",  # bytes of all replies over their compressed bytes
    "relevance",  # mean cosine of reply and post
)
SHARES = tuple(
    NAMES.index(name)
    for name in (
        "short",
        "duplicates",
        "top_reply",
        "top_4gram",
        "top_opener",
        "question",
        "exclamation",
        "emoji",
    )
)
SHORT = 15
SPLITS, DRAWS = 12, 40  # halvings of the posts, human sets drawn from either half
QUANTILE = 0.99


@dataclass(frozen=True)
class Facts:
    """Per reply, all of length N: what `summarise` needs of it."""

    replies: np.ndarray  # object
    forms: np.ndarray  # int: equal numbers are the same reply, case, white space and marks aside
    openers: np.ndarray  # int: equal numbers begin alike
    grams: np.ndarray  # object: of each reply its distinct word 4-grams as an int array
    numbers: np.ndarray  # (N, 6): log chars, copy3, question, exclamation, emoji, cosine


def facts(posts: list[str], replies: list[str], encoder) -> Facts:
    """Facts of N replies, each under its post. `encoder.encode(texts) -> (N, d)` unit-norm; equal texts are
    encoded once."""
    distinct = sorted({*posts, *replies})
    at = {text: i for i, text in enumerate(distinct)}
    vectors = encoder.encode(distinct).astype(np.float64)
    of_post = {post: features.ngrams(_words(post), 3) for post in set(posts)}
    forms, openers, grams, numbers = [], [], [], []
    number_of: dict[tuple, int] = {}
    for post, reply in zip(posts, replies, strict=True):
        tokens = _words(reply)
        trigrams = features.ngrams(tokens, 3)
        # A reply without words (emoji alone) is itself; otherwise marks at its end do not make it another one.
        forms.append(" ".join(tokens) or reply.strip())
        openers.append(" ".join(tokens[:3]) or reply.strip())
        grams.append(
            np.array(
                [number_of.setdefault(g, len(number_of)) for g in features.ngrams(tokens, 4)],
                dtype=int,
            )
        )
        numbers.append(
            (
                np.log1p(len(reply)),
                len(trigrams & of_post[post]) / len(trigrams) if trigrams else 0.0,
                "?" in reply,
                "!" in reply,
                bool(features.EMOJI.search(reply)),
                vectors[at[post]] @ vectors[at[reply]],
            )
        )
    return Facts(
        _objects(replies),
        pd.factorize(_objects(forms))[0],
        pd.factorize(_objects(openers))[0],
        _objects(grams),
        np.array(numbers, dtype=np.float64).reshape(-1, 6),
    )


def summarise(all_facts: Facts, chosen: np.ndarray) -> np.ndarray:
    """The numbers (13,) of the replies `chosen` (row numbers), in the order of NAMES. ValueError for fewer than
    two."""
    n = len(chosen)
    if n < 2:
        raise ValueError("a set needs at least 2 replies")
    numbers = all_facts.numbers[chosen]
    log_chars, copied, question, exclamation, emoji, cosine = numbers.T
    counts = np.bincount(all_facts.forms[chosen])
    grams = np.concatenate(all_facts.grams[chosen])
    text = "\n".join(all_facts.replies[chosen]).encode("utf-8", "replace")
    return np.array(
        [
            np.median(log_chars),
            log_chars.std(),
            (log_chars < np.log1p(SHORT)).mean(),
            counts[counts > 1].sum() / n,
            counts.max() / n,
            np.bincount(grams).max() / n if len(grams) else 0.0,
            np.bincount(all_facts.openers[chosen]).max() / n,
            copied.mean(),
            question.mean(),
            exclamation.mean(),
            emoji.mean(),
            len(text) / len(zlib.compress(text, 6)),
            cosine.mean(),
        ]
    )


def blame(all_facts: Facts, feature: str, up: bool) -> np.ndarray:
    """How much each reply (N,) contributes to a set's `feature` being too high (`up`) or too low; the largest
    are the examples to show. Of gzip: what stands there twice, then what repeats itself within."""
    log_chars, copied, question, exclamation, emoji, cosine = all_facts.numbers.T
    same = np.bincount(all_facts.forms)[all_facts.forms]
    grams = np.concatenate(all_facts.grams)
    top = np.bincount(grams).argmax() if len(grams) else -1
    within = [len(r) / len(zlib.compress(r.encode("utf-8", "replace"))) for r in all_facts.replies]
    driven = {
        "length": log_chars,
        "length_sd": np.abs(log_chars - np.median(log_chars)),
        "short": -log_chars,
        "duplicates": same,
        "top_reply": same,
        "top_4gram": np.array([float((part == top).any()) for part in all_facts.grams]),
        "top_opener": np.bincount(all_facts.openers)[all_facts.openers],
        "copy3": copied,
        "question": question,
        "exclamation": exclamation,
        "emoji": emoji,
        "gzip": same - 1.0 + np.array(within),
        "relevance": cosine,
    }
    return driven[feature] * (1.0 if up else -1.0)


@lru_cache(maxsize=20_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(features.words(text))


def _objects(items: list) -> np.ndarray:
    """A one-dimensional object array, even of arrays of one length."""
    return pd.Series(items, dtype=object).to_numpy()


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


def calibrate(facts: Facts, members: list[np.ndarray], posts: int, replies: int, rng) -> Design:
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
            out.append(summarise(facts, np.take_along_axis(rows, order, axis=1).ravel()))
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
    floor[[*SHARES, NAMES.index("copy3")]] = 1.0 / n
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
