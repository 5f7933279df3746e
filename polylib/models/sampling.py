"""The rollout engine: K completions of every prompt in one batch.

What makes it quick on a small model (`benchmarks/engine.py` measures each): prompts are prefilled once and their keys
and values repeated K times; all B·K rows decode together; finished rows leave the batch; the next token comes from
one inverse-CDF look-up instead of a sort or a draw over the whole vocabulary; grouped attention reads the keys and
values without copying heads. With top-k or top-p on, log-probabilities are those of the renormalised distribution that
was sampled, and the kept tokens are recorded for training to replay. Left out on purpose: speculative decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache

from polylib.models import Head, format_prompt
from polylib.models.attention import additive_mask
from polylib.models.truncation import at_or_after, kept_tokens, pack_bits, truncates

# on CUDA cuDNN's attention makes a plan for every new length of the keys: tens of milliseconds, at every token here
torch.backends.cuda.enable_cudnn_sdp(False)
COMPACT_AT = 0.8  # drop finished rows once fewer than this share of the batch is alive


@dataclass
class Rollouts:
    """B prompts with K sampled completions each. Ids and masks are on the model's device.

    prompt_ids: B lists of token ids; completion_ids (B, K, T) int64, padded after EOS; completion_mask (B, K, T)
    bool, True up to and including EOS; logprobs (B, K, T) float32, log-probability of each sampled token at the
    sampling temperature and among the kept tokens, 0 where masked; truncated (B, K) bool, no EOS within T tokens;
    texts B lists of K strings; kept (B, K, T, ceil(V/8)) uint8, the tokens that could be sampled at each position
    (`truncation.pack_bits`; 6 KB a token for 49 152 tokens), 0 where masked, None when top-k and top-p are off.
    """

    prompt_ids: list[list[int]]
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    logprobs: torch.Tensor
    truncated: torch.Tensor
    texts: list[list[str]]
    kept: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens per completion, EOS included: (B, K)."""
        return self.completion_mask.sum(-1)


class GrowingCache(Cache):
    """Keys and values of every row in one buffer per layer, (R, heads, capacity, head_dim), filled in place."""

    def __init__(self, prefilled: Cache, k: int, extra: int):
        super().__init__(layers=[])
        self.length = prefilled.layers[0].keys.shape[2]
        self.buffers = []
        for layer in prefilled.layers:
            pair = []
            for states in (layer.keys, layer.values):
                rows, heads, length, dim = states.shape
                buffer = states.new_empty(rows * k, heads, length + extra, dim)
                buffer[:, :, :length] = states.repeat_interleave(k, dim=0)
                pair.append(buffer)
            self.buffers.append(tuple(pair))

    def update(self, keys, values, layer_idx, *args, **kwargs):
        """Store one new position and return all positions so far, as views."""
        key_buffer, value_buffer = self.buffers[layer_idx]
        key_buffer[:, :, self.length] = keys[:, :, 0]
        value_buffer[:, :, self.length] = values[:, :, 0]
        end = self.length + 1
        return key_buffer[:, :, :end], value_buffer[:, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but `rows`."""
        self.buffers = [(keys[rows], values[rows]) for keys, values in self.buffers]


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Sample one index per row: the first whose cumulative probability exceeds uniform·total.

    probs (R, V) non-negative, uniform (R,) in [0, 1) -> (R,) int64. The last index with positive probability is the
    upper bound, so rounding in the cumulative sum can never pick an impossible token; it is looked up only if a row
    needs it, which takes a threshold that rounds up to the whole sum.
    """
    cumulative = probs.cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    index = (
        torch.searchsorted(cumulative, threshold, right=True)
        .squeeze(-1)
        .clamp(max=probs.shape[-1] - 1)
    )
    if bool((probs.gather(-1, index[:, None]) == 0).any()):
        last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).to(torch.uint8).argmax(-1)
        index = torch.minimum(index, last)
    return index


def _prefill(model, tokenizer, prompts: list[list[int]], k: int, extra: int):
    """One pass over the left-padded prompts -> logits (B, V), GrowingCache, mask (B·K, 1, 1, L), next positions."""
    longest = max(map(len, prompts))
    device = model.device
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id, device=device)
    mask = torch.zeros((len(prompts), longest), dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = True
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)  # left padding must not shift positions
    allowed = (
        mask[:, None, None, :]
        & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    )
    out = model.base_model(
        input_ids=ids,
        attention_mask=additive_mask(allowed, model.dtype),
        position_ids=position_ids,
        past_key_values=DynamicCache(),  # one that keeps all keys, also of layers with a window
        use_cache=True,
    )
    cache = GrowingCache(out.past_key_values, k, extra)
    # contiguous: on a strided slice the matmul below would copy the whole output head once a row
    logits = Head(model)(out.last_hidden_state[:, -1].contiguous())
    visible = torch.cat([mask, mask.new_ones(len(prompts), extra)], dim=-1)[:, None, None, :]
    bias = additive_mask(visible, model.dtype).repeat_interleave(k, 0)
    return logits, cache, bias, mask.sum(-1).repeat_interleave(k, 0)


@torch.inference_mode()
def sample(
    model, tokenizer, posts: list[str], k: int, sampling, seed: int, share: slice = slice(None)
) -> Rollouts:
    """K completions of every post in `posts[share]` at `sampling.temperature`, until EOS (the tokenizer's or one that
    the model's generation_config names) or `sampling.max_new_tokens`.

    Temperature comes first, then `sampling.top_k` (0 = off), then `sampling.top_p` (1 = off), see `kept_tokens`.
    `model` has no adapters, see `models.sampling_copy`. The same seed gives the same completions on the same
    device. Every row has its own stream of random numbers, the same whatever `share`, so its completion does not
    depend on which other rows finished first, nor on how many processes share the posts.
    """
    limit, temperature = sampling.max_new_tokens, sampling.temperature
    prompts = [format_prompt(tokenizer, post, sampling.max_prompt_tokens) for post in posts[share]]
    rows = len(prompts) * k
    generator = torch.Generator(device="cpu").manual_seed(seed)
    uniforms = torch.rand(limit, len(posts), k, generator=generator)[:, share]
    uniforms = uniforms.reshape(limit, rows).to(model.device)  # (T, B·K): one stream a row
    head, eos, named = Head(model), tokenizer.eos_token_id, model.generation_config.eos_token_id
    others = named if isinstance(named, list) else [eos if named is None else named]
    ends = torch.tensor([eos, *others], device=model.device)

    logits, cache, bias, positions = _prefill(model, tokenizer, prompts, k, limit)
    logits = logits.repeat_interleave(k, 0)

    ids = torch.full((rows, limit), tokenizer.pad_token_id, device=model.device)
    logprobs = torch.zeros(rows, limit, device=model.device)
    mask = torch.zeros(rows, limit, dtype=torch.bool, device=model.device)
    alive = torch.arange(rows, device=model.device)  # row numbers still in the batch
    running = torch.ones(rows, dtype=torch.bool, device=model.device)
    kept = None
    if truncates(sampling.top_p, sampling.top_k):
        kept = torch.zeros(
            rows, limit, -(-logits.shape[-1] // 8), dtype=torch.uint8, device=model.device
        )
    for step in range(limit):
        scores = logits.float() / temperature
        if kept is not None:
            inside = kept_tokens(scores, sampling.top_p, sampling.top_k)
            scores = scores.masked_fill(~inside, -torch.inf)
            kept[alive, step] = pack_bits(inside & running[:, None])
        log_p = torch.log_softmax(scores, -1)
        token = inverse_cdf(log_p.exp(), uniforms[step, alive])
        if kept is not None:
            token = at_or_after(token, inside)
        token = torch.where(running, token, tokenizer.pad_token_id)
        chosen = log_p.gather(-1, token[:, None]).squeeze(-1)
        ids[alive, step] = token
        logprobs[alive, step] = torch.where(running, chosen, 0.0)
        mask[alive, step] = running
        running = running & ~torch.isin(token, ends)
        living = int(running.sum())
        if living == 0 or step == limit - 1:
            break
        if living < COMPACT_AT * len(running):
            keep = running.nonzero().squeeze(-1)
            cache.keep(keep)
            alive, token, positions, bias = alive[keep], token[keep], positions[keep], bias[keep]
            running = running[keep]
        out = model.base_model(
            input_ids=token[:, None],
            attention_mask=bias[..., : cache.length + 1],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        cache.length += 1
        positions = positions + 1
        logits = head(out.last_hidden_state[:, 0])

    shape = (len(prompts), k, limit)
    last = (mask.sum(-1) - 1).clamp(min=0)
    finished = torch.isin(ids.gather(1, last[:, None]).squeeze(-1), ends)
    flat = tokenizer.batch_decode(
        [row[keep].tolist() for row, keep in zip(ids, mask)], skip_special_tokens=True
    )
    texts = [[text.strip() for text in flat[start : start + k]] for start in range(0, rows, k)]
    return Rollouts(
        prompts,
        ids.view(shape),
        mask.view(shape),
        logprobs.view(shape),
        ~finished.view(shape[:2]),
        texts,
        None if kept is None else kept.view(*shape, -1),
    )
