"""Top-k and nucleus (top-p) sets of tokens, and their bits: pure tensors.

A truncated sampler draws from q, the softmax renormalised over the kept tokens. The score function of the whole
softmax is then biased (E_q[∇ log π] is not 0); that of log q with the set held fixed is exact almost everywhere,
because the set is constant around almost every parameter. So the sampler records the set of every position, one bit
a token, and training scores its own logits inside it.
"""

from __future__ import annotations

import torch

FIRST_DEPTH = (
    256  # most probable tokens sorted first; only rows with a larger set are sorted deeper
)


def truncates(top_p: float, top_k: int) -> bool:
    """Whether these settings leave any token out."""
    return top_p < 1 or top_k > 0


def kept_tokens(logits: torch.Tensor, top_p: float = 1.0, top_k: int = 0) -> torch.Tensor:
    """Tokens that may be sampled: (R, V) float logits, already divided by the temperature -> (R, V) bool.

    First top-k (Fan et al. 2018): logits at least the k-th largest, ties included. Then top-p on what is left,
    renormalised (Holtzman et al. 2020): the smallest set of the most probable tokens whose probability reaches
    top_p, at least one; of equal tokens at its boundary only as many as needed. These are the sets of transformers'
    TopKLogitsWarper and TopPLogitsWarper in that order. A row is sorted only about as deep as its set.
    """
    vocabulary = logits.shape[-1]
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < vocabulary:
        kept = logits >= logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(~kept, -torch.inf)
    return kept & _nucleus(logits.softmax(-1), top_p, FIRST_DEPTH) if top_p < 1 else kept


def _nucleus(probs: torch.Tensor, top_p: float, depth: int) -> torch.Tensor:
    """The smallest set of each row's (R, V) most probable tokens that reaches top_p, (R, V) bool."""
    whole = depth >= probs.shape[-1]
    values, tokens = probs.sort(descending=True) if whole else probs.topk(depth)
    inside = values.cumsum(-1) - values < top_p  # the mass above a token does not reach top_p yet
    kept = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, tokens, inside)
    if not whole:
        wide = inside[:, -1].nonzero().squeeze(-1)  # these rows' sets go deeper
        if len(wide):
            kept[wide] = _nucleus(probs[wide], top_p, 16 * depth)
    return kept


def at_or_after(token: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The first kept token at or after `token`: (R,) int64 and (R, V) bool -> (R,) int64.

    A parallel cumulative sum need not be flat where the probabilities are 0, so an inverse-CDF look-up can land, once
    in millions of draws, next to a kept token; -inf would be its log-probability.
    """
    order = torch.arange(kept.shape[-1], device=kept.device)
    return (kept & (order >= token[:, None])).to(torch.uint8).argmax(-1)


def pack_bits(kept: torch.Tensor) -> torch.Tensor:
    """(..., V) bool -> (..., ceil(V/8)) uint8; token 8i + j is bit j of byte i, bits past V are 0."""
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -kept.shape[-1] % 8))
    bits = padded.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8, device=kept.device)
    return bits.sum(-1, dtype=torch.uint8)


def unpack_bits(packed: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """(..., ceil(V/8)) uint8 -> (..., V) bool, the inverse of `pack_bits`."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(-2)[..., :vocabulary].bool()
