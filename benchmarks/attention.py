"""One attention layer: polylib's grouped_attention against transformers' sdpa, in training and in decoding.

Training: 4 packed rows with their block mask (additive for ours, boolean for sdpa), forward and backward. Decoding:
32 rows, one query, forward only; also with the key heads repeated, as transformers did before it packed queries.
"""

from __future__ import annotations

from types import SimpleNamespace

import common
import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from polylib.models.attention import additive_mask, grouped_attention
from polylib.models.packing import block_mask


def repeated(module, query, key, value, mask, scaling):
    key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = common.arguments(__doc__, argv)
    heads, kv, dim = (
        (9, 3, 64) if args.model == "wheel" else (4, 2, 16)
    )  # of the model's own attention
    module = SimpleNamespace(num_key_value_groups=heads // kv, is_causal=True)
    prompt, replies, length, repeats = (60, 4, 40, 10) if args.model == "wheel" else (12, 2, 8, 1)
    segment = torch.tensor([0] * prompt + [i + 1 for i in range(replies) for _ in range(length)])
    ratios = {}
    for dtype in (torch.float32, torch.bfloat16):
        for phase, rows, queries in (("training", 4, len(segment)), ("decoding", 32, 1)):
            generator = torch.Generator().manual_seed(0)
            q, k, v = (
                torch.randn(rows, h, n, dim, generator=generator)
                .to(dtype)
                .requires_grad_(phase == "training")
                for h, n in ((heads, queries), (kv, len(segment)), (kv, len(segment)))
            )
            allowed = (
                block_mask(segment.expand(rows, -1))
                if phase == "training"
                else torch.ones(rows, 1, 1, len(segment), dtype=torch.bool)
            )
            additive = additive_mask(allowed, dtype)

            def forward(function, mask):
                return function(module, q, k, v, mask, scaling=dim**-0.5)[0]  # noqa: B023

            def times(function, mask):
                def run():
                    for _ in range(repeats if phase == "training" else 20 * repeats):  # noqa: B023
                        out = forward(function, mask)
                        if out.requires_grad:
                            torch.autograd.grad(out.sum(), (q, k, v))  # noqa: B023

                return run

            ways = {
                "grouped_attention": (grouped_attention, additive),
                "sdpa, boolean mask": (sdpa_attention_forward, allowed),
                "sdpa, additive mask": (sdpa_attention_forward, additive),
            }
            if phase == "decoding":
                ways["sdpa, key heads repeated"] = (repeated, allowed)
            ours, *others = (forward(*way) for way in ways.values())
            for other in others:
                torch.testing.assert_close(
                    ours, other, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0.02
                )
            taken = common.interleave(
                {name: times(*way) for name, way in ways.items()}, args.rounds
            )
            name = f"{phase} {str(dtype).removeprefix('torch.')}"
            ratios[name] = common.report(
                f"attention, {name}: {rows} rows, {queries} queries, {len(segment)} keys, "
                f"{heads}/{kv} heads of {dim}",
                taken,
                "grouped_attention",
            )
    return ratios


if __name__ == "__main__":
    main()
