"""PPO (Schulman et al. 2017) for replies: a value network in place of GRPO's group mean, in the project's own loop.

    A_t = sum_l (gamma lambda)^l delta_{t+l},   delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    L = L_clip(A) + value_weight / 2 E[ (V(s_t) - R_t)^2 ] + kappa KL,   R_t = A_t + V(s_t)

(GAE: Schulman et al. 2016, eq. 16.) s_t is the post and the reply before token t, V a linear function of the policy's
last hidden state there. The only reward is that of the whole reply, at its last token. The KL is the loss term of the
other methods and nowhere else: put into the rewards (Ziegler et al. 2019) it has the same expected gradient where
gamma and lambda are 1, but would then count in V as well. A reply cut off at the length limit ends there, as the
reward has scored it: V after it is 0 (no bootstrap), and `mask_truncated` takes it out of both losses. Rollouts,
clipped ratio, updates, validation and checkpoints are GRPO's, so that a difference between the two is the critic's.

history = loop.train(cfg, cfg.ppo, "ppo", seed, posts, val_posts, paths=paths, reward=reward, critic=ppo.Critic)
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from polylib.models.packing import Packed, predicting_states, scatter
from polylib.training import objective as obj
from polylib.training.policy import Policy
from polylib.training.scoring import Scored


def terminal_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """`rewards (B, K)` of whole replies at their last token, 0 elsewhere: `(B, K, T)`. `mask (B, K, T)`, of completion
    tokens, is a prefix of each row; a reply without a token gets nothing."""
    last = mask & ~F.pad(mask[..., 1:], (0, 1))
    return rewards[..., None] * last


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, `(..., T)` each, in the units of the reward, 0 where masked.

    `rewards (..., T)` paid after each token, `values (..., T)` expected before it; nothing is expected after the last
    token of `mask`. lam = 1 gives the discounted return less the value, lam = 0 the one-step error. Source: Schulman et
    al. 2016 (arXiv 1506.02438), eq. 16; the returns are those of TD(lambda).
    """
    values = values.masked_fill(~mask, 0.0)
    deltas = (rewards + gamma * F.pad(values[..., 1:], (0, 1)) - values).masked_fill(~mask, 0.0)
    advantages = deltas.clone()
    for t in range(deltas.shape[-1] - 2, -1, -1):
        advantages[..., t] += gamma * lam * advantages[..., t + 1]
    return advantages, advantages + values


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.0,
    normalizer: str = "dr_grpo",
    denominator: float | None = None,
) -> Tensor:
    """Half the squared error of `values (N, T)`, summed and divided like `objective.policy_loss` -> scalar.

    `clip` > 0 keeps a value from being moved further than that from `old_values (N, T)`, those of the rollout, by one
    batch: the larger of the errors with and without the clip counts (the authors' code, baselines/ppo2; 0 = no clip).
    """
    error = (values - returns) ** 2
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return obj.cross_entropy(-error / 2, mask, normalizer, denominator)  # it adds up and divides


class Critic:
    """V(s) = w . LayerNorm(h) + b on the policy's last hidden states h, in float32; 0 everywhere at the start.

    w and b join the policy's parameters and masters, and so the optimizer and every checkpoint; an adapter saved for
    others holds neither. Scaled to unit size h makes a step of the adapter's learning rate suit every model. The error
    of V reaches the adapter too, by `value_weight`.
    """

    COLUMNS = ("value_loss", "value", "explained_variance")

    def __init__(self, policy: Policy):
        size = policy.head.matrix.weight.shape[1]
        self.weight, self.bias = (
            torch.zeros(n, device=policy.device, requires_grad=True) for n in (size, 1)
        )
        for name in ("weight", "bias"):
            policy.params[f"value_head.{name}"] = getattr(self, name)
            policy.masters[f"value_head.{name}"] = (
                getattr(self, name).detach().clone().requires_grad_()
            )

    def __call__(self, hidden: Tensor, packed: Packed) -> Tensor:
        """V before every packed completion token: hidden states (B, L, d) -> (B, N, T) float32, 0 where masked."""
        states = predicting_states(hidden, packed).float()
        values = F.layer_norm(states, states.shape[-1:]) @ self.weight + self.bias
        return scatter(values, packed.completion_mask)

    def assess(self, section, scored: Scored, old_logprobs: Tensor, values: Tensor) -> Scored:
        """A batch of rollouts with GAE in place of group advantages; the last two as of `behaviour_logprobs`. Their
        scale stays that of GRPO, the spread of rewards under one post."""
        mask, values = scored.rollouts.completion_mask.cpu(), values.cpu()
        rewards = terminal_rewards(scored.rewards, mask)
        advantages, returns = gae(rewards, values, mask, section.gamma, section.gae_lambda)
        return replace(
            scored,
            reward_advantages=advantages,
            diversity_advantages=scored.diversity_advantages[..., None],
            old_logprobs=old_logprobs,
            values=values,
            returns=returns,
        )

    def loss(
        self, section, values: Tensor, scored: Scored, cut: slice, mask: Tensor, denominator: float
    ) -> Tensor:
        """`value_loss` of the slice `cut` of posts, whose `values (b, K, T)` carry the gradient; `mask (b K, T)`."""
        old, returns = (
            known[cut, :, : values.shape[-1]].flatten(0, 1).to(values.device)
            for known in (scored.values, scored.returns)
        )
        return value_loss(
            values.flatten(0, 1),
            old,
            returns,
            mask,
            section.value_clip,
            section.loss_normalizer,
            denominator,
        )

    def describe(self, scored: Scored) -> dict[str, float]:
        """For the history: mean value, and 1 - Var(R - V) / Var(R) over the tokens of a batch (1: V foresees all of
        the return, 0: no better than a constant); NaN where all returns are equal up to rounding."""
        mask = scored.rollouts.completion_mask.cpu()
        value, returns = scored.values[mask], scored.returns[mask]
        spread = returns.var()
        explained = (1 - (returns - value).var() / spread).masked_fill(spread < 1e-9, torch.nan)
        return {"value": value.mean().item(), "explained_variance": explained.item()}
