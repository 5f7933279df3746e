"""One step's loss and gradient: the terms of the objective on packed rows, in slices that add up to the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from polylib import models
from polylib.models.packing import pack, replayed
from polylib.training import objective as obj
from polylib.training.advantages import clip_advantages, mask_truncated
from polylib.training.anatomy import Anatomy
from polylib.training.policy import Policy
from polylib.training.rollouts import gold_ids, sampled_ids
from polylib.training.scoring import Scored


def backward(
    policy: Policy,
    cfg,
    section,
    posts: list,
    scored: Scored | None,
    key: list[int],
    average: Callable[[float], float] = float,
    anatomy: Anatomy | None = None,
    *,
    alpha: float,
    beta: float,
    lam: float,
    kappa: float,
) -> dict[str, float]:
    """Loss and gradient of one step: alpha * CE - beta * reward - lam * diversity + kappa * KL on `posts`.

    In slices of `micro_prompts` rows that add up to exactly the whole batch.

    One packed row per post: [prompt | gold replies | sampled replies]. Samples whose advantage is 0 are left out
    when nothing else needs them (no KL, no entropy): they would only be multiplied by zero. `key` seeds the choice
    of gold replies; `average` is the mean of a number over processes, which makes their mean gradient that of the
    whole; `anatomy` is given the weighted terms of every slice, which leaves loss and gradient as they are. Returns
    the numbers of the history; NaN for a term that is not there.
    """
    g = section.gold_per_prompt if alpha else 0
    limit, t = cfg.sampling.max_new_tokens, cfg.sampling.temperature
    gold = gold_ids(policy, posts, g, limit, key) if g else [[] for _ in posts]
    prompts = (
        scored.rollouts.prompt_ids
        if scored
        else [
            models.format_prompt(policy.tokenizer, post.text, cfg.sampling.max_prompt_tokens)
            for post in posts
        ]
    )
    k = 0 if scored is None else scored.rollouts.truncated.shape[1]
    kappa = kappa if k else 0.0
    entropy = section.entropy if k else 0.0
    denominator = sampled_tokens = 0
    if k:
        counted = scored.rollouts.completion_mask.flatten(0, 1).cpu()
        cut_off = scored.rollouts.truncated.cpu() & section.mask_truncated
        counted = mask_truncated(counted, cut_off.flatten())

        def advantages_of(beta, lam, limit=0.0):  # (B, K, 1), with a critic (B, K, T)
            return obj.combined_advantages(
                scored.reward_advantages,
                scored.diversity_advantages,
                beta,
                lam,
                scored.reward_scale,
                scored.diversity_scale,
                limit,
            ).reshape(*cut_off.shape, -1)

        advantages = advantages_of(beta, lam, section.advantage_clip)
        advantages = advantages.masked_fill(cut_off[..., None], 0.0)
        everything = kappa or entropy or policy.critic
        needed = torch.ones_like(cut_off) if everything else (advantages != 0).any(-1)
        sampled = sampled_ids(scored.rollouts, needed.long().to(scored.rollouts.lengths.device))
        sampled_tokens = int(counted.sum())
        # a token mean of no token at all: every reply was cut off, and so is its term
        empty = sampled_tokens == 0 and section.loss_normalizer == "dapo"
        denominator = (
            average(
                0.0 if empty else obj.batch_denominator(counted, section.loss_normalizer, limit)
            )
            or 1.0
        )
    gold_tokens = sum(len(y) for group in gold for y in group)
    ce_denominator = average(gold_tokens)
    temperatures = torch.tensor([1.0] * g + [t] * k).to(policy.device)
    nan = float("nan")
    totals = {
        "tokens": sum(map(len, prompts))
        + gold_tokens
        + (int(scored.rollouts.lengths.sum()) if k else 0),
        "loss": 0.0,
        "ce": 0.0 if g else nan,
        "kl": 0.0 if kappa else nan,
        "entropy": 0.0 if entropy else nan,
        "clip_fraction": 0.0 if k else nan,
        **({"value_loss": 0.0} if policy.critic else {}),
    }
    if k and section.advantage_clip:
        totals["advantage_clipped"] = clip_advantages(
            advantages_of(beta, lam), section.advantage_clip
        )[1]
    size = section.micro_prompts or len(posts)
    for start in range(0, len(posts), size):
        cut = slice(start, min(start + size, len(posts)))
        rows = [gold[i] + (sampled[i] if k else []) for i in range(cut.start, cut.stop)]
        packed = pack(prompts[cut], rows, policy.tokenizer.pad_token_id, policy.device)
        if not packed.completion_mask.any():
            continue  # every group of this slice has zero advantage and no gold reply: no gradient
        kept = (
            replayed(scored.rollouts.kept[cut], packed, g)
            if k and scored.rollouts.kept is not None
            else None
        )
        found = policy.logprobs(
            packed,
            temperatures,
            kept=kept,
            value=obj.token_entropy if entropy else None,
            critic=policy.critic,
        )
        found, values = found if policy.critic else (found, None)
        logprobs, entropies = found if entropy else (found, None)
        terms = dict(alpha=alpha, kappa=kappa, entropy_weight=entropy)
        if g:
            gold_mask = packed.completion_mask[:, :g].flatten(0, 1)
            terms["ce"] = obj.cross_entropy(
                logprobs[:, :g].flatten(0, 1), gold_mask, denominator=ce_denominator
            )
            totals["ce"] += terms["ce"].item()
        if k:
            new, mask = logprobs[:, g:].flatten(0, 1), packed.completion_mask[:, g:].flatten(0, 1)
            all_tokens, mask = mask, mask_truncated(mask, cut_off[cut].flatten().to(mask.device))
            old = (
                None
                if scored.old_logprobs is None
                else scored.old_logprobs[cut, :, : new.shape[-1]].flatten(0, 1).to(new.device)
            )

            def policy_term(weights, new=new, old=old, mask=mask):
                return obj.policy_loss(
                    new,
                    old,
                    weights.flatten(0, 1)[:, : new.shape[-1]].to(new.device),
                    mask,
                    section.clip_low,
                    section.clip_high,
                    section.loss_normalizer,
                    limit,
                    denominator=denominator,
                )

            terms["policy"], stats = policy_term(advantages[cut])
            totals["clip_fraction"] += (
                np.nan_to_num(stats["clip_fraction"]) * len(rows) / len(posts)
            )
            if kappa:
                with torch.no_grad():
                    ref = policy.logprobs(packed, temperatures, reference=True, kept=kept)[
                        :, g:
                    ].flatten(0, 1)
                terms["kl"] = obj.kl_penalty(
                    new,
                    ref,
                    mask,
                    section.kl_estimator,
                    section.loss_normalizer,
                    limit,
                    denominator=denominator,
                    level=section.kl_level,
                )
                totals["kl"] += obj.kl_value(new, ref, all_tokens).item() * len(rows) / len(posts)
            if entropy:
                bonus = entropies[:, g:].flatten(0, 1)
                # summed like the policy term (as minus a log-likelihood), so that both weights mean the same
                terms["entropy"] = obj.cross_entropy(
                    -bonus, mask, section.loss_normalizer, denominator=denominator
                )
                totals["entropy"] += bonus.detach()[mask].sum().item() / max(sampled_tokens, 1)
        if anatomy is not None:
            weighted = {"ce": alpha * terms["ce"]} if g else {}
            for name, weights in (("reward", (beta, 0.0)), ("diversity", (0.0, lam))):
                if k and any(weights):
                    mine = advantages_of(*weights)
                    if section.advantage_clip:  # the sum decides how far both parts shrink
                        mine = mine * obj.clip_factors(
                            advantages_of(beta, lam), section.advantage_clip
                        )
                    weighted[name] = policy_term(mine.masked_fill(cut_off[..., None], 0.0)[cut])[0]
            anatomy.add(weighted | ({"kl": kappa * terms["kl"]} if kappa else {}))
        loss = obj.total(**terms)
        if policy.critic:
            error = policy.critic.loss(section, values[:, g:], scored, cut, mask, denominator)
            totals["value_loss"] += error.item()
            loss = loss + section.value_weight * error
        loss.backward()
        totals["loss"] += loss.item()
    return totals
