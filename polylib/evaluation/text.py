"""Text metrics of the n replies to ONE prompt. Strings are hostile: any Unicode, empty, emoji only.

Set sizes matter: self-BLEU grows with the number of references and distinct-n falls with length, so both are
taken at a fixed size (`others`, `budget`) that people's replies reach too. What cannot be computed raises
Undefined.
"""

from __future__ import annotations

import functools

import numpy as np
import regex
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import BLEU
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from polylib.metrics import Undefined

# A word with inner apostrophes, else one grapheme: an emoji family or flag stays one token, any script
# counts.
TOKEN = regex.compile(r"\w+(?:['’]\w+)*|\X")
LONGEST = 2000  # characters read of one text; ROUGE-L is quadratic and nobody's reply is longer


def words(text: str) -> list[str]:
    """The tokens of every lexical metric here, in lower case."""
    return [token for token in TOKEN.findall(text[:LONGEST].lower()) if not token.isspace()]


def normalise(text: str) -> str:
    """The form in which two replies count as the same text: case and white space aside."""
    return " ".join(text.casefold().split())


@functools.cache
def _bleu(order: int) -> BLEU:
    # Effective order: without it two equal replies of two words get 0 and look perfectly diverse.
    return BLEU(effective_order=True, max_ngram_order=order)


def self_bleu(texts: list[str], others: int, rng: np.random.Generator, order: int = 4) -> float:
    """Mean BLEU, 0 to 100, of each reply against `others` of the rest (drawn if there are more); lower is
    more diverse.

    Texygen's self-BLEU with sacrebleu's effective order. An empty reply scores 100 beside another empty one,
    else 0."""
    if len(texts) < others + 1 or others < 1:
        raise Undefined(f"fewer than {others + 1} replies")
    scores = []
    for i, text in enumerate(texts):
        rest = [t for j, t in enumerate(texts) if j != i]
        if len(rest) > others:
            rest = [rest[j] for j in rng.choice(len(rest), others, replace=False)]
        if text.strip():
            scores.append(
                _bleu(order).sentence_score(text[:LONGEST], [t[:LONGEST] for t in rest]).score
            )
        else:
            scores.append(100.0 if any(not t.strip() for t in rest) else 0.0)
    return float(np.mean(scores))


def bleu_signature() -> str:
    """How self-BLEU was computed, for the record; sacrebleu knows it only after a first call."""
    _bleu(4).sentence_score("a", ["a"])
    return str(_bleu(4).get_signature())


def distinct_n(
    texts: list[str], n: int, budget: int, rng: np.random.Generator, draws: int = 20
) -> float:
    """Distinct n-grams / n-grams (Li et al. 2016) over the first `budget` tokens of the replies, mean of
    `draws` orders.

    Equal token budgets, because the plain ratio falls with length. N-grams do not cross replies."""
    tokens = [words(text) for text in texts]
    total = sum(map(len, tokens))
    if total < budget:
        raise Undefined(f"fewer than {budget} words in all replies")
    ratios = []
    for _ in range(draws):
        grams, left = [], budget
        for i in rng.permutation(len(tokens)):
            part = tokens[i][:left]
            grams += _grams(part, n)
            left -= len(part)
            if left == 0:
                break
        if grams:
            ratios.append(len(set(grams)) / len(grams))
    if not ratios:
        raise Undefined(f"distinct-{n}: no reply has {n} tokens")
    return float(np.mean(ratios))


def rouge_l(text: str, references: list[str]) -> float:
    """ROUGE-L F (Lin 2004), 2 LCS / (m + n), against the nearest reference: against a single one it is noise.

    On `words`: the rouge-score package, the oracle in the tests, reads only [a-z0-9]."""
    if not references:
        raise Undefined("no human reply to compare with")
    tokens = words(text)
    others = [words(reference) for reference in references]
    return max(
        2 * LCSseq.similarity(tokens, other) / max(len(tokens) + len(other), 1) for other in others
    )


def duplicate_rate(texts: list[str]) -> float:
    """Share of pairs of replies that are the same text; over pairs, so that it does not depend on how many
    there are."""
    n = len(texts)
    if n < 2:
        raise Undefined("fewer than 2 replies")
    _, counts = np.unique([normalise(text) for text in texts], return_counts=True)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def copy_rate(post: str, texts: list[str], n: int = 3) -> float:
    """Share of a reply's word n-grams that stand in the post, averaged over the replies that have any."""
    seen = set(_grams(words(post), n))
    found = [_grams(words(text), n) for text in texts]
    rates = [np.mean([gram in seen for gram in grams]) for grams in found if grams]
    if not rates:
        raise Undefined(f"copy rate: no reply has {n} tokens")
    return float(np.mean(rates))


def _grams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


class CharacterVectors:
    """A second representation of replies, which no training ever saw: TF-IDF of hashed character 3- to
    5-grams.

    Fitted (inverse document frequencies) on human replies. Hashed rather than indexed, so n-grams that people
    did not write still count; dropping them would make machine replies look alike."""

    def __init__(self, human_replies: list[str]):
        if not human_replies:
            raise Undefined(
                "the character representation is fitted on human replies, and there are none"
            )
        self._hash = HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False, norm=None
        )
        self._tfidf = TfidfTransformer(sublinear_tf=True).fit(self._counts(human_replies))

    def _counts(self, texts: list[str]):
        return self._hash.transform([text[:LONGEST] for text in texts])

    def similarity(self, texts: list[str]) -> np.ndarray:
        """Cosine similarities (n, n). A text without n-grams (empty) is like its own copies and unlike all
        else."""
        vectors = self._tfidf.transform(self._counts(texts))
        cosine = (vectors @ vectors.T).toarray()
        forms = np.array([normalise(text) for text in texts])
        return np.where(forms[:, None] == forms[None, :], 1.0, cosine)
