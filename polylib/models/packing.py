"""Packed rows and the log-probabilities of their completions: pure tensors, no model, no files.

One row holds a prompt and all of its completions, gold and sampled: `[prompt | y_1 | y_2 | … | y_n | padding]`.
A block mask lets every completion see the prompt and itself but not its siblings, and position ids restart after
the prompt for each, so the result equals n separate sequences while the prompt is computed once, in the forward
pass, the backward pass and the reference pass alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from polylib.models.truncation import unpack_bits


@dataclass
class Packed:
    """B packed rows of length L, with N completions a row of at most T tokens.

    input_ids, position_ids (B, L) int64; attention_mask (B, 1, L, L) bool, True where a query may look;
    completion_ids (B, N, T) int64 and completion_mask (B, N, T) bool: what is scored (EOS included);
    source (B, N, T) int64: index in the row of the position that predicts each completion token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    source: torch.Tensor


def pack(
    prompts: list[list[int]], completions: list[list[list[int]]], pad_id: int, device="cpu"
) -> Packed:
    """Pack B prompts with N completions each (lists of token ids, EOS included, no padding) into `Packed` rows.

    The first completion token is predicted from the last prompt position, each later one from its predecessor.
    Raises ValueError for rows with different numbers of completions.
    """
    counts = {len(group) for group in completions}
    if len(counts) != 1 or len(prompts) != len(completions):
        raise ValueError(f"need the same number of completions in every row, got {sorted(counts)}")
    n = counts.pop()
    rows, longest = len(prompts), max((len(y) for group in completions for y in group), default=0)
    length = max(len(p) + sum(map(len, group)) for p, group in zip(prompts, completions))
    input_ids = torch.full((rows, length), pad_id)
    position_ids = torch.zeros(rows, length, dtype=torch.long)
    segment = torch.full((rows, length), -1)  # 0 prompt, i+1 completion i, -1 padding
    completion_ids = torch.full((rows, n, longest), pad_id)
    completion_mask = torch.zeros(rows, n, longest, dtype=torch.bool)
    source = torch.zeros(rows, n, longest, dtype=torch.long)
    for b, (prompt, group) in enumerate(zip(prompts, completions)):
        end = len(prompt)
        input_ids[b, :end] = torch.tensor(prompt)
        position_ids[b, :end] = torch.arange(end)
        segment[b, :end] = 0
        for i, y in enumerate(group):
            start, end = end, end + len(y)
            input_ids[b, start:end] = torch.tensor(y, dtype=torch.long)
            position_ids[b, start:end] = len(prompt) + torch.arange(len(y))
            segment[b, start:end] = i + 1
            completion_ids[b, i, : len(y)] = torch.tensor(y, dtype=torch.long)
            completion_mask[b, i, : len(y)] = True
            source[b, i, : len(y)] = torch.arange(start - 1, end - 1)
            source[b, i, :1] = len(prompt) - 1
    mask = block_mask(segment)
    tensors = (input_ids, position_ids, mask, completion_ids, completion_mask, source)
    return Packed(*(t.to(device) for t in tensors))


def block_mask(segment: torch.Tensor) -> torch.Tensor:
    """(B, L) segment numbers (0 prompt, -1 padding) -> (B, 1, L, L) bool: causal, own segment or prompt only.

    Padding positions see themselves, so that no softmax runs over an empty set.
    """
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(
        segment.shape[1], segment.shape[1], dtype=torch.bool, device=segment.device
    ).tril()
    allowed = causal & ((key == 0) | (key == query)) & (key >= 0)
    itself = torch.eye(segment.shape[1], dtype=torch.bool, device=segment.device)
    return (allowed | itself)[:, None]


def replayed(kept: torch.Tensor | None, packed: Packed, gold: int) -> torch.Tensor | None:
    """`kept` of `completion_logprobs` for rows of `gold` human replies followed by the sampled ones.

    kept (B, K, T, bytes), of the same rollouts that were packed (`sampling.Rollouts.kept`) -> (B, gold + K, T', bytes)
    on the device of `packed`: T is cut (or filled) to the packed T', and every token is kept in the gold slots, which
    nobody sampled. None stays None. Raises ValueError if the slots do not add up.
    """
    if kept is None:
        return None
    rows, slots, longest = packed.completion_ids.shape
    if kept.shape[:2] != (rows, slots - gold):
        raise ValueError(
            f"kept sets of {tuple(kept.shape[:2])} rollouts, but {rows} rows of {slots} replies hold "
            f"{slots - gold} sampled ones each"
        )
    device = packed.completion_ids.device
    out = torch.full((rows, slots, longest, kept.shape[-1]), 255, dtype=torch.uint8, device=device)
    out[:, gold:, : kept.shape[2]] = kept[:, :, :longest]
    return out


def predicting_states(hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Of hidden states (B, L, d), those from which the n completion tokens are predicted, in their order: (n, d)."""
    mask = packed.completion_mask
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None, None].expand_as(
        packed.source
    )[mask]
    return hidden[rows, packed.source[mask]]


def completion_logprobs(
    hidden: torch.Tensor,
    head,
    packed: Packed,
    temperature,
    chunk: int = 2048,
    kept: torch.Tensor | None = None,
    value: Callable | None = None,
):
    """log π(y_t | prompt, y_<t) of every completion token: (B, N, T) float32, 0 where masked.

    hidden (B, L, d) last hidden states; head maps (n, d) to logits (n, V); temperature a float or (N,) tensor that
    divides the logits (Ackley et al. 1985; the same value must be used for sampling). Only positions that predict a
    completion token reach the head, `chunk` at a time, and logits are re-computed in the backward pass when there is
    more than one chunk: memory is chunk·V, not L·V.

    kept (B, N, T, ceil(V/8)) uint8, see `replayed` and `truncation.pack_bits`: logits outside the set are -inf, so
    the result is log q of the truncated sampler and its gradient the score of q with the set held fixed. A token
    outside its own set, which no sampler can have drawn, gets -inf.

    value: a function of the same logits (n, V), divided and masked, and of targets (n,), that gives (n,) or (n, C)
    numbers a token; then the result is (logprobs, values (B, N, T) or (B, N, T, C)), 0 where masked and with gradient.
    With `kept` its logits hold -inf: guard products such as p·log p, whose gradient would be NaN.
    """
    mask = packed.completion_mask
    states = predicting_states(hidden, packed)
    targets = packed.completion_ids[mask]
    scale = torch.as_tensor(temperature, dtype=torch.float32, device=hidden.device)
    scale = (
        scale.reshape(1, -1, 1).expand_as(packed.source)[mask]
        if scale.ndim
        else scale.expand(len(states))
    )

    def score(states, targets, scale, bits=None):
        logits = head(states).float() / scale[:, None]
        if bits is not None:
            logits = logits.masked_fill(~unpack_bits(bits, logits.shape[-1]), -torch.inf)
        scores = -F.cross_entropy(logits, targets, reduction="none")
        return (scores,) if value is None else (scores, value(logits, targets))

    inputs = (states, targets, scale) if kept is None else (states, targets, scale, kept[mask])
    pieces = list(zip(*(tensor.split(chunk) for tensor in inputs)))
    if len(pieces) == 1:
        found = [score(*pieces[0])]
    else:
        found = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
    outputs = [scatter(torch.cat(parts), mask) for parts in zip(*found)]
    return outputs[0] if value is None else tuple(outputs)


def scatter(numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(n, ...) numbers of the n True positions of `mask` (B, N, T) -> (B, N, T, ...), 0 elsewhere."""
    out = torch.zeros(*mask.shape, *numbers.shape[1:], dtype=torch.float32, device=mask.device)
    return out.masked_scatter(mask.view(*mask.shape, *[1] * (numbers.ndim - 1)), numbers)
