"""How close is a reply to what people answered: BERTScore, by meaning in context.

Against the nearest of all human replies to the post, as against a single one it is noise. It is no
goal: most people's replies to one post have little in common, and that is what the human row shows. Empty replies
have no value (NaN); ROUGE-L, by words, is in `text`.
"""

from __future__ import annotations

import numpy as np

from polylib.evaluation.text import normalise


def match(candidates: list[np.ndarray], references: list[np.ndarray]) -> np.ndarray:
    """BERTScore F1 (Zhang et al. 2020, eq. 3, without idf weights) of every candidate with every reference.

    Each text is an array (L, d) of unit token vectors, L >= 1 -> (candidates, references). Every token is matched
    greedily with its nearest in the other text; a cosine below 0 counts as no match."""
    rows, columns = (np.cumsum([0, *map(len, side)])[:-1] for side in (candidates, references))
    cosine = np.maximum(np.concatenate(candidates) @ np.concatenate(references).T, 0)
    lengths = [np.array([*map(len, side)], dtype=float) for side in (candidates, references)]
    precision = (
        np.add.reduceat(np.maximum.reduceat(cosine, columns, axis=1), rows, axis=0)
        / lengths[0][:, None]
    )
    recall = (
        np.add.reduceat(np.maximum.reduceat(cosine, rows, axis=0), columns, axis=1) / lengths[1]
    )
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def bertscore(
    texts: list[str],
    references: list[str],
    states: dict[str, np.ndarray],
    leave_one_out: bool = False,
) -> np.ndarray:
    """BERTScore F1 of each text against its nearest reference, (N,); the same text is 1 whatever its tokens.

    states: {text: (L, d) unit vectors}, L = 0 where the encoder knows no token (empty, emoji only): such a reply
    is NaN unless a reference is the same text. leave_one_out: texts are the references themselves, in order."""

    def known(side: list[str]) -> list[int]:
        return [i for i, text in enumerate(side) if len(states[text])]

    forms, others = ([normalise(text) for text in side] for side in (texts, references))
    values = np.full((len(texts), len(references)), np.nan)
    mine, theirs = known(texts), known(references)
    if mine and theirs:
        values[np.ix_(mine, theirs)] = match(
            [states[texts[i]] for i in mine], [states[references[j]] for j in theirs]
        )
    same = np.array([[bool(a) and a == b for b in others] for a in forms], dtype=bool).reshape(
        values.shape
    )
    values[same] = 1.0
    if leave_one_out:
        np.fill_diagonal(values, np.nan)
    return np.array([np.nanmax(row) if np.isfinite(row).any() else np.nan for row in values])
