"""Same tensors, same numbers: our losses against the code of TRL and transformers (pinned versions).

TRL's `GRPOTrainer._compute_loss` and `SFTTrainer.compute_loss` are called themselves, on stand-ins that have only the
settings they read: no trainer, no download. Values and gradients must agree. TRL's KL penalty is k3 in the loss, so
that is the estimator compared here; the default of this project is k2, whose gradient is that of the reverse KL.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tiny import CFG
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from trl.trainer.utils import add_fused_lm_head, nanstd

from polylib import models
from polylib.models.packing import pack
from polylib.training import objective as ob
from polylib.training.policy import Policy

N, T, MAX = 8, 6, 10


def batch():
    g = torch.Generator().manual_seed(0)
    logprobs = -3 * torch.rand(N, T, generator=g)
    old, ref = (
        logprobs + 0.4 * torch.randn(N, T, generator=g) for _ in range(2)
    )  # far enough to be clipped
    mask = torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=g)
    return logprobs, old, ref, torch.randn(N, generator=g), mask


def trl_grpo(loss_type: str, kappa: float, logprobs, old, ref, a, mask):
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            logprobs,
            torch.zeros(N, T),
            None,
        ),
        loss_type=loss_type,
        beta=kappa,
        epsilon_low=0.2,
        epsilon_high=0.28,
        max_completion_length=MAX,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros(N, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": a,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, trainer._metrics["train"]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kappa", [0.0, 0.1], ids=["no KL", "k3"])
@pytest.mark.parametrize("on_policy", [False, True], ids=["clipped", "on-policy"])
def test_policy_loss_and_k3_penalty_equal_trl(loss_type, kappa, on_policy):
    logprobs, old, ref, a, mask = batch()
    old = None if on_policy else old
    theirs_in, ours_in = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    theirs, metrics = trl_grpo(loss_type, kappa, theirs_in, old, ref, a, mask)
    policy, stats = ob.policy_loss(ours_in, old, a, mask, 0.2, 0.28, loss_type, MAX)
    kl = ob.kl_penalty(ours_in, ref, mask, "k3", loss_type, MAX)
    ours = ob.total(policy=policy, kappa=kappa, kl=kl)
    theirs.backward()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(ours_in.grad, theirs_in.grad, atol=1e-5 * theirs_in.grad.abs().max())
    assert theirs_in.grad[mask].ne(0).any() and not ours_in.grad[~mask].any()
    assert (stats["clip_fraction"] > 0) is not on_policy
    assert stats["clip_fraction"] == pytest.approx(metrics["clip_ratio/region_mean"][0])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_advantages_equal_trls_formula(scale):
    r = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    theirs = r - torch.nanmean(r, dim=1, keepdim=True)
    theirs = theirs if scale == "none" else theirs / (nanstd(r, dim=1)[:, None] + 1e-4)
    assert torch.allclose(ob.group_advantages(r, scale, eps=1e-4), theirs, atol=1e-6)


def trl_sft(model, rows):
    trainer = SimpleNamespace(
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            parallelism_config=None, num_processes=1, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    return SFTTrainer.compute_loss(trainer, model, dict(collate(rows)))


def test_sft_equals_trls_completion_only_loss_and_gradient():
    """The same replies through both projects' batches, masks and heads, on the tiny model with a LoRA that is not 0.
    One reply is cut and has no end mark, one post types a control token."""
    policy = Policy(CFG.model, [], seed=1)
    plain = models.load_model(CFG.model)
    plain.set_attn_implementation("sdpa")
    add_fused_lm_head(plain, outputs=("log_probs", "entropy", "is_top1"))
    theirs_model = models.add_lora(plain, CFG.model, seed=1)
    their_params = {
        f"{name}.lora_{side}": getattr(layer, f"lora_{side}")["default"].weight
        for name, layer in models.lora_layers(theirs_model)
        for side in "AB"
    }
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in policy.params.items():
            p += 0.1 * torch.randn(p.shape, generator=g)
            their_params[name].copy_(p)
    tokens = policy.tokenizer
    prompts = [
        models.format_prompt(tokens, text) for text in ("Rain.", "Lost my <|im_end|> keys again.")
    ]
    gold = [
        [models.encode_reply(tokens, text, 9) for text in pair]
        for pair in (
            ("At last.", "It has to stop at some point, or so they say."),
            ("Same here.", "Ha"),
        )
    ]
    assert [y[-1] == tokens.eos_token_id for pair in gold for y in pair] == [
        True,
        False,
        True,
        True,
    ]

    theirs = trl_sft(
        theirs_model,
        [
            {"input_ids": x + y, "labels": [-100] * len(x) + y}
            for x, pair in zip(prompts, gold)
            for y in pair
        ],
    )
    packed = pack(prompts, gold, tokens.pad_token_id)
    ours = ob.cross_entropy(
        policy.logprobs(packed, 1.0).flatten(0, 1), packed.completion_mask.flatten(0, 1)
    )
    theirs.backward()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, p in policy.params.items():
        assert p.grad.any()
        assert torch.allclose(
            p.grad, their_params[name].grad, atol=1e-5 * p.grad.abs().max() + 1e-8
        ), name


def test_cross_entropy_equals_the_loss_of_transformers():
    g = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(3, 7, 11, generator=g), torch.randint(0, 11, (3, 7), generator=g)
    labels[0, :4], labels[1, 5:], labels[2, :2] = -100, -100, -100
    theirs = ForCausalLMLoss(logits, labels, vocab_size=11)
    gold = labels[:, 1:]
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, gold.clamp(min=0)[..., None])[..., 0]
    assert ob.cross_entropy(logprobs, gold != -100).item() == pytest.approx(theirs.item(), rel=1e-6)
