"""Does a model give its own numbers here? Packed rows and the sampler against a plain forward pass, at every load.

A family may compute what this project's attention and output head do not know (another mask, another scale). Then
everything would train and score on wrong log-probabilities and look well, so such a model is refused.
"""

from __future__ import annotations

import torch

from polylib.models import Head, attention, load_tokenizer, sampling
from polylib.models.likelihood import last_hidden
from polylib.models.packing import completion_logprobs, pack
from polylib.run import UserError
from polylib.settings import SamplingConfig

# Nats a token, in the mean. SmolLM2 has 3e-6 in float32 and .05 in bfloat16, where every product rounds otherwise.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
LONGEST = 1024  # tokens of the longest sliding window that the row of this check reaches over


@torch.no_grad()
def against_plain(model, cfg_model) -> None:
    """UserError, one line, if two sampled replies to one prompt have other log-probabilities in the sampler or in one
    packed row than in transformers' own eager forward pass, by more than TOLERANCE."""
    tokenizer, config = load_tokenizer(cfg_model), vars(model.config.get_text_config())
    if odd := set(config.get("layer_types") or ()) - ATTENTION:
        raise UserError(
            f"model {cfg_model.source}: it has layers of {min(odd)}, which keep no keys that replies could share; "
            "polylib trains models of attention alone"
        )
    window = config.get("sliding_window") or 0
    n = 8 + (window if window <= LONGEST else 0)
    how = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=4, max_prompt_tokens=n)
    drawn = sampling.sample(model, tokenizer, [" ".join(map(str, range(n)))], 2, how, seed=0)
    prompt, ids, mask = drawn.prompt_ids[0], drawn.completion_ids, drawn.completion_mask
    replies = [row[:size].tolist() for row, size in zip(ids[0], drawn.lengths[0])]
    packed = pack([prompt], [replies], tokenizer.pad_token_id, model.device)
    ours = completion_logprobs(last_hidden(model, packed), Head(model), packed, 1.0)
    model.set_attn_implementation("eager")
    rows = torch.cat([torch.tensor([prompt, prompt], device=model.device), ids[0]], 1)
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=ids.shape[-1] + 1).logits
    model.set_attn_implementation(attention.NAME)
    plain = logits[None, :, :-1].float().log_softmax(-1).gather(-1, ids[..., None])[..., 0][mask]
    for name, found in (
        ("packed", ours[packed.completion_mask]),
        ("sampled", drawn.logprobs[mask]),
    ):
        if not (gap := (found - plain).abs().mean().item()) <= TOLERANCE[model.dtype]:
            raise UserError(
                f"model {cfg_model.source}: {name} log-probabilities differ from its plain forward pass by {gap:.2g} "
                f"nats a token (tolerance {TOLERANCE[model.dtype]:g}); polylib cannot train or score this model"
            )
