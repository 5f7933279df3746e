"""Set functions: how diverse (or how good) is a chosen subset of the K replies to one prompt?

A *set function* `D(members)` scores subsets: `members (M, n)` sample indices -> `(B, M)`, for all B prompts
at once. It is a black box to the estimators in `diversity.py`; nothing here is differentiated.

VALIDITY GATE. `valid (B, K)` is False for a reply that must not buy diversity (empty, off-topic, wrong
language). It counts as distance 0 to everything *but stays in the average*, so it costs diversity and cannot
add any. Dropping it from the average would let one odd reply hide behind two good ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

SetFunction = Callable[[Tensor], Tensor]


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Cosine distances `1 - cos` in [0, 2] with an exactly zero diagonal. `(B, K, d)` -> `(B, K, K)`.

    Raises ValueError on non-finite or zero vectors: a zero vector would be at distance 1 from everything.
    """
    norms = embeddings.norm(dim=-1, keepdim=True)
    if not torch.isfinite(norms).all() or (norms == 0).any():
        raise ValueError(
            "an embedding is zero or not finite; its reply has no distance to the others"
        )
    unit = embeddings / norms
    distances = 1.0 - unit @ unit.transpose(-1, -2)
    # 1 - <u, u> of two identical float32 vectors is about 1e-7, not 0; equal replies must count as equal.
    distances = distances.masked_fill(distances < 1e-6, 0.0)
    return distances * (
        1.0 - torch.eye(distances.shape[-1], dtype=distances.dtype, device=distances.device)
    )


def gate(matrix: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the rows and columns of invalid samples. `(B, K, K)`, `(B, K)`."""
    if valid is None:
        return matrix
    return matrix * (valid[:, :, None] & valid[:, None, :])


def _submatrices(matrix: Tensor, members: Tensor) -> Tensor:
    """`(B, K, K)`, `(M, n)` -> `(B, M, n, n)`."""
    return matrix[:, members[:, :, None], members[:, None, :]]


def semantic(distances: Tensor, valid: Tensor | None = None) -> SetFunction:
    """Mean pairwise distance over *all* pairs of the set (invalid samples at distance 0). 0 for a single
    reply."""
    gated = gate(distances, valid)

    def D(members: Tensor) -> Tensor:
        n = members.shape[1]
        return _submatrices(gated, members).sum((-1, -2)) / max(n * (n - 1), 1)

    return D


def log_det(distances: Tensor, valid: Tensor | None = None) -> SetFunction:
    """log det(I + L) with L = 1 - distance (cosine similarity): the DQO form (arXiv 2509.04784), in [0, n log
    2].

    Two far clusters maximise a mean of pairs; they do not maximise a determinant. Raises ValueError when the
    distances are not those of vectors (determinant not positive).
    """
    kernel = gate(1.0 - distances, valid)

    def D(members: Tensor) -> Tensor:
        n = members.shape[1]
        sign, value = torch.linalg.slogdet(_submatrices(kernel, members) + torch.eye(n).to(kernel))
        if (sign <= 0).any():
            raise ValueError(
                "log det needs distances between vectors (1 - distance positive semi-definite)"
            )
        return value

    return D


def vendi(distances: Tensor, valid: Tensor | None = None) -> SetFunction:
    """Vendi score, exp of the entropy of the eigenvalues of kernel / n: the effective number of different
    replies.

    In [1, n] when all are valid; with invalid ones, the score of the valid times their share (0 if none).
    Source: Friedman & Dieng 2023, arXiv 2210.02410. Biased low for small n: compare at equal n only.
    """
    kernel = gate(1.0 - distances, valid)
    ok = torch.ones(distances.shape[:2]).to(distances) if valid is None else valid.to(distances)

    def D(members: Tensor) -> Tensor:
        count = ok[:, members].sum(-1)
        eigenvalues = torch.linalg.eigvalsh(_submatrices(kernel, members)).clamp(min=0.0)
        entropy = -torch.xlogy(
            eigenvalues / count.clamp(min=1.0)[..., None],
            eigenvalues / count.clamp(min=1.0)[..., None],
        ).sum(-1)
        return entropy.exp() * count / members.shape[1]

    return D


def distinct_n(ids: Tensor, mask: Tensor, n: int = 1) -> SetFunction:
    """Distinct token n-grams / all n-grams of the pooled set (Li et al. 2016). `ids, mask (B, K, T)`; 0 if
    none.

    Counted over the replies of one prompt, never pooled over prompts (that would measure topics). It knows no
    validity: `diversity.diversity_advantages` sees to it that an invalid sample never gets a positive
    advantage.
    """
    length = ids.shape[-1] - n + 1
    if n < 1 or length < 1:
        raise ValueError(f"n-grams of length {n} do not exist in {ids.shape[-1]} tokens")
    windows = torch.stack([ids[..., i : i + length] for i in range(n)], -1)
    present = torch.stack([mask[..., i : i + length].bool() for i in range(n)], -1).all(-1)
    # Number the n-grams of the whole batch once; -1 marks windows that reach into padding.
    codes = windows.reshape(-1, n).unique(dim=0, return_inverse=True)[1].reshape(present.shape)
    codes = torch.where(present, codes, -1)

    def D(members: Tensor) -> Tensor:
        pooled = codes[:, members].flatten(-2).sort(-1).values  # (B, M, n * length)
        real = pooled >= 0
        new = real.clone()
        new[..., 1:] &= pooled[..., 1:] != pooled[..., :-1]
        return new.sum(-1) / real.sum(-1).clamp(min=1)

    return D


def _grams(ids: list[int], order: int) -> Counter:
    """Counts of the n-grams of one reply."""
    return Counter(zip(*(ids[i:] for i in range(order)), strict=False))


def sentence_bleu(hypothesis: list[int], references: list[list[int]], max_order: int = 4) -> float:
    """Smoothed BLEU of one reply against others, over token ids, in [0, 1]. 0 for an empty hypothesis.

    Geometric mean of the clipped n-gram precisions, one added to numerator and denominator above unigrams
    (Lin & Och 2004), times the brevity penalty against the reference of closest length. Orders go up to the
    length of the hypothesis, so that a reply of two tokens can be a perfect copy.
    """
    if not hypothesis or not references:
        return 0.0
    logs = []
    for order in range(1, min(max_order, len(hypothesis)) + 1):
        counts, ceiling = _grams(hypothesis, order), Counter()
        for reference in references:
            ceiling |= _grams(reference, order)  # the largest count in any one reference
        hits, added = (counts & ceiling).total(), order > 1
        if hits + added == 0:
            return 0.0
        logs.append(math.log((hits + added) / (counts.total() + added)))
    closest = min(
        (len(r) for r in references), key=lambda length: (abs(length - len(hypothesis)), length)
    )
    return math.exp(sum(logs) / len(logs) + min(0.0, 1.0 - closest / len(hypothesis)))


def self_bleu(
    ids: Tensor, mask: Tensor, valid: Tensor | None = None, max_order: int = 4
) -> SetFunction:
    """1 - self-BLEU (Zhu et al. 2018, arXiv 1802.01886): mean over the set of 1 - BLEU of a reply against the
    other replies, in [0, 1]. `ids, mask (B, K, T)`, `valid (B, K)`; 0 for a single reply.

    Plain counting of token ids, subset by subset. An invalid or empty reply adds 0 and stays in the mean: it
    shares no n-gram with anyone and would otherwise look perfectly diverse. It remains a reference of the
    others, which can only cost them; `diversity.diversity_advantages` sees to it that it never gets a
    positive advantage.
    """
    rows = [
        [reply[keep].tolist() for reply, keep in zip(group, kept, strict=True)]
        for group, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)
    ]
    ok = [[bool(row) for row in group] for group in rows] if valid is None else valid.tolist()

    def one(group: list[list[int]], good: list[bool], members: list[int]) -> float:
        if len(members) < 2:
            return 0.0
        return sum(
            1.0 - sentence_bleu(group[i], [group[j] for j in members if j != i], max_order)
            for i in members
            if good[i] and group[i]
        ) / len(members)

    def D(members: Tensor) -> Tensor:
        sets = members.tolist()
        return torch.tensor(
            [
                [one(group, good, chosen) for chosen in sets]
                for group, good in zip(rows, ok, strict=True)
            ]
        )

    return D


def f_poly(rewards: Tensor, diversity: SetFunction) -> SetFunction:
    """Mean reward of the set times its diversity (Polychromic objectives, arXiv 2509.25424). `rewards (B, K)`
    in [0, 1].

    A product of a negative reward and a diversity would punish diversity, hence the range check (ValueError).
    """
    if not ((rewards >= 0) & (rewards <= 1)).all():
        raise ValueError("f_poly multiplies reward by diversity and needs rewards in [0, 1]")
    return lambda members: rewards[:, members].mean(-1) * diversity(members)


def best_of(rewards: Tensor) -> SetFunction:
    """Best reward of the set: with 0/1 rewards and size k its expectation is pass@k, otherwise max@k."""
    return lambda members: rewards[:, members].amax(-1)


def mean_pairwise(distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean pairwise distance of each whole group, the D that is logged. `(B, K, K)` -> `(B,)`."""
    k = distances.shape[-1]
    return semantic(distances, valid)(torch.arange(k)[None])[:, 0]


MEASURES = {"semantic": semantic, "logdet": log_det, "vendi": vendi}  # D as a function of distances
TOKEN_MEASURES = {
    "distinct_1": lambda ids, mask, valid: distinct_n(ids, mask, 1),  # and of token ids
    "distinct_2": lambda ids, mask, valid: distinct_n(ids, mask, 2),
    "self_bleu": self_bleu,
}
