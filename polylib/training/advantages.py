"""From rewards `(B, K)` to per-sample advantages `(B, K)`: centring, scaling, gating. Pure torch, no
gradient.

An advantage is the number that multiplies grad log pi(y_i). It may be shifted by anything that does not
depend on y_i (the direction stays exact, the variance falls) and divided by anything constant over the batch;
dividing by something that differs between prompts (a group's own std) re-weights the prompts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _check_rewards(rewards: Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards must be (B, K) with K >= 2, got {tuple(rewards.shape)}: with one sample "
            "a prompt there is no group to compare with"
        )
    if not torch.isfinite(rewards).all():
        row, column = (~torch.isfinite(rewards)).nonzero()[0].tolist()
        raise ValueError(
            f"reward of prompt {row}, sample {column} is {rewards[row, column].item()}; one "
            "that cannot be computed must be handled where it is computed, not averaged away"
        )


def group_advantages(rewards: Tensor, scale: str = "none", eps: float = 1e-8) -> Tensor:
    """Reward minus the mean of its group, optionally divided by a standard deviation. `(B, K)` -> `(B, K)`.

    The mean includes the sample itself, which multiplies the exact (leave-one-out) gradient by 1 - 1/K and
    leaves its direction exact. `scale`: "none"; "group" (std of the group, ddof 1: GRPO, arXiv 2402.03300;
    re-weights prompts by 1/std). For a running scale use "none" here and divide by `RunningScale`. A group of
    equal rewards gets exactly 0. TRL adds eps = 1e-4, which shrinks advantages visibly when rewards are of
    size 1e-3; pass it for parity. Raises ValueError on NaN or infinite rewards, K < 2, and an unknown scale.
    """
    _check_rewards(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    # The mean of K equal floats need not equal them: without this line 1e-9 / (0 + eps) becomes a signal.
    centred = centred.masked_fill((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (rewards.std(1, keepdim=True, correction=1) + eps)
    raise ValueError(
        f"unknown scale {scale!r}; use none or group "
        "(for 'running' use none and divide by RunningScale)"
    )


def zero_variance(rewards: Tensor) -> float:
    """Share of groups whose rewards are all equal: they carry no policy gradient. `(B, K)` -> [0, 1]."""
    _check_rewards(rewards)
    return (rewards == rewards[:, :1]).all(1).float().mean().item()


class RunningScale:
    """Root mean square of advantages over *past* batches (exponential average, bias-corrected).

    Dividing by it makes a weight dimensionless: A / scale has unit size whatever the units of the reward. The
    scale of a batch comes from the batches before it, so it is a constant for the current samples and the
    direction of the gradient stays exact; only the very first batch sets its own scale. A batch
    whose advantages are all 0 says nothing about the scale and is not counted. Its three numbers, enough to
    resume bit for bit, are `vars(scale)`.
    """

    def __init__(self, decay: float = 0.9):
        self.decay, self.mean_square, self.weight = decay, 0.0, 0.0

    @property
    def scale(self) -> float:
        """Current value; 1 while no batch with a signal has been seen."""
        return math.sqrt(self.mean_square / self.weight) if self.weight > 0 else 1.0

    def update(self, advantages: Tensor) -> float:
        """Return the scale for these advantages (any shape), then count them for the next batch.

        Raises ValueError on NaN or infinity, which would poison every later step.
        """
        square = advantages.detach().double().square().mean().item()
        if not math.isfinite(square):
            raise ValueError("advantages hold NaN or infinity; the running scale refuses them")
        before = self.scale if self.weight > 0 else None
        if square > 0:
            self.mean_square = self.decay * self.mean_square + (1.0 - self.decay) * square
            self.weight = self.decay * self.weight + (1.0 - self.decay)
        return self.scale if before is None else before


# ---------------------------------------------------------------------------- options of the GRPO menu
def clip_advantages(advantages: Tensor, limit: float) -> tuple[Tensor, float]:
    """Clamp to [-limit, limit]; also returns the share of clipped entries, to be logged.

    Clipping after centring breaks the zero sum and so biases the gradient: it is only harmless while the
    share is 0. After division by the group's std |A| <= (K - 1) / sqrt(K) (1.5 at K = 4), so a limit of 10
    never acts.
    """
    return advantages.clamp(-limit, limit), (advantages.abs() > limit).float().mean().item()


def mask_truncated(mask: Tensor, truncated: Tensor) -> Tensor:
    """Remove replies that hit the length limit from a term. `mask (N, T)`, `truncated (N,)` -> `(N, T)`.

    An unfinished reply was scored as if complete; masking it avoids that and in exchange favours short
    replies.
    """
    return mask.bool() & ~truncated.bool()[:, None]


def kl_in_reward(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kappa: float
) -> Tensor:
    """reward - kappa * sum_t (log pi - log ref): k1 in the *reward*. `(B, K)`, `(B, K, T)` -> `(B, K)`,
    detached.

    Through the score function this is exactly -kappa * grad KL(pi || ref) of whole replies: the extra term
    kappa * E[grad log pi] is zero. (The same k1 as a *loss* has zero expected gradient; see `kl_penalty`.)
    """
    log_ratio = (logprobs - ref_logprobs).detach().masked_fill(~mask.bool(), 0.0)
    return rewards - kappa * log_ratio.sum(-1)
