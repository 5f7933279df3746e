"""Preference learning by another library: TRL's own DPOTrainer on this project's pairs, model and file formats.

    L_DPO = -E log sigmoid( beta * [ log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_l|x) / pi_ref(y_l|x)) ] )

(Rafailov et al. 2023, eq. 7.) No reward model and no sampling: people's better and worse reply to the same post are
compared directly, the log-probabilities summed over tokens, end mark included. The reference is the start, i.e. the
same model with its adapter switched off. TRL computes the loss and takes the steps; tokens, the order of the pairs,
learning rate and adapter shape are those of the other methods, so that a difference is the objective's. TRL is slow to
import and is imported where it is used.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from polylib import models, run
from polylib.training import loop
from polylib.training.policy import Policy, lora_weights
from polylib.training.rollouts import batch_of
from polylib.training.validation import validate

COLUMNS = [*loop.COLUMNS, "pair_accuracy", "margin"]


def pair_tokens(tokenizer, pair, cfg_sampling) -> dict[str, list[int]]:
    """Token ids of one preference pair (`.tweet`, `.chosen`, `.rejected`), as every method tokenises them.

    TRL's own tokenisation would render the post through the chat template as one string, and a user's `<|im_end|>`
    would become a control token. Replies longer than `max_new_tokens` are cut and then have no end mark.
    """
    return {
        "prompt_ids": models.format_prompt(tokenizer, pair.tweet, cfg_sampling.max_prompt_tokens),
        "chosen_ids": models.encode_reply(tokenizer, pair.chosen, cfg_sampling.max_new_tokens),
        "rejected_ids": models.encode_reply(tokenizer, pair.rejected, cfg_sampling.max_new_tokens),
    }


def dpo_trainer(
    cfg, section, seed: int, rows: list[dict], policy: Policy, parents: list[Path], folder: Path
):
    """TRL's DPOTrainer on `rows` (see pair_tokens) in their given order, `prompts_per_step` a step.

    Its model is a second copy of the start (parents merged) with a LoRA of the same shape and the same first A as
    `policy` has, adapters in float32. AdamW and the warm-up are the loop's.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        """TRL's loss as it is; the rows come with their tokens, and nothing is reported to anybody."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _send_telemetry(self):
            pass

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self.last_loss = loss.item()  # the log rounds it
            return loss

    warnings.filterwarnings(
        "ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning
    )  # TRL's own use
    plain = models.load_model(cfg.model, parents)
    # ours builds no mask from the padding mask that TRL gives
    plain.set_attn_implementation("sdpa" if plain._supports_sdpa else "eager")
    args = DPOConfig(
        output_dir=str(folder),
        beta=section.beta,
        loss_type=["sigmoid"],
        max_length=None,
        max_steps=section.steps,
        per_device_train_batch_size=section.prompts_per_step,
        train_sampling_strategy="sequential",
        max_grad_norm=section.max_grad_norm,
        seed=seed,
        use_cpu=policy.device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    args._n_gpu = 1  # one process, one GPU, however many it sees: never nn.DataParallel
    trainer = Trainer(
        model=plain,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=copy.deepcopy(policy.model.peft_config["default"]),
        args=args,
    )
    trainer.remove_callback(PrinterCallback)
    with torch.no_grad():
        for name, weight in lora_weights(trainer.model).items():
            weight.copy_(policy.masters[name])
    trainer.optimizer = torch.optim.AdamW(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=section.lr, weight_decay=0.0
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: min(1.0, (step + 1) / max(1, section.warmup_steps))
    )
    return trainer


def dpo(
    cfg,
    section,
    seed: int,
    pairs: pd.DataFrame,
    val_posts: list,
    *,
    paths,
    parents: list[Path] = (),
    reward=None,
    encode=None,
    watch=None,
) -> pd.DataFrame:
    """Train with DPO on preference pairs and return the history, one row a step; same files as `loop.train`.

    `pairs` has columns tweet, chosen, rejected; `section` is a RivalConfig (beta is the inverse temperature of DPO);
    `val_posts`, `reward`, `encode`, `watch`, `parents` as in `loop.train`. History: loss, pair_accuracy (share of the
    batch whose better reply gained more log-probability), margin (beta x the difference of the log-ratios, mean) and
    the validations. A killed run starts again. Raises UserError without pairs.
    """
    if pairs.empty:
        raise run.UserError(
            "dpo: no preference pairs for these posts; lower data.pair_min_ratio in params/"
        )
    started = time.monotonic()
    run.seed_everything(seed)
    policy = Policy(cfg.model, parents, seed)
    every = list(pairs.itertuples(index=False))
    batches = [
        batch_of(every, step, section.prompts_per_step, seed) for step in range(section.steps)
    ]
    rows = [
        pair_tokens(policy.tokenizer, pair, cfg.sampling) for batch in batches for pair in batch
    ]
    scratch = paths.scratch("dpo", seed)
    trainer = dpo_trainer(cfg, section, seed, rows, policy, parents, scratch)
    log = run.History(scratch / "history.csv", COLUMNS)
    log.rows.clear()

    def run_validation() -> tuple[dict, list[list[str]]]:
        return validate(policy, cfg, section, val_posts, reward, encode, seed, watch)

    row, before = run_validation()
    log.append({"step": 0, **row})
    samples = {"before": before}
    trainer.add_callback(
        _history_callback(section, seed, policy, trainer, log, run_validation, samples, batches)
    )
    with run.enough_memory(f"dpo s{seed}", "lower dpo.prompts_per_step"):
        trainer.train()
    last = pd.read_csv(log.path).iloc[-1]
    return loop.finish(
        cfg,
        "dpo",
        seed,
        policy,
        log,
        paths,
        parents,
        val_posts,
        (samples["before"], samples["after"]),
        numbers={
            "steps": section.steps,
            "resumes": 0,
            "pair_accuracy_last": float(last["pair_accuracy"]),
            "margin_last": float(last["margin"]),
        },
        record={
            "wall_seconds": time.monotonic() - started,
            "resumes": 0,
            "trl": version("trl"),
        },
    )


def _history_callback(
    section,
    seed: int,
    policy: Policy,
    trainer,
    log: run.History,
    run_validation: Callable,
    samples: dict,
    batches: list,
):
    """A callback that writes a history row a step and validates when the loop would."""
    from transformers import TrainerCallback

    class HistoryCallback(TrainerCallback):
        seen = 0  # tokens before this step

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = iter(run.progress(range(section.steps), section.steps, f"dpo s{seed}"))

        def on_step_begin(self, args, state, control, **kwargs):
            next(self.bar)
            self.started = time.monotonic()

        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            self.lr = optimizer.param_groups[0]["lr"]

        def on_log(self, args, state, control, logs, **kwargs):
            if "grad_norm" not in logs:  # the summary after the last step
                return
            step, seconds = state.global_step, time.monotonic() - self.started
            loss, norm = trainer.last_loss, float(logs["grad_norm"])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                pairs = [[p.tweet, p.chosen, p.rejected] for p in batches[step - 1]]
                loop.refuse_step(log.path.parent, step, loss, norm, {"pairs": pairs})
            tokens, self.seen = int(logs["num_tokens"]) - self.seen, int(logs["num_tokens"])
            row = {
                "step": step,
                "loss": loss,
                "pair_accuracy": logs["rewards/accuracies"],
                "margin": logs["rewards/margins"],
                "grad_norm": norm,
                "lr": self.lr,
                "seconds": seconds,
                "tokens": tokens,
                "tokens_per_s": tokens / seconds,
            }
            if step % section.eval_every == 0 or step == section.steps:
                with torch.no_grad():
                    for name, weight in lora_weights(trainer.model).items():
                        policy.masters[name].copy_(weight)
                policy.sync_weights()
                val, samples["after"] = run_validation()
                row |= val
                run.say(
                    f"dpo s{seed} step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in val.items())
                )
            log.append(row)

        def on_train_end(self, args, state, control, **kwargs):
            next(self.bar, None)  # prints the time it took

    return HistoryCallback()
