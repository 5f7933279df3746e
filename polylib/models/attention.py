"""Grouped attention: the one attention of this project, in training and in decoding.

Key heads are never copied to match query heads. In training the two matrix products are written out: on CPU in
bfloat16 that takes half the time of torch's fused kernel with a boolean mask, forward and backward (in float32 it
is no faster), and rows here are short (under 500 tokens), so the (L, L) scores kept in memory are small. In decoding
the query heads that share a key head become the fused kernel's query length, which costs a quarter to a sixth of
repeating the keys. `benchmarks/attention.py` measures both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "grouped_attention"


def grouped_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    softcap=None,
    s_aux=None,
    sliding_window=None,
    position_ids=None,
    **kwargs,
):
    """softmax(Q Kᵀ · scaling + mask) V with Hq / Hkv query heads a key head.

    query (R, Hq, Q, D), key and value (R, Hkv, L, D), attention_mask (R, 1, Q, L) additive -> (R, Q, Hq, D).
    The softmax is taken in float32. Transformers calls it through `attn_implementation=NAME`; as no mask builder is
    registered under that name, callers give the additive mask themselves (`additive_mask`), without a layer's window.

    What the layers of some families add: softcap c makes a score c·tanh(score / c) (Gemma 2); s_aux (Hq,) are sinks,
    one more score a head that takes probability and gives no value (gpt-oss); sliding_window w hides keys w or more
    positions back, counted in position_ids (R, Q), which start anew for every packed reply (Mistral, Gemma, ...).
    """
    rows, heads, queries, dim = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(rows, key.shape[1], groups * queries, dim)
    if sliding_window is not None and key.shape[2] > sliding_window:
        at = torch.arange(key.shape[2], device=key.device)[None]  # decoding: positions are in order
        at = at if queries == 1 or position_ids is None else position_ids
        hidden = at[:, None, -queries:, None] - at[:, None, None, :] >= sliding_window
        attention_mask = attention_mask.masked_fill(hidden, torch.finfo(query.dtype).min)
    if queries == 1 and softcap is None and s_aux is None:
        out = F.scaled_dot_product_attention(
            packed, key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.view(rows, 1, heads, dim), None
    scores = (packed @ key.transpose(2, 3)).view(rows, key.shape[1], groups, queries, -1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + attention_mask[:, :, None]
    if s_aux is not None:
        sinks = s_aux.to(scores).view(1, -1, groups, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = weights[..., : key.shape[2]].reshape(rows, key.shape[1], groups * queries, -1) @ value
    return out.view(rows, heads, queries, dim).transpose(1, 2), None


AttentionInterface.register(NAME, grouped_attention)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(…) bool, True where a query may look -> 0 there and the most negative finite number elsewhere.

    Finite, so that a row that may look nowhere (left padding) gives a uniform softmax and not NaN.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
