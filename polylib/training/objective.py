"""The four terms of the objective, as pure functions of tensors.

    L = alpha * CE  -  beta * reward  -  lambda * diversity  +  kappa * KL(policy || reference)

THE ONE IDEA. Reward and diversity are computed on sampled text. Text is discrete: nothing can be
differentiated through it, and a number computed from it is a constant for autograd, with zero gradient. The
gradient of an *expected* score is nevertheless known (the score-function identity, Williams 1992):

    grad E[f(y)] = E[ (f(y) - b) * grad log pi(y) ]          for any b that does not depend on y

so both terms enter as detached `advantages` that multiply differentiable log-probabilities (`policy_loss`).

Shapes: B prompts, K samples a prompt, N = B * K rows, T completion tokens. Log-probs and KL are in nats.
`mask` is True where a completion token counts (EOS included, padding excluded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from polylib.training.advantages import RunningScale, clip_advantages, group_advantages  # noqa: F401  (for callers)


# --------------------------------------------------------------------------------------- normalisation
def batch_denominator(mask: Tensor, normalizer: str, max_tokens: int | None = None) -> float:
    """What the sum over a batch is divided by. `mask (N, T)` -> a number.

    | normalizer       | loss                                   | direction of the gradient                  |
    |------------------|----------------------------------------|--------------------------------------------|
    | "sequence"       | mean over rows of the token sum        | exact                                      |
    | "dr_grpo"        | the same / max_tokens (a constant)     | exact (Liu et al. 2025, arXiv 2503.20783)  |
    | "dapo"           | sum over tokens / tokens in the batch  | exact up to the batch's random length      |
    | "grpo"           | mean over rows of the token *mean*     | biased by 1/|y|: favours short good replies|

    When a batch is split into microbatches, or zero-advantage rows are dropped, compute this once on the
    whole batch and pass it as `denominator=`: the parts then add up to exactly the loss of the whole. Raises
    ValueError on an unknown name, on "dr_grpo" without `max_tokens`, and on a batch with no token.
    """
    rows, tokens = mask.shape[0], int(mask.sum())
    if normalizer == "dr_grpo":
        if not max_tokens:
            raise ValueError(
                "normalizer 'dr_grpo' divides by max_tokens: give the generation limit"
            )
        return float(rows * max_tokens)
    if normalizer in ("grpo", "sequence"):
        return float(rows)
    if normalizer == "dapo":
        if tokens == 0:
            raise ValueError("the mask selects no token, so a token mean does not exist")
        return float(tokens)
    raise ValueError(f"unknown normalizer {normalizer!r}; use dr_grpo, grpo, dapo or sequence")


def _reduce(
    values: Tensor, mask: Tensor, normalizer: str, max_tokens: int | None, denominator: float | None
) -> Tensor:
    """Sum `values (N, T)` over the mask and divide as `batch_denominator` says."""
    rows = values.masked_fill(~mask, 0.0).sum(-1)
    if normalizer == "grpo":
        rows = rows / mask.sum(-1).clamp(min=1)
    if denominator is None:
        denominator = batch_denominator(mask, normalizer, max_tokens)
    return rows.sum() / denominator


# -------------------------------------------------------------------------------------- the four terms
def cross_entropy(
    logprobs: Tensor, mask: Tensor, normalizer: str = "dapo", denominator: float | None = None
) -> Tensor:
    """Negative log-likelihood of the gold replies, nats per token. `logprobs (N, T)`, `mask (N, T)` -> scalar."""
    return _reduce(-logprobs, mask.bool(), normalizer, None, denominator)


def token_entropy(logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Shannon entropy of each next token, nats in [0, log V]: the entropy bonus. `logits (..., V)` -> `(...)`.

    Logits may hold -inf (tokens that a truncated sampler could not draw): they count as probability 0, in value and
    gradient. `targets`, the tokens that came, play no part; `completion_logprobs` passes them.
    """
    logp = logits.log_softmax(-1)
    # p log p is then 0 with gradient 0, where autograd would say NaN
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: str = "dr_grpo",
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped policy-gradient loss, -E[min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)].

    `logprobs (N, T)` carry the gradient; `old_logprobs (N, T)` are those of the policy that sampled (None:
    the same policy, rho = 1); `advantages` are constants, one a reply `(N,)` or one a token `(N, T)` (also
    `(N, 1)`). On the first update rho is 1 and the *value* of the loss says nothing (it is 0 for a centred group
    when replies are equally long); its gradient is -A * grad log pi, which is the whole point. Returns the loss
    and {clip_fraction, ratio_mean}: the share of tokens whose gradient the clip removed, and the mean importance
    ratio (1 on policy); NaN where the mask selects no token. Raises ValueError if the advantages require a
    gradient (they must not) or are not finite. Source: Schulman et al. 2017 eq. 7; clip_high > clip_low is
    DAPO's clip-higher (arXiv 2503.14476).
    """
    if advantages.requires_grad:
        raise ValueError("advantages are constants of the score-function identity: detach them")
    if not torch.isfinite(advantages).all():
        raise ValueError(
            "advantages hold NaN or infinity; find the reward or distance that produced it"
        )
    mask, a = mask.bool(), advantages if advantages.ndim == 2 else advantages[:, None]
    old = logprobs.detach() if old_logprobs is None else old_logprobs.detach()
    ratio = (logprobs - old).masked_fill(~mask, 0.0).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = _reduce(
        -torch.minimum(ratio * a, clipped * a), mask, normalizer, max_tokens, denominator
    )
    with torch.no_grad():
        binding = ((ratio > 1.0 + clip_high) & (a > 0)) | ((ratio < 1.0 - clip_low) & (a < 0))
        stats = {
            "clip_fraction": binding[mask].float().mean().item(),
            "ratio_mean": ratio[mask].mean().item(),
        }
    return loss, stats


def _kl_terms(log_ratio: Tensor, estimator: str) -> Tensor:
    """Schulman's estimators (2020, "Approximating KL divergence") of d = log pi - log ref, elementwise."""
    k2 = 0.5 * log_ratio**2
    k3 = torch.expm1(-log_ratio) + log_ratio
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return k2
    if estimator == "k3":
        return k3
    if (
        estimator == "k3+"
    ):  # straight-through: prints k3's unbiased value, moves the weights by k2's gradient
        return k2 + (k3 - k2).detach()
    raise ValueError(f"unknown KL estimator {estimator!r}; use k1, k2, k3 or k3+")


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    estimator: str = "k2",
    normalizer: str = "dr_grpo",
    max_tokens: int | None = None,
    denominator: float | None = None,
    level: str = "token",
) -> Tensor:
    """KL of the policy to the reference as a loss term on sampled completions. `(N, T)` -> scalar.

    What moves the weights is not the value but the gradient, and on samples from the policy they differ:

    | estimator | expected value       | expected gradient                                    |
    |-----------|----------------------|------------------------------------------------------|
    | k1        | KL(pi || ref)        | exactly 0: a penalty that does nothing               |
    | k2        | biased               | grad KL(pi || ref)                                   |
    | k3        | KL(pi || ref)        | grad KL(ref || pi), the *forward* divergence (TRL)   |
    | k3+       | KL(pi || ref)        | grad KL(pi || ref)                                   |

    (k1 is right in the *reward*: `advantages.kl_in_reward`.) `level` says what log pi - log ref is taken of:
    "token" (the usual form; exact for each next-token distribution, but it ignores that a token changes which
    prefixes come later), "sequence" (of the whole reply; makes the table exact for replies of any length,
    with more variance), "togo" (k2 only: each token is charged for itself and all later tokens; also exact,
    and drops the part of "sequence" that is pure noise). Source: arXiv 2512.21852; verl's `kl_penalty` for
    k3+.
    """
    mask = mask.bool()
    log_ratio = (logprobs - ref_logprobs.detach()).masked_fill(~mask, 0.0)
    if level == "token":
        values = _kl_terms(log_ratio, estimator)
    elif level == "sequence":
        if denominator is None:
            denominator = batch_denominator(mask, normalizer, max_tokens)
        return _kl_terms(log_ratio.sum(-1), estimator).sum() / denominator
    elif level == "togo":
        to_go = log_ratio.detach().flip(-1).cumsum(-1).flip(-1)
        own = 0.5 * log_ratio**2
        values = own.detach() + to_go * (log_ratio - log_ratio.detach())
    else:
        raise ValueError(f"unknown level {level!r}; use token, sequence or togo")
    return _reduce(values, mask, normalizer, max_tokens, denominator)


@torch.no_grad()
def kl_value(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL(pi || ref) in nats *per sequence* for the log, mean over rows, by k3. `(N, T)` -> scalar without gradient.

    Unbiased only while the completions come from the current policy; never negative.
    """
    mask = mask.bool()
    log_ratio = (logprobs - ref_logprobs).masked_fill(~mask, 0.0)
    return _reduce(_kl_terms(log_ratio, "k3"), mask, "sequence", None, None)


# --------------------------------------------------------------------------------- putting it together
def combined_advantages(
    reward_advantages: Tensor | None,
    diversity_advantages: Tensor | None,
    beta: float,
    lam: float,
    reward_scale: float = 1.0,
    diversity_scale: float = 1.0,
    limit: float = 0.0,
) -> Tensor:
    """beta * A_reward / reward_scale + lam * A_diversity / diversity_scale, all `(B, K)`, detached.

    With the scales of two `RunningScale`s both parts have unit size and `beta`, `lam` are dimensionless. A
    part may be None when its weight is 0. `limit` > 0 clips the sum to +- limit: where it acts, both parts
    shrink alike. Raises ValueError if a weighted part is missing.
    """
    parts = [
        (beta, reward_advantages, reward_scale, "reward"),
        (lam, diversity_advantages, diversity_scale, "diversity"),
    ]
    for weight, part, _, name in parts:
        if weight != 0 and part is None:
            raise ValueError(f"the weight of {name} is {weight} but its advantages are missing")
    present = [
        weight * part.detach() / scale for weight, part, scale, _ in parts if part is not None
    ]
    if not present:
        raise ValueError("neither reward nor diversity advantages were given")
    if limit:
        shrink = clip_factors(sum(present[1:], present[0]), limit)
        present = [part * shrink for part in present]
    return sum(present[1:], present[0])


def clip_factors(advantages: Tensor, limit: float) -> Tensor:
    """What each advantage is multiplied by to lie within +- limit: 1 where it does already. Any shape."""
    return torch.where(
        advantages.abs() > limit, clip_advantages(advantages, limit)[0] / advantages, 1.0
    )


def literal_lambda(
    lam: float, scale: float, k: int, tokens: float, normalizer: str = "dr_grpo"
) -> float:
    """The lambda of the literal loss "CE - lambda * D" that a dimensionless `lam` amounts to.

    An estimator of this project satisfies E[sum_i A_i grad log pi(y_i)] = grad E[D], a *sum* over the K
    samples of log-probs *summed* over tokens. `policy_loss` averages over K and divides by `tokens`, and the
    advantages were divided by `scale`, so the literal weight is lam / (scale * K * tokens). `tokens` is
    max_tokens for "dr_grpo", the mean completion length for "dapo", unused for "sequence". There is none
    for "grpo": its 1/|y| differs from reply to reply. Example: scale .06, K 4, 40 tokens: lam
    1 is literally .10.
    """
    return lam / (scale * k * (1.0 if normalizer == "sequence" else tokens))


def total(
    *,
    alpha: float = 0.0,
    ce: Tensor | None = None,
    policy: Tensor | None = None,
    kappa: float = 0.0,
    kl: Tensor | None = None,
    entropy_weight: float = 0.0,
    entropy: Tensor | None = None,
) -> Tensor:
    """L = alpha * CE + policy + kappa * KL - entropy_weight * entropy, a scalar.

    `policy` is `policy_loss` of `combined_advantages`: it *is* "- beta * reward - lambda * diversity". Its two
    weights are inside the advantages and not here, because what is clipped is the ratio times their sum.
    A term with weight 0 may be None; raises ValueError if a weighted term is missing.
    """
    terms = [
        (alpha, ce, "ce"),
        (1.0, policy, "policy"),
        (-entropy_weight, entropy, "entropy"),
        (kappa, kl, "kl"),
    ]
    for weight, term, name in terms:
        if weight != 0 and term is None and name != "policy":
            raise ValueError(f"the weight of {name} is {weight} but the term is missing")
    weighted = [weight * term for weight, term, _ in terms if term is not None and weight != 0]
    if not weighted:
        raise ValueError("the loss has no term: every weight is 0 or every term is missing")
    return sum(weighted[1:], weighted[0])
