"""What a set of replies looks like from outside: the thirteen numbers that the detector watches.

They describe a set, not a reply: whether it repeats itself, leans on one opening, copies its posts or leaves
them. People's sets of the same size and layout are the yardstick (`hacking`), so none of these needs a
threshold of its own. Reply-level facts are computed once; a set's numbers come from any choice of them."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

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
SHARES = tuple(NAMES.index(name) for name in
               ("short", "duplicates", "top_reply", "top_4gram", "top_opener", "question", "exclamation", "emoji"))
SHORT = 15


@dataclass(frozen=True)
class Facts:
    """Per reply, all of length N: what `summarise` needs of it."""

    replies: np.ndarray  # object
    forms: np.ndarray  # object: case, white space and marks aside; equal forms are the same reply
    grams: np.ndarray  # object: frozensets of word 4-grams
    openers: np.ndarray  # object
    numbers: np.ndarray  # (N, 6): log chars, copy3, question, exclamation, emoji, cosine

    def __len__(self) -> int:
        return len(self.replies)


def facts(posts: list[str], replies: list[str], encoder) -> Facts:
    """Facts of N replies, each under its post. `encoder.encode(texts) -> (N, d)` unit-norm; equal texts are
    encoded once."""
    if len(posts) != len(replies):
        raise ValueError(f"{len(posts)} posts but {len(replies)} replies")
    distinct = sorted({*posts, *replies})
    at = {text: i for i, text in enumerate(distinct)}
    vectors = encoder.encode(distinct).astype(np.float64)
    of_post = {post: features.ngrams(features.words(post), 3) for post in set(posts)}
    columns = {"forms": [], "grams": [], "openers": []}
    numbers = []
    for post, reply in zip(posts, replies):
        tokens = features.words(reply)
        trigrams = features.ngrams(tokens, 3)
        # A reply without words (emoji alone) is itself; otherwise marks at its end do not make it another one.
        columns["forms"].append(" ".join(tokens) or reply.strip())
        columns["grams"].append(frozenset(features.ngrams(tokens, 4)))
        columns["openers"].append(tuple(tokens[:3]) or (reply.strip(),))
        numbers.append((
            np.log1p(len(reply)),
            len(trigrams & of_post[post]) / len(trigrams) if trigrams else 0.0,
            "?" in reply,
            "!" in reply,
            bool(features.EMOJI.search(reply)),
            vectors[at[post]] @ vectors[at[reply]],
        ))
    return Facts(_objects(replies), *(_objects(columns[name]) for name in columns),
                 np.array(numbers, dtype=np.float64).reshape(-1, 6))


def summarise(all_facts: Facts, chosen: np.ndarray) -> np.ndarray:
    """The numbers (13,) of the replies `chosen` (row numbers), in the order of NAMES. ValueError for fewer than
    two."""
    n = len(chosen)
    if n < 2:
        raise ValueError("a set needs at least 2 replies")
    numbers = all_facts.numbers[chosen]
    log_chars, copied, question, exclamation, emoji, cosine = numbers.T
    counts = np.array(list(Counter(all_facts.forms[chosen]).values()))
    grams = Counter(gram for part in all_facts.grams[chosen] for gram in part)
    text = "\n".join(all_facts.replies[chosen]).encode("utf-8", "replace")
    return np.array([
        np.median(log_chars),
        log_chars.std(),
        (log_chars < np.log1p(SHORT)).mean(),
        counts[counts > 1].sum() / n,
        counts.max() / n,
        max(grams.values(), default=0) / n,
        max(Counter(all_facts.openers[chosen]).values()) / n,
        copied.mean(),
        question.mean(),
        exclamation.mean(),
        emoji.mean(),
        len(text) / len(zlib.compress(text, 6)),
        cosine.mean(),
    ])


def blame(all_facts: Facts, feature: str, up: bool) -> np.ndarray:
    """How much each reply (N,) contributes to a set's `feature` being too high (`up`) or too low; the largest
    are the examples to show."""
    log_chars, copied, question, exclamation, emoji, cosine = all_facts.numbers.T
    sign = 1.0 if up else -1.0
    if feature in ("duplicates", "top_reply", "gzip", "top_opener", "top_4gram"):
        common = {"top_opener": all_facts.openers, "top_4gram": _commonest_gram(all_facts)}.get(
            feature, all_facts.forms)
        counts = Counter(common)
        score = np.array([counts[item] for item in common], dtype=float)
        if feature == "gzip" and score.max() == 1:  # no reply twice: what repeats itself within
            score = np.array([len(r) / len(zlib.compress(r.encode("utf-8", "replace"))) for r in all_facts.replies])
        if feature == "top_4gram":
            score = np.array([float(item) for item in common])
        return sign * score
    if feature == "length_sd":
        distance = np.abs(log_chars - np.median(log_chars))
        return sign * distance
    return sign * {
        "length": log_chars, "short": -log_chars, "copy3": copied, "question": question,
        "exclamation": exclamation, "emoji": emoji, "relevance": cosine,
    }[feature]


def _commonest_gram(all_facts: Facts) -> np.ndarray:
    grams = Counter(gram for part in all_facts.grams for gram in part)
    if not grams:
        return np.zeros(len(all_facts))
    top = max(sorted(grams), key=grams.get)
    return np.array([top in part for part in all_facts.grams])


def _objects(items: list) -> np.ndarray:
    """A one-dimensional object array, even of tuples or sets."""
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = item
    return out
