"""When are two texts the same? Normalisation, a comparison key, near-duplicate search and a seeded hash.

Every decision here depends on the two texts alone (plain n-gram sets, no corpus-wide idf), so that adding or
removing other rows can never change whether a given pair counts as a duplicate: cleaning and the split check
agree by construction.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

# the bare "http" and "[url]" are what masked corpora leave of a link
LINK = re.compile(r"(?:https?://\S+|\bwww\.\S+|\bhttps?\b|\[url\])", re.IGNORECASE)
MENTION = re.compile(r"(?<!\w)@\w+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_WORD = re.compile(r"[\W_]+")
_BLOCK = 1024  # rows a block in the candidate search: bounds memory, changes no result


def normalise(text: str) -> str:
    """NFC, line ends as \\n, control characters as spaces, lone surrogates as U+FFFD, outer white space cut.

    Nothing else is touched: markup, chat-template tokens or shouting stay what they are, as data.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    # lone surrogates: halves of emoji cut by a length limit; no file could hold them
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _CONTROL.sub(" ", text)).strip()


def decoded(value: object, otherwise: object) -> object:
    """Bytes as the text that they hold, `otherwise` where they hold none; any other value as it is."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return otherwise


def key(text: str) -> str:
    """What two texts must share to be the same: case-folded words, without mentions, links and punctuation.

    A text of signs only (emoji) keeps its signs, or all such texts would be equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _NOT_WORD.sub(" ", MENTION.sub(" ", LINK.sub(" ", folded))).strip()
    return words or " ".join(folded.split())


def seeded_hash(ids: Iterable[str], seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one an id, fixed by id and seed: an order that survives shuffling."""
    digests = (hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest() for i in ids)
    return np.array([int.from_bytes(d, "big") >> 11 for d in digests], dtype=float) / 2.0**53


def vectors(keys: Sequence[str]) -> sparse.csr_matrix:
    """Sets of character 4-grams as unit vectors, shape (N, 2**20), for cosine by dot product."""
    if not len(keys):
        return sparse.csr_matrix((0, 2**20))
    hashing = HashingVectorizer(
        analyzer="char",
        ngram_range=(4, 4),
        alternate_sign=False,
        binary=True,
        norm="l2",
        lowercase=False,
        n_features=2**20,
    )
    # padded so that ends count and a one-letter key has grams; with no spaces, which the analyser would merge
    return hashing.transform([f"\x02\x02{k}\x02\x02" for k in keys]).tocsr()


def row_cosine(a: sparse.csr_matrix, b: sparse.csr_matrix) -> np.ndarray:
    """Cosine of row i of a with row i of b, shape (N,)."""
    return np.asarray(a.multiply(b).sum(axis=1)).ravel()


def similar_pairs(keys: Sequence[str], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs i < j of texts whose 4-gram cosine is at least `threshold`; two index arrays.

    Exact, yet far from N^2: three bounds that no such pair can miss, each cheaper than what follows it.
    1. Of n grams, ordered from rare to common, the (1 - t^2) n + 1 rarest: both sets share one of these
       (prefix filter, Bayardo, Ma & Srikant 2007).
    2. Sets of a and b grams have cosine <= sqrt(min(a, b) / max(a, b)).
    3. With grams hashed into bit fields, at most (a + b - popcount(x xor y)) / 2 are shared
       (bitmap filter, Sandes, Teodoro & Melo 2017).
    """
    x = vectors(keys)
    size, prefix, bits = np.diff(x.indptr), _prefixes(x, threshold), _bitmaps(x)
    left, right = [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
    for start in range(0, len(keys), _BLOCK):
        i, j = (prefix[start : start + _BLOCK] @ prefix.T).nonzero()
        i = i + start
        a, b = size[i], size[j]
        fits = (i < j) & (np.minimum(a, b) >= (threshold**2 - 1e-9) * np.maximum(a, b))
        i, j, a, b = i[fits], j[fits], a[fits], b[fits]
        parts = [slice(k, k + 2**17) for k in range(0, len(i) or 1, 2**17)]
        apart = np.concatenate(
            [np.bitwise_count(bits[i[p]] ^ bits[j[p]]).sum(1, dtype=int) for p in parts]
        )
        fits = (a + b - apart) / 2 >= threshold * np.sqrt(a * b) - 1e-6
        i, j = i[fits], j[fits]
        near = row_cosine(x[i], x[j]) >= threshold - 1e-9
        left.append(i[near])
        right.append(j[near])
    return np.concatenate(left), np.concatenate(right)


def _prefixes(x: sparse.csr_matrix, threshold: float) -> sparse.csr_matrix:
    """Zeros and ones (N, V): each row's (1 - t^2) n + 1 rarest grams."""
    frequency = np.bincount(x.indices, minlength=x.shape[1])
    rank = np.empty(x.shape[1], dtype=np.int64)
    rank[np.lexsort((np.arange(x.shape[1]), frequency))] = np.arange(x.shape[1])
    size = np.diff(x.indptr)
    row = np.repeat(np.arange(x.shape[0]), size)
    order = np.lexsort((rank[x.indices], row))
    place = np.arange(x.nnz) - np.repeat(x.indptr[:-1], size)
    keep = order[place < ((1 - threshold**2) * size + 1)[row]]
    ones = np.ones(len(keep), dtype=np.int32)
    return sparse.csr_matrix((ones, (row[keep], x.indices[keep])), shape=x.shape)


def _bitmaps(x: sparse.csr_matrix, n_bits: int = 1024) -> np.ndarray:
    """Grams hashed into bit fields, (N, n_bits / 64) uint64."""
    bits = np.zeros((x.shape[0], n_bits), dtype=bool)
    bits[np.repeat(np.arange(x.shape[0]), np.diff(x.indptr)), x.indices % n_bits] = True
    return np.packbits(bits, axis=1).view(np.uint64)
