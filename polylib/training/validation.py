"""Validation: what the policy would say to held-out posts now, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from polylib import models
from polylib.models import sampling
from polylib.models.packing import pack
from polylib.training import diversity as div
from polylib.training import objective as obj
from polylib.training.policy import Policy
from polylib.training.rollouts import behaviour_logprobs, gold_ids

WATCHED = (
    "val_judge",
    "val_shift",
    "val_level",
)  # what a watch may add: a judge's mean, a shift score, a level
HACKED = 3.0  # the level from which the reward counts as gamed


def rewards_of(reward: Callable | None, posts: list, replies: list[list[str]]) -> np.ndarray | None:
    """Rewards (P, K) of K replies to each post; None without a reward."""
    if reward is None:
        return None
    flat_posts = [post.text for post, group in zip(posts, replies) for _ in group]
    return np.asarray(reward(flat_posts, [text for group in replies for text in group])).reshape(
        len(posts), -1
    )


@torch.no_grad()
def validate(
    policy: Policy,
    cfg,
    section,
    posts: list,
    reward,
    encode,
    seed: int,
    watch: Callable | None = None,
    share: slice = slice(None),
    gather: Callable[[list], list] = list,
) -> tuple[dict, list[list[str]]]:
    """CE on all gold replies, and reward, diversity, KL, length of fresh samples. Same seed every time.

    `watch(posts: list[str], replies: list[list[str]], rewards (B, K) | None) -> dict` sees the same samples; its
    numbers, under names out of WATCHED, join the row. Of several processes each looks at `posts[share]`, and `gather`
    puts the items of all together in the order of the posts; all return the same.
    """
    most = max(len(post.gold) for post in posts)
    mine, ce = posts[share], []
    for start in range(0, len(mine), 8):
        part = mine[start : start + 8]
        gold = gold_ids(policy, part, most, cfg.sampling.max_new_tokens, [0])
        prompts = [
            models.format_prompt(policy.tokenizer, p.text, cfg.sampling.max_prompt_tokens)
            for p in part
        ]
        packed = pack(prompts, gold, policy.tokenizer.pad_token_id, policy.device)
        found = policy.logprobs(packed, 1.0).sum().item()
        ce.append((-found, packed.completion_mask.sum().item()))
    costs, tokens = zip(*gather(ce))
    row = {"val_ce": sum(costs) / sum(tokens)}
    if section.eval_samples == 0:
        return row, []
    own = sampling.sample(
        policy.sampler,
        policy.tokenizer,
        [p.text for p in posts],
        section.eval_samples,
        cfg.sampling,
        seed,
        share,
    )
    texts, rewards = gather(own.texts), rewards_of(reward, mine, own.texts)
    if rewards is not None:
        rewards = np.stack(gather(list(rewards)))
        row["val_reward"] = float(rewards.mean())
    if encode is not None:
        embeddings = torch.from_numpy(encode([text for group in own.texts for text in group]))
        spread = div.mean_pairwise(
            div.pairwise_distances(embeddings.view(len(mine), section.eval_samples, -1))
        )
        row["val_diversity"] = torch.stack(gather(list(spread))).mean().item()
    kl = gather([kl_to_reference(policy, cfg, own) * len(mine)])
    row["val_kl"] = sum(kl) / len(posts)
    for name, values in (("val_length", own.lengths), ("val_truncated", own.truncated)):
        row[name] = torch.tensor(gather(values.tolist())).float().mean().item()
    if watch is not None:
        row |= gather([watch([p.text for p in posts], texts, rewards)])[0]  # one says it for all
    return row, texts


@torch.no_grad()
def kl_to_reference(policy: Policy, cfg, rollouts: sampling.Rollouts) -> float:
    """KL(policy || adapters off) on the policy's own samples, nats per sequence (k3, Schulman 2020).

    Exactly 0 while every B matrix is 0: then the adapters add nothing, and both passes would be the same pass.
    """
    if not any(master.any() for name, master in policy.masters.items() if name.endswith("lora_B")):
        return 0.0
    now, reference = (
        behaviour_logprobs(policy, cfg, rollouts, 8, reference).flatten(0, 1)
        for reference in (False, True)
    )
    return obj.kl_value(now, reference, rollouts.completion_mask.flatten(0, 1)).item()
