"""Which posts a step sees, what people replied, what the policy says now; scored by `scoring`, cut into batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import lru_cache
from zlib import crc32

import numpy as np
import torch

from polylib import models
from polylib.models import sampling
from polylib.models.packing import pack, replayed
from polylib.run import UserError
from polylib.training.policy import Policy
from polylib.training.scoring import Scored, score, uses_ranks


def curriculum(posts: list, quantile: float) -> list:
    """The posts whose `.engagement` lies above this quantile of all of them (0 = all). UserError if none does."""
    if quantile == 0:
        return posts
    levels = np.array([post.engagement for post in posts])
    chosen = [post for post, above in zip(posts, levels > np.quantile(levels, quantile)) if above]
    if not chosen:
        raise UserError(
            f"curriculum {quantile}: no post lies above this quantile of engagement; lower it"
        )
    return chosen


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def batch_of(posts: list, position: int, size: int, seed: int) -> list:
    """The `position`-th batch: epochs are permutations drawn from (seed, epoch), so that number is all there is."""
    places = (divmod(i, len(posts)) for i in range(position * size, (position + 1) * size))
    return [posts[_order(len(posts), seed, epoch)[index]] for epoch, index in places]


def gold_ids(
    policy: Policy, posts: list, n: int, limit: int, key: list[int]
) -> list[list[list[int]]]:
    """`n` human replies of each post as token ids with EOS, drawn without replacement; fewer leave empty slots.

    The draw depends on `key` and on the text alone, so it is the same however a batch is cut over processes.
    """
    groups = []
    for post in posts:
        order = np.random.default_rng([*key, crc32(post.text.encode())]).permutation(
            len(post.gold)
        )[:n]
        group = [models.encode_reply(policy.tokenizer, post.gold[i], limit) for i in order]
        groups.append(group + [[]] * (n - len(group)))
    return groups


# ----------------------------------------------------------------------------------------- sampled replies
def sampled_ids(
    rollouts: sampling.Rollouts, keep: torch.Tensor | None = None
) -> list[list[list[int]]]:
    """Sampled ids up to EOS; a completion that is not kept becomes an empty slot, which costs nothing."""
    lengths = (rollouts.lengths if keep is None else rollouts.lengths * keep).tolist()
    return [
        [ids[:n] for ids, n in zip(row, row_lengths)]
        for row, row_lengths in zip(rollouts.completion_ids.tolist(), lengths)
    ]


def _cut(item, part: slice):
    """Every tensor and list of a dataclass, cut along the posts."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return replace(
        item,
        **{
            name: _cut(value, part) if isinstance(value, sampling.Rollouts) else value[part]
            for name, value in values.items()
            if value is not None and not isinstance(value, float)
        },
    )


def split(scored: Scored, size: int) -> list[Scored]:
    """Cut along the posts, `size` posts a part."""
    return [_cut(scored, slice(start, start + size)) for start in range(0, len(scored.posts), size)]


@torch.no_grad()
def behaviour_logprobs(
    policy: Policy,
    cfg,
    rollouts: sampling.Rollouts,
    size: int,
    reference: bool = False,
    critic: Callable | None = None,
) -> torch.Tensor:
    """Log-probs of the sampled tokens under the policy as it is now (or the reference), by the training forward
    pass in slices of `size` posts: (B, K, T), 0 where masked; with `critic` (2, B, K, T), its values the second.

    Not the sampler's own: in bfloat16 the two differ by up to 0.3 a token, more than the clip range.
    """
    shape = (1 if critic is None else 2, *rollouts.completion_ids.shape)
    out = torch.zeros(shape, device=policy.device)
    for start in range(0, len(rollouts.prompt_ids), size):
        part = _cut(rollouts, slice(start, start + size))
        packed = pack(
            part.prompt_ids, sampled_ids(part), policy.tokenizer.pad_token_id, policy.device
        )
        found = policy.logprobs(
            packed,
            cfg.sampling.temperature,
            reference=reference,
            kept=replayed(part.kept, packed, 0),
            critic=critic,
        )
        found = found[None] if critic is None else torch.stack(found)
        out[:, start : start + size, :, : found.shape[-1]] = found
    return out[0] if critic is None else out


def collect(
    policy: Policy,
    cfg,
    section,
    posts: list,
    size: int,
    seed: int,
    reward,
    encode,
    scales: dict,
    gather: Callable,
    people: torch.Tensor | None,
    share: slice = slice(None),
) -> list[Scored]:
    """Sample and score `posts[share]`, one process's share, at once, cut into batches of `size`; arguments as of
    `score`.
    Log-probs of the policy that sampled are kept for every update that a moved policy will make: later batches, and
    all updates but the first where there are several. The policy's critic, if it has one, makes the advantages."""
    rollouts = sampling.sample(
        policy.sampler,
        policy.tokenizer,
        [post.text for post in posts],
        section.samples_per_prompt,
        cfg.sampling,
        seed,
        share,
    )
    posts = posts[share]
    off_policy = len(posts) > size or section.updates_per_rollout > 1
    rows = section.micro_prompts or size
    critic = policy.critic
    old = (
        behaviour_logprobs(policy, cfg, rollouts, rows, critic=critic)
        if off_policy or critic
        else None
    )
    whole = score(
        section,
        posts,
        rollouts,
        reward if section.beta or uses_ranks(section) else None,
        encode,
        scales,
        gather,
        people,
    )
    whole = critic.assess(section, whole, *old) if critic else replace(whole, old_logprobs=old)
    parts = split(whole, size)
    if section.updates_per_rollout == 1:
        parts[
            0
        ].old_logprobs = None  # it learns before the policy has moved: the ratio is 1 by definition
    return parts
