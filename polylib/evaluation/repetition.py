"""How much do the replies to ONE prompt repeat each other? Three measures that need no encoder.

Each is taken so that neither the number nor the length of replies decides: sets of one size, or a budget of bytes.
What replies do not define raises Undefined. Shaib et al. (2024) find compression, self-repetition and self-BLEU
(in `text`) together enough for wording, and weakly correlated.
"""
from __future__ import annotations

import itertools
import zlib

import numpy as np
from scipy.special import comb

from polylib.evaluation.text import words
from polylib.metrics import Undefined

VOCABULARY = 30_000  # V of EAD, one constant for all studies: about the words of everyday English


def ead(distinct: int, total: int, vocabulary: int = VOCABULARY) -> float:
    """Expectation-adjusted distinct n-grams (Liu et al. 2022, eq. 4): distinct words over the number that as many
    draws from a uniform vocabulary would give, N / (V (1 - ((V-1)/V)^C)). May exceed 1."""
    if total < 1:
        raise Undefined("no word in the replies")
    return float(distinct / (-vocabulary * np.expm1(total * np.log1p(-1 / vocabulary))))


def ead_of_sets(texts: list[str], picks: np.ndarray) -> float:
    """Mean EAD of the words of sets of replies; picks (S, size) indices by `novelty.sets`.

    Liu's answer to the length bias of distinct-n, over whole replies: at one budget of words, as `text.distinct_n`
    has, it would be distinct-1 times a constant."""
    tokens = [words(text) for text in texts]
    forms, lengths = [set(t) for t in tokens], [len(t) for t in tokens]
    return float(np.mean([ead(len(set().union(*(forms[i] for i in pick))), sum(lengths[i] for i in pick))
                          for pick in picks.tolist()]))


def compression_ratio(texts: list[str], budget: int, rng: np.random.Generator, draws: int = 20) -> float:
    """Bytes / compressed bytes of the replies joined by line ends, cut at `budget` bytes; mean of `draws` orders.

    Shaib et al. 2024, higher = more repetitive. Compressed once, by DEFLATE without gzip's header, checksum and
    time, which would be a tenth of so short a text."""
    parts = [text.encode("utf-8", "replace") for text in texts if text.strip()]
    if sum(map(len, parts)) + len(parts) - 1 < budget:
        raise Undefined(f"fewer than {budget} bytes in all replies")
    ratios = []
    for _ in range(draws):
        joined = b"\n".join(parts[i] for i in rng.permutation(len(parts)))[:budget]
        ratios.append(len(joined) / len(_deflate(joined)))
    return float(np.mean(ratios))


def _deflate(content: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(content) + engine.flush()


def self_repetition(texts: list[str], others: int, n: int = 4) -> float:
    """Mean over replies of log(1 + how many of `others` further ones share an n-gram of words with it).

    Salkar et al. 2022 and Shaib et al. 2024 count n-grams; here replies are counted, so that length does not
    decide. Exact expectation over which others are drawn. Replies of fewer than n words cannot repeat an n-gram
    and are only among the others; Undefined if all are so short or there are too few."""
    grams = [{*zip(*(tokens[i:] for i in range(n)))} for tokens in map(words, texts)]
    if len(texts) < others + 1 or others < 1:
        raise Undefined(f"fewer than {others + 1} replies")
    sharing = np.zeros(len(texts), dtype=int)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if not grams[i].isdisjoint(grams[j]):
            sharing[[i, j]] += 1
    eligible = np.array([bool(g) for g in grams])
    if not eligible.any():
        raise Undefined(f"self-repetition: no reply has {n} words")
    hits, rest = np.arange(others + 1), len(texts) - 1
    chances = comb(sharing[:, None], hits) * comb(rest - sharing[:, None], others - hits) / comb(rest, others)
    return float((chances @ np.log1p(hits))[eligible].mean())
