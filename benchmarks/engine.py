"""Sampling 4 replies to each of 8 posts: polylib's engine, transformers' generate, the engine's parts switched off.

full: no reply ends, every row decodes 40 tokens. ends: a reply ends at its first full stop (the untuned model rarely
ends by itself), rows finish at different times. parts: as full with 16 tokens. Costs are per kept token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from unittest import mock

import common
import torch

from polylib import models
from polylib.models import sampling

PROMPTS, K = 8, 4


class Concatenating(sampling.GrowingCache):
    """The usual cache: a new tensor of all keys and values at every token."""

    def __init__(self, prefilled, k, extra):
        super().__init__(prefilled, k, extra)
        self.buffers = [
            tuple(x[:, :, : self.length].contiguous() for x in pair) for pair in self.buffers
        ]

    def update(self, keys, values, layer_idx, *args, **kwargs):
        old = self.buffers[layer_idx]
        self.buffers[layer_idx] = (torch.cat([old[0], keys], 2), torch.cat([old[1], values], 2))
        return self.buffers[layer_idx]


def multinomial(probs, uniform):
    return torch.multinomial(probs, 1).squeeze(-1)


def engine(model, tokenizer, texts, sampling_cfg, k=K, repeat=1, **patches):
    """A function that samples with the next seed at every call, names of the sampling module replaced meanwhile."""
    seeds, asked = itertools.count(), [text for text in texts for _ in range(repeat)]

    def run():
        with contextlib.ExitStack() as stack:
            for name, value in patches.items():
                stack.enter_context(mock.patch.object(sampling, name, value))
            return int(
                sampling.sample(model, tokenizer, asked, k, sampling_cfg, next(seeds)).lengths.sum()
            )

    return run


def generate(model, tokenizer, texts, sampling_cfg, part):
    """The same work by transformers: left-padded batch, num_return_sequences, no top-k or top-p. -> kept tokens."""
    prompts = [
        models.format_prompt(tokenizer, text, sampling_cfg.max_prompt_tokens) for text in texts
    ]
    longest, limit = max(map(len, prompts)), sampling_cfg.max_new_tokens
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            num_return_sequences=K,
            top_k=0,
            top_p=1.0,
            temperature=sampling_cfg.temperature,
            max_new_tokens=limit,
            min_new_tokens=0 if part == "ends" else limit,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[:, longest:]
    tokenizer.batch_decode(out)
    ended = (out == tokenizer.eos_token_id).int()
    return int((ended.cumsum(-1) - ended == 0).sum())


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = common.arguments(__doc__, argv, ("full", "ends", "parts"))
    cfg = common.settings(args.model)
    model, tokenizer = models.load_model(cfg.model), models.load_tokenizer(cfg.model)
    model.generation_config.eos_token_id = None  # it names an end besides the tokenizer's
    sdpa = models.sampling_copy(model)
    sdpa.set_attn_implementation("sdpa")
    texts, ratios = common.posts(PROMPTS), {}
    for part in args.part:
        short = dataclasses.replace(
            cfg.sampling, max_new_tokens=min(16, cfg.sampling.max_new_tokens)
        )
        chosen = short if part == "parts" else cfg.sampling
        # a token the model never writes, or one that it writes all the time
        tokenizer.eos_token = "." if part == "ends" else "<jupyter_script>"
        ours = functools.partial(engine, model, tokenizer, texts, chosen)
        variants = {"engine": ours()}
        if part == "parts":
            variants |= {
                "torch.multinomial": ours(inverse_cdf=multinomial),
                "concatenated cache": ours(GrowingCache=Concatenating),
                "every prompt prefilled K times": ours(k=1, repeat=K),
            }
        else:
            variants["transformers generate"] = functools.partial(
                generate, sdpa, tokenizer, texts, chosen, part
            )
        if part == "ends":
            variants["no row compaction"] = ours(COMPACT_AT=0)
        taken = common.interleave(variants, args.rounds, warm_up=False)
        lengths = [
            f"{sum(units for *_, units in runs) / args.rounds / PROMPTS / K:.1f}"
            for runs in taken.values()
        ]
        ratios[part] = common.report(
            f"engine, {part}: {args.model}, {PROMPTS} prompts x {K}, tokens a reply "
            + " | ".join(lengths),
            taken,
            "engine",
        )
    return ratios


if __name__ == "__main__":
    main()
