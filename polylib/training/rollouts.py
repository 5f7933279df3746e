"""Rollouts turned into advantages: which posts a step sees, what was sampled, what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch

from polylib import models, sampling
from polylib.training import diversity as div
from polylib.training import objective as obj
from polylib.training.advantages import zero_variance
from polylib.training.logprobs import Packed, pack
from polylib.training.policy import Policy


@dataclass
class Scored:
    """Rollouts of some posts with everything the loss needs: (B, K) rewards and advantages, (B, K, T) old log-probs."""

    posts: list
    rollouts: sampling.Rollouts
    rewards: torch.Tensor | None
    diversity: torch.Tensor | None      # (B,) D of each set, ungated: what a reader sees
    advantages: torch.Tensor            # (B, K) beta * A_reward + lambda * A_diversity
    valid: torch.Tensor                 # (B, K) replies that may buy diversity
    old_logprobs: torch.Tensor | None   # (B, K, T) of the policy that sampled; None = the current policy


def batch_of(posts: list, step: int, size: int, seed: int) -> list:
    """Posts of one step: epochs are permutations drawn from (seed, epoch), so a step number is the data position."""
    picked = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(posts))
        picked.append(posts[np.random.default_rng([seed, epoch]).permutation(len(posts))[index]])
    return picked


def gold_ids(policy: Policy, posts: list, n: int, limit: int, key: list[int]) -> list[list[list[int]]]:
    """`n` human replies of each post as token ids with EOS, drawn without replacement; fewer leave empty slots.

    The draw depends on `key` and on the text alone, so it is the same however a batch is cut over processes.
    """
    groups = []
    for post in posts:
        order = np.random.default_rng([*key, crc32(post.text.encode())]).permutation(len(post.gold))[:n]
        group = [models.encode_reply(policy.tokenizer, post.gold[i], limit) for i in order]
        groups.append(group + [[]] * (n - len(group)))
    return groups


def sampled_ids(rollouts: sampling.Rollouts, keep: torch.Tensor) -> list[list[list[int]]]:
    """Sampled ids up to EOS; a completion that is not kept becomes an empty slot, which costs nothing."""
    lengths = (rollouts.lengths * keep).tolist()
    return [[ids[:n] for ids, n in zip(row, row_lengths)]
            for row, row_lengths in zip(rollouts.completion_ids.tolist(), lengths)]


def score(section, posts: list, rollouts, reward, encode, scales: dict,
          gather: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Scored:
    """Rewards, diversity and their advantages for rollouts of `posts`. Calls the reward and the encoder once each.

    `gather` collects the advantages of all processes, so that the running scales are the same everywhere.
    """
    b, k = rollouts.truncated.shape
    flat_posts = [post.text for post in posts for _ in range(k)]
    flat = [text for group in rollouts.texts for text in group]
    rewards = d = reward_adv = diversity_adv = None
    valid = torch.tensor([len(text.split()) >= 2 for text in flat]).view(b, k)
    if reward is not None:
        rewards = torch.tensor(np.asarray(reward(flat_posts, flat)), dtype=torch.float32).view(b, k)
    if encode is not None:
        embeddings = torch.from_numpy(encode(flat)).view(b, k, -1)
        of_posts = torch.from_numpy(encode([post.text for post in posts]))
        valid &= torch.einsum("bkd,bd->bk", embeddings, of_posts) >= section.min_relevance
        distances = div.pairwise_distances(embeddings)
        d = div.mean_pairwise(distances)
    if section.beta:
        scale = section.scale_advantages if section.scale_advantages == "group" else "none"
        reward_adv = obj.group_advantages(rewards, scale)
    if section.lam:
        diversity_adv = div.diversity_advantages(distances, valid, section.diversity_gradient, section.diversity,
                                                 rewards=None if rewards is None else rewards)
    sizes = {"reward": 1.0, "diversity": 1.0}
    if section.scale_advantages == "running":
        sizes = {name: scales[name].update(gather(adv)) if adv is not None else 1.0
                 for name, adv in (("reward", reward_adv), ("diversity", diversity_adv))}
    advantages = torch.zeros(b, k)
    if section.beta or section.lam:
        advantages = obj.combined_advantages(reward_adv, diversity_adv, section.beta, section.lam,
                                             sizes["reward"], sizes["diversity"])
    return Scored(posts, rollouts, rewards, d, advantages, valid, None)


def sampled_pack(policy: Policy, scored: Scored) -> Packed:
    keep = torch.ones_like(scored.rollouts.lengths)
    return pack(scored.rollouts.prompt_ids, sampled_ids(scored.rollouts, keep), policy.tokenizer.pad_token_id,
                policy.device)


def split(scored: Scored, size: int) -> list[Scored]:
    """Cut along the posts, `size` posts a part."""
    r, parts = scored.rollouts, []
    for start in range(0, len(scored.posts), size):
        cut = slice(start, start + size)
        part = sampling.Rollouts(r.prompt_ids[cut], r.completion_ids[cut], r.completion_mask[cut], r.logprobs[cut],
                                 r.truncated[cut], r.texts[cut])
        parts.append(Scored(scored.posts[cut], part, *(None if x is None else x[cut] for x in (
            scored.rewards, scored.diversity, scored.advantages, scored.valid, scored.old_logprobs))))
    return parts


@torch.no_grad()
def behaviour_logprobs(policy: Policy, cfg, scored: Scored) -> torch.Tensor:
    """Log-probs of the sampled tokens under the policy as it is now, by the training forward pass: (B, K, T).

    Not the sampler's own: in bfloat16 the two differ by up to 0.3 a token, more than the clip range.
    """
    return policy.logprobs(sampled_pack(policy, scored), cfg.sampling.temperature)


def describe(scored: Scored | None) -> dict[str, float]:
    """What the history says of one step's rollouts; empty without any."""
    if scored is None:
        return {}
    row = {"length": scored.rollouts.lengths.float().mean().item(),
           "truncated": scored.rollouts.truncated.float().mean().item()}
    if scored.rewards is not None:
        row |= {"reward": scored.rewards.mean().item(), "reward_std": scored.rewards.std(1).mean().item(),
                "zero_variance": zero_variance(scored.rewards)}
    if scored.diversity is not None:
        row |= {"diversity": scored.diversity.mean().item(), "invalid": 1 - scored.valid.float().mean().item()}
    return row
