"""Same tensors, same numbers: our losses against the code of TRL and transformers (pinned versions).

TRL's `GRPOTrainer._compute_loss` is called itself, on a stand-in that has only the settings it reads: no
trainer, no model, no download. Values and gradients must agree for the three loss types both projects have.
"""
from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from polylib.training import advantages as adv
from polylib.training import objective as ob

N, T, MAX = 8, 6, 10


def batch():
    g = torch.Generator().manual_seed(0)
    logprobs = -3 * torch.rand(N, T, generator=g)
    old, ref = (logprobs + 0.4 * torch.randn(N, T, generator=g) for _ in range(2))  # far enough to be clipped
    mask = torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=g)
    return logprobs, old, ref, torch.randn(N, generator=g), mask


def trl_loss(loss_type: str, kappa: float, logprobs, old, ref, a, mask):
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros(N, T), None),
        loss_type=loss_type, beta=kappa, epsilon_low=0.2, epsilon_high=0.28, max_completion_length=MAX,
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        aux_loss_enabled=False, use_vllm=False, _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)})
    ids = torch.zeros(N, T, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long(),
              "advantages": a, "old_per_token_logps": old, "ref_per_token_logps": ref,
              "num_items_in_batch": mask.sum()}
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, trainer._metrics["train"]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kappa", [0.0, 0.1])
def test_policy_loss_and_k3_penalty_equal_trl(loss_type, kappa):
    logprobs, old, ref, a, mask = batch()
    theirs_in, ours_in = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    theirs, metrics = trl_loss(loss_type, kappa, theirs_in, old, ref, a, mask)
    policy, stats = ob.policy_loss(ours_in, old, a, mask, 0.2, 0.28, loss_type, MAX)
    kl = ob.kl_penalty(ours_in, ref, mask, "k3", loss_type, MAX)
    ours = ob.total(policy=policy, kappa=kappa, kl=kl)
    theirs.backward()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(ours_in.grad, theirs_in.grad, atol=1e-6)
    assert stats["clip_fraction"] > 0
    assert stats["clip_fraction"] == pytest.approx(metrics["clip_ratio/region_mean"][0])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_equal_trls_formula(scale):
    r = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    std = nanstd(r, dim=1)[:, None] if scale == "group" else nanstd(r)
    theirs = r - torch.nanmean(r, dim=1, keepdim=True)
    theirs = theirs if scale == "none" else theirs / (std + 1e-4)
    assert torch.allclose(ob.group_advantages(r, scale, eps=1e-4), theirs, atol=1e-6)


def test_gdpo_equals_trls_normalize_then_sum():
    r = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(2))
    weights = torch.tensor([0.2, 0.5, 0.3])
    normed = (r - torch.nanmean(r, dim=1, keepdim=True)) / (nanstd(r, dim=1)[:, None] + 1e-4)
    summed = (normed * weights).nansum(-1)
    theirs = (summed - torch.nanmean(summed)) / (nanstd(summed) + 1e-4)
    assert torch.allclose(adv.gdpo(r, weights), theirs, atol=1e-5)


def test_cross_entropy_equals_the_loss_of_transformers():
    g = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(3, 7, 11, generator=g), torch.randint(0, 11, (3, 7), generator=g)
    labels[0, :4], labels[1, 5:], labels[2, :2] = -100, -100, -100
    theirs = ForCausalLMLoss(logits, labels, vocab_size=11)
    gold = labels[:, 1:]
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, gold.clamp(min=0)[..., None])[..., 0]
    assert ob.cross_entropy(logprobs, gold != -100).item() == pytest.approx(theirs.item(), rel=1e-6)
