"""One whole GRPO step, 4 posts x 4 replies x 40 tokens: polylib's loop against trl.GRPOTrainer on the same model.

Each step samples, rewards (reply length in characters), scores policy and reference (KL weight 0.1), goes backward
and updates rank-16 adapters. Both clocks are read around TRL's steps by a callback, which then runs one of ours, so
the two alternate within one run. Replies cannot end (both sides): every step is 640 sampled tokens.
"""

from __future__ import annotations

import dataclasses
import tempfile
from types import SimpleNamespace

import common
import numpy as np
import torch
from accelerate import Accelerator

from polylib import models
from polylib.models import sampling
from polylib.training.loop import backward
from polylib.training.policy import Policy
from polylib.training.rollouts import score

PROMPTS, K = 4, 4


def our_step(cfg, section, posts):
    """-> function that makes one step of `loop.train`, in the same order, without its files."""
    policy, accelerator = Policy(cfg.model, [], seed=0), Accelerator(cpu=True)
    policy.tokenizer.eos_token = (
        "<jupyter_script>"  # a token the model never writes: replies do not end
    )
    policy.sampler.generation_config.eos_token_id = None
    optimizer = torch.optim.AdamW(policy.masters.values(), lr=section.lr)

    def reward(texts, replies):
        return np.array([float(len(reply)) for reply in replies])

    def step():
        rollouts = sampling.sample(
            policy.sampler, policy.tokenizer, [p.text for p in posts], K, cfg.sampling, seed=1
        )
        scored = score(section, posts, rollouts, reward, None, {})
        backward(
            policy,
            cfg,
            section,
            posts,
            scored,
            [0, 0],
            alpha=section.alpha,
            beta=section.beta,
            lam=section.lam,
            kappa=section.kappa,
        )
        policy.collect_gradients(accelerator)
        torch.nn.utils.clip_grad_norm_(policy.masters.values(), section.max_grad_norm)
        optimizer.step()
        policy.sync_weights()
        assert rollouts.lengths.float().mean() == cfg.sampling.max_new_tokens

    return step


def trl_trainer(cfg, section, texts, steps, callback, folder):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = models.load_model(cfg.model), models.load_tokenizer(cfg.model)
    model.set_attn_implementation("sdpa")
    rows = [
        {"prompt": [{"role": "system", "content": models.SYSTEM}, {"role": "user", "content": t}]}
        for t in texts
    ]
    limit = cfg.sampling.max_new_tokens
    config = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * K,
        num_generations=K,
        max_completion_length=limit,
        generation_kwargs={"min_new_tokens": limit},
        top_k=0,
        loss_type="dr_grpo",
        temperature=cfg.sampling.temperature,
        beta=section.kappa,
        scale_rewards="none",
        learning_rate=section.lr,
    )
    lora = LoraConfig(
        r=cfg.model.lora_rank, lora_alpha=cfg.model.lora_alpha, target_modules="all-linear"
    )
    lengths = lambda completions, **kwargs: [float(len(c[0]["content"])) for c in completions]  # noqa: E731
    return GRPOTrainer(
        model=model,
        reward_funcs=lengths,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[callback],
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    from transformers import TrainerCallback

    args = common.arguments(__doc__, argv)
    cfg = common.settings(args.model)
    section = dataclasses.replace(
        cfg.grpo, scale_advantages="none", prompts_per_step=PROMPTS, samples_per_prompt=K
    )
    texts = common.posts(PROMPTS)
    ours = our_step(cfg, section, [SimpleNamespace(text=text, gold=()) for text in texts])
    taken = {"polylib": [], "trl": []}

    class Alternate(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.before = common.clocks()

        def on_step_end(self, *_, **__):
            middle = common.clocks()
            ours()
            for name, a, b in (("trl", self.before, middle), ("polylib", middle, common.clocks())):
                taken[name].append((b[0] - a[0], b[1] - a[1], 1))

    with tempfile.TemporaryDirectory() as folder:
        trl_trainer(cfg, section, texts, args.rounds, Alternate(), folder).train()
    return common.report(
        f"step: {args.model}, {PROMPTS} posts x {K} replies x {cfg.sampling.max_new_tokens} tokens",
        taken,
        "polylib",
    )


if __name__ == "__main__":
    main()
