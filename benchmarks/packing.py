"""Scoring 4 posts x 4 replies of 40 tokens, forward and backward: one packed row a post, or one row a reply.

Same model, same attention, same function; only the layout differs. The log-probabilities are first checked to be
equal within 1e-4 in float32, then the time is taken in the model's own dtype.
"""

from __future__ import annotations

import dataclasses

import common
import torch

from polylib import models
from polylib.models.packing import pack
from polylib.training.policy import Policy

PROMPTS, K = 4, 4


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = common.arguments(__doc__, argv)
    cfg = common.settings(args.model)
    exact = Policy(dataclasses.replace(cfg.model, dtype="float32"), [], seed=0)
    pad, t = exact.tokenizer.pad_token_id, cfg.sampling.temperature
    prompts = [models.format_prompt(exact.tokenizer, text) for text in common.posts(PROMPTS)]
    length = cfg.sampling.max_new_tokens
    ids = torch.randint(
        100, len(exact.tokenizer), (PROMPTS, K, length), generator=torch.Generator().manual_seed(0)
    ).tolist()
    layouts = {
        "one row a post": pack(prompts, ids, pad),
        "one row a reply": pack(
            [p for p in prompts for _ in range(K)], [[y] for row in ids for y in row], pad
        ),
    }

    with torch.no_grad():
        packed, plain = (
            exact.logprobs(layout, t).view(PROMPTS, K, length) for layout in layouts.values()
        )
    worst = (packed - plain).abs().max().item()
    assert worst < 1e-4, f"packed and plain log-probabilities differ by {worst}"
    assert packed.std() > 0

    policy = Policy(cfg.model, [], seed=0)

    def step(layout):
        def run():
            policy.logprobs(layout, t).mean().backward()
            policy.model.zero_grad()

        return run

    taken = common.interleave({name: step(layout) for name, layout in layouts.items()}, args.rounds)
    return common.report(
        f"packing: {args.model}, {PROMPTS} posts x {K} replies x {length} tokens, mean prompt "
        f"{sum(map(len, prompts)) / PROMPTS:.0f} tokens, float32 difference {worst:.0e}",
        taken,
        "one row a post",
    )


if __name__ == "__main__":
    main()
