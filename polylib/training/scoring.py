"""What sampled replies are worth: rewards and diversity of a set, and the advantages of each, not yet weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from polylib.models import sampling
from polylib.training import diversity as div
from polylib.training import objective as obj
from polylib.training.advantages import kl_in_reward, zero_variance
from polylib.training.measures import TOKEN_MEASURES


@dataclass
class Scored:
    """Rollouts of B posts with everything the loss needs, K replies each of at most T tokens."""

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
    kl: torch.Tensor | None = (
        None  # (B,) KL of that policy to the reference, where it is in the reward
    )
    reward_scale: float = 1.0  # what the advantages are divided by: section.scale_advantages
    diversity_scale: float = 1.0


def uses_samples(section) -> bool:
    """Does any term of these settings need sampled replies?"""
    return bool(section.beta or section.lam or section.kappa or section.entropy)


def uses_ranks(section) -> bool:
    """Does any term need rewards in [0, 1] (`percentile`) instead of the reward's own units?"""
    return bool(
        section.beta
        and section.reward_gradient.startswith("pass_at_k")
        or section.lam
        and section.diversity_gradient in ("f_poly", "darling")
    )


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


def reward_advantages(section, rewards: torch.Tensor, ranks: torch.Tensor | None) -> torch.Tensor:
    """Unweighted advantages `(B, K)` of the mean reward, or of the best of `subset_size` replies."""
    k = rewards.shape[1]
    n = section.subset_size or min(k - 1, max(2, k // 2))
    if section.reward_gradient == "mean":
        return obj.group_advantages(
            rewards, "group" if section.scale_advantages == "group" else "none"
        )
    if section.reward_gradient == "max_at_k":
        return div.max_at_k(rewards, n)
    passes = (ranks > 0.5).float()
    return (
        div.max_at_k(passes, n)
        if section.reward_gradient == "pass_at_k"
        else div.pass_at_k_training(passes, n)
    )


def diversity_advantages(
    section, rollouts, distances: torch.Tensor, valid: torch.Tensor, ranks: torch.Tensor | None
) -> torch.Tensor:
    """Unweighted advantages `(B, K)` of `section.diversity`. Token measures count the reply without its EOS."""
    measure = section.diversity
    if measure in TOKEN_MEASURES:
        content = rollouts.lengths - (~rollouts.truncated).long()
        mask = torch.arange(rollouts.completion_ids.shape[-1]) < content.cpu()[..., None]
        measure = TOKEN_MEASURES[measure](rollouts.completion_ids.cpu(), mask, valid)
    return div.diversity_advantages(
        distances,
        valid,
        section.diversity_gradient,
        measure,
        rewards=ranks,
        size=section.subset_size or None,
    )


def score(
    section,
    posts: list,
    rollouts,
    reward,
    encode,
    scales: dict,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    people: torch.Tensor | None = None,
    logprobs: tuple[torch.Tensor, torch.Tensor] | None = None,
    kappa: float = 0.0,
) -> Scored:
    """Rewards, diversity and their advantages for rollouts of `posts`. Calls the reward and the encoder once each.

    `gather` collects numbers of all processes, so that the scales are the same everywhere; `people`, their sorted
    rewards, are needed where `uses_ranks`; `logprobs`, policy and reference `(B, K, T)` each, and `kappa` where the KL
    is part of the reward (kappa is then in units of the reward, and scaled with it).
    """
    b, k = rollouts.truncated.shape
    flat_posts = [post.text for post in posts for _ in range(k)]
    flat = [text for group in rollouts.texts for text in group]
    rewards = d = distances = ranks = kl = None
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
    shaped = rewards
    if logprobs is not None:
        now, reference = (x.cpu() for x in logprobs)
        mask = rollouts.completion_mask.cpu()
        shaped = kl_in_reward(rewards, now, reference, mask, kappa)
        kl = torch.stack([obj.kl_value(*group) for group in zip(now, reference, mask)])
    if section.beta:
        found["reward"] = reward_advantages(section, shaped, ranks)
    if section.lam:
        found["diversity"] = diversity_advantages(section, rollouts, distances, valid, ranks)
    divisors = {"reward": 1.0, "diversity": 1.0}
    for name, advantages in found.items():
        if section.scale_advantages == "running":
            divisors[name] = scales[name].update(gather(advantages))
        elif (
            section.scale_advantages == "batch"
        ):  # as TRL: the std of all rewards; of advantages where there is none
            plain = name == "reward" and section.reward_gradient == "mean"
            divisors[name] = gather(shaped if plain else advantages).std(correction=1).item() or 1.0
    nothing = torch.zeros(b, k)
    return Scored(
        posts,
        rollouts,
        rewards,
        d,
        found.get("reward", nothing),
        found.get("diversity", nothing),
        valid,
        kl=kl,
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
