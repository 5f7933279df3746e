"""A look at validation posts: what the policy would say now, and what it costs."""

from __future__ import annotations

import numpy as np
import torch

from polylib import models, sampling
from polylib.training import diversity as div
from polylib.training import objective as obj
from polylib.training.logprobs import pack
from polylib.training.policy import Policy
from polylib.training.rollouts import Scored, gold_ids, sampled_pack, split


@torch.no_grad()
def look(policy: Policy, cfg, section, posts: list, reward, encode, seed: int) -> tuple[dict, list[list[str]]]:
    """Validation: CE on all gold replies, and reward, diversity, KL, length of fresh samples. Same seed every time."""
    most = max(len(post.gold) for post in posts)
    ce = tokens = 0.0
    for start in range(0, len(posts), 8):
        part = posts[start:start + 8]
        gold = gold_ids(policy, part, most, cfg.sampling.max_new_tokens, [0])
        prompts = [models.format_prompt(policy.tokenizer, p.text, cfg.sampling.max_prompt_tokens) for p in part]
        packed = pack(prompts, gold, policy.tokenizer.pad_token_id, policy.device)
        ce -= policy.logprobs(packed, 1.0).sum().item()
        tokens += packed.completion_mask.sum().item()
    row = {"val_ce": ce / tokens}
    if section.eval_samples == 0:
        return row, []
    rollouts = sampling.sample(policy.shadow, policy.tokenizer, [p.text for p in posts], section.eval_samples,
                               cfg.sampling, seed)
    flat_posts = [p.text for p in posts for _ in range(section.eval_samples)]
    flat = [text for group in rollouts.texts for text in group]
    if reward is not None:
        row["val_reward"] = float(np.mean(reward(flat_posts, flat)))
    if encode is not None:
        embeddings = torch.from_numpy(encode(flat)).view(len(posts), section.eval_samples, -1)
        row["val_diversity"] = div.mean_pairwise(div.pairwise_distances(embeddings)).mean().item()
    row["val_kl"] = kl_to_reference(policy, cfg, posts, rollouts)
    row["val_length"] = rollouts.lengths.float().mean().item()
    row["val_truncated"] = rollouts.truncated.float().mean().item()
    return row, rollouts.texts


@torch.no_grad()
def kl_to_reference(policy: Policy, cfg, posts: list, rollouts) -> float:
    """KL(policy || adapters off) on the policy's own samples, nats per sequence (k3, Schulman 2020).

    Exactly 0 while every B matrix is 0: then the adapters add nothing, and both passes would be the same pass.
    """
    if not any(master.any() for name, master in policy.masters.items() if name.endswith("lora_B")):
        return 0.0
    total = rows = 0.0
    nothing = torch.zeros(rollouts.truncated.shape)
    for part in split(Scored(posts, rollouts, None, None, nothing, ~rollouts.truncated, None), 8):
        packed = sampled_pack(policy, part)
        mask = packed.completion_mask.flatten(0, 1)
        now = policy.logprobs(packed, cfg.sampling.temperature).flatten(0, 1)
        reference = policy.logprobs(packed, cfg.sampling.temperature, reference=True).flatten(0, 1)
        total += obj.kl_value(now, reference, mask).item() * len(mask)
        rows += len(mask)
    return total / rows
