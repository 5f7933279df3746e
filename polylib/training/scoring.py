"""What sampled replies are worth: rewards and diversity of a set, and the advantages of each, not yet weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from polylib.models import sampling
from polylib.training import diversity as div
from polylib.training.advantages import group_advantages, zero_variance


@dataclass
class Scored:
    """Rollouts of B posts with everything the loss needs, K replies each of at most T tokens. Where a critic made them,
    reward_advantages are of tokens (B, K, T) and diversity_advantages (B, K, 1)."""

    posts: list
    rollouts: sampling.Rollouts
    rewards: torch.Tensor | None  # (B, K) as the reward gave them
    diversity: torch.Tensor | None  # (B,) semantic D of each set, ungated: what a reader sees
    reward_advantages: torch.Tensor  # (B, K) A_reward, without beta; 0 where beta is
    diversity_advantages: torch.Tensor  # (B, K) A_diversity, without lambda; 0 where lambda is
    valid: torch.Tensor  # (B, K) replies that may buy diversity
    old_logprobs: torch.Tensor | None = (
        None  # (B, K, T) of the policy that sampled; None = the current policy
    )
    reward_scale: float = 1.0  # what the advantages are divided by: section.scale_advantages
    diversity_scale: float = 1.0
    values: torch.Tensor | None = None  # (B, K, T) what a critic expected before each token
    returns: torch.Tensor | None = None  # (B, K, T) what it should have expected


def uses_samples(section) -> bool:
    """Does any term of these settings need sampled replies?"""
    return bool(section.beta or section.lam or section.kappa or section.entropy)


def uses_ranks(section) -> bool:
    """Does any term need rewards in [0, 1] (`percentile`) instead of the reward's own units?"""
    return bool(section.lam and section.diversity_gradient in ("f_poly", "darling"))


def human_rewards(reward: Callable, posts: list) -> torch.Tensor:
    """The reward of people's own replies (`.gold`) to these posts, sorted (n,): what `percentile` compares with."""
    pairs = [(post.text, reply) for post in posts for reply in post.gold]
    found = np.asarray(reward([text for text, _ in pairs], [reply for _, reply in pairs]))
    return torch.tensor(found, dtype=torch.float32).sort().values


def percentile(rewards: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
    """Share of people's sorted rewards `people (n,)` below each reward, ties half: any shape -> the same, in [0, 1].

    Monotone, and fixed as long as `people` is: an expectation of it has an unbiased gradient, which a rank
    within the batch would not have. Above .5 is better than the median human reply: a *pass*.
    """
    below = torch.searchsorted(people, rewards.contiguous())
    upto = torch.searchsorted(people, rewards.contiguous(), right=True)
    return (below + upto) / (2.0 * len(people))


def score(
    section,
    posts: list,
    rollouts,
    reward,
    encode,
    scales: dict,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    people: torch.Tensor | None = None,
) -> Scored:
    """Rewards, diversity and their advantages for rollouts of `posts`. Calls the reward and the encoder once each.

    `gather` collects numbers of all processes, so that the scales are the same everywhere; `people`, their sorted
    rewards, are needed where `uses_ranks`.
    """
    b, k = rollouts.truncated.shape
    flat_posts = [post.text for post in posts for _ in range(k)]
    flat = [text for group in rollouts.texts for text in group]
    rewards = d = distances = ranks = None
    found = {}
    valid = torch.tensor([len(text.split()) >= 2 for text in flat]).view(b, k)
    if reward is not None:
        rewards = torch.tensor(np.asarray(reward(flat_posts, flat)), dtype=torch.float32).view(b, k)
        ranks = None if people is None else percentile(rewards, people)
    if encode is not None:
        embeddings = torch.from_numpy(encode(flat)).view(b, k, -1)
        of_posts = torch.from_numpy(encode([post.text for post in posts]))
        valid &= torch.einsum("bkd,bd->bk", embeddings, of_posts) >= section.min_relevance
        distances = div.pairwise_distances(embeddings)
        d = div.mean_pairwise(distances)
    if section.beta:
        scale = "group" if section.scale_advantages == "group" else "none"
        found["reward"] = group_advantages(rewards, scale)
    if section.lam:
        found["diversity"] = div.diversity_advantages(
            distances, valid, section.diversity_gradient, ranks, section.subset_size or None
        )
    divisors = {"reward": 1.0, "diversity": 1.0}
    if section.scale_advantages == "running":
        divisors |= {name: scales[name].update(gather(a)) for name, a in found.items()}
    nothing = torch.zeros(b, k)
    return Scored(
        posts,
        rollouts,
        rewards,
        d,
        found.get("reward", nothing),
        found.get("diversity", nothing),
        valid,
        reward_scale=divisors["reward"],
        diversity_scale=divisors["diversity"],
    )


def describe(scored: Scored | None) -> dict[str, float]:
    """What the history says of one step's rollouts; empty without any."""
    if scored is None:
        return {}
    row = {
        "length": scored.rollouts.lengths.float().mean().item(),
        "truncated": scored.rollouts.truncated.float().mean().item(),
    }
    if scored.rewards is not None:
        row |= {
            "reward": scored.rewards.mean().item(),
            "reward_std": scored.rewards.std(1).mean().item(),
            "zero_variance": zero_variance(scored.rewards),
        }
    if scored.diversity is not None:
        row |= {
            "diversity": scored.diversity.mean().item(),
            "invalid": 1 - scored.valid.float().mean().item(),
        }
    return row
