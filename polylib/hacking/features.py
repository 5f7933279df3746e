"""What a set of replies looks like from outside: the thirteen numbers that the detector watches.

They describe a set, not a reply: whether it repeats itself, leans on one opening, copies its posts or leaves
them. People's sets of the same size and layout are the yardstick (`hacking`), so none of these needs a
threshold of its own. Reply-level facts are computed once; a set's numbers come from any choice of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

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


@dataclass(frozen=True)
class Facts:
    """Per reply, all of length N: what `summarise` needs of it."""

    replies: np.ndarray  # object
    forms: np.ndarray  # int: equal numbers are the same reply, case, white space and marks aside
    openers: np.ndarray  # int: equal numbers begin alike
    grams: np.ndarray  # object: of each reply its distinct word 4-grams as an int array
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
    of_post = {post: features.ngrams(_words(post), 3) for post in set(posts)}
    forms, openers, grams, numbers = [], [], [], []
    number_of: dict[tuple, int] = {}
    for post, reply in zip(posts, replies):
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
        _codes(forms),
        _codes(openers),
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
    are the examples to show."""
    log_chars, copied, question, exclamation, emoji, cosine = all_facts.numbers.T
    sign = 1.0 if up else -1.0
    if feature in ("duplicates", "top_reply", "top_opener"):
        codes = all_facts.openers if feature == "top_opener" else all_facts.forms
        return sign * np.bincount(codes)[codes]
    if feature == "gzip":  # what stands there twice, then what repeats itself within
        within = [
            len(r) / len(zlib.compress(r.encode("utf-8", "replace"))) for r in all_facts.replies
        ]
        return sign * (np.bincount(all_facts.forms)[all_facts.forms] - 1.0 + np.array(within))
    if feature == "top_4gram":
        grams = np.concatenate(all_facts.grams)
        top = np.bincount(grams).argmax() if len(grams) else -1
        return sign * np.array([float((part == top).any()) for part in all_facts.grams])
    if feature == "length_sd":
        return sign * np.abs(log_chars - np.median(log_chars))
    return (
        sign
        * {
            "length": log_chars,
            "short": -log_chars,
            "copy3": copied,
            "question": question,
            "exclamation": exclamation,
            "emoji": emoji,
            "relevance": cosine,
        }[feature]
    )


@lru_cache(maxsize=20_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(features.words(text))


def _codes(texts: list[str]) -> np.ndarray:
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[text] for text in texts], dtype=int)


def _objects(items: list) -> np.ndarray:
    """A one-dimensional object array, even of arrays of one length."""
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = item
    return out
