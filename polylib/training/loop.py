"""The one loop. SFT, polychromic, GRPO and hybrid are four settings of it.

    L = alpha * CE(gold) - beta * E[reward] - lambda * E[D(y_1..y_K)] + kappa * KL(policy || reference)

    |              | alpha | beta | lambda | kappa |
    | SFT          |   1   |  0   |   0    |   0   |
    | polychromic  |   1   |  0   |   λ    |   0   |
    | GRPO         |   0   |  1   |   0    |   κ   |
    | hybrid       |   α   |  β   |   λ    |   κ   |

Reward and diversity are scores of sampled text, so both reach the weights as per-sample advantages on one set of
rollouts; a term whose weight is 0 is not computed. The reward and the text encoder come in as callables: this
room knows nothing of how they are made. Cross-entropy is the model's own likelihood (temperature 1); sampled
completions are scored at the temperature they were sampled at.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from polylib import models, run, sampling
from polylib.training import objective as obj
from polylib.training.advantages import RunningScale
from polylib.training.logprobs import pack
from polylib.training.policy import Policy, load_state, save_state
from polylib.training.rollouts import (
    Scored,
    batch_of,
    behaviour_logprobs,
    describe,
    gold_ids,
    sampled_ids,
    score,
    split,
)
from polylib.training.validation import look

COLUMNS = ["step", "loss", "ce", "reward", "reward_std", "diversity", "kl", "length", "truncated", "zero_variance",
           "invalid", "clip_fraction", "grad_norm", "lr", "tokens", "tokens_per_s", "seconds",
           "val_ce", "val_reward", "val_diversity", "val_kl", "val_length", "val_truncated"]


def backward(policy: Policy, cfg, section, posts: list, scored: Scored | None, key: list[int],
             average: Callable[[float], float] = float) -> dict[str, float]:
    """Loss and gradient of one step, in slices of `micro_prompts` rows that add up to exactly the whole batch.

    One packed row per post: [prompt | gold replies | sampled replies]. Samples whose advantage is 0 are left out
    when nothing else needs them (kappa = 0): they would only be multiplied by zero. `key` seeds the choice of gold
    replies; `average` is the mean of a number over processes, which makes their mean gradient that of the whole.
    """
    g = section.gold_per_prompt if section.alpha else 0
    limit, t = cfg.sampling.max_new_tokens, cfg.sampling.temperature
    gold = gold_ids(policy, posts, g, limit, key) if g else [[] for _ in posts]
    prompts = [models.format_prompt(policy.tokenizer, post.text, cfg.sampling.max_prompt_tokens) for post in posts]
    k = 0 if scored is None else scored.rollouts.truncated.shape[1]
    if k:
        needed = torch.ones_like(scored.advantages) if section.kappa else scored.advantages != 0
        sampled = sampled_ids(scored.rollouts, needed.long().to(scored.rollouts.lengths.device))
        policy_rows = scored.rollouts.completion_mask.flatten(0, 1).cpu()
        bottom = average(obj.batch_denominator(policy_rows, section.loss_normalizer, limit))
    gold_tokens = sum(len(y) for group in gold for y in group)
    bottom_ce = average(gold_tokens)
    temperatures = torch.tensor([1.0] * g + [t] * k)
    tokens = sum(map(len, prompts)) + gold_tokens + (int(scored.rollouts.lengths.sum()) if k else 0)
    totals = {"tokens": tokens, "loss": 0.0,
              "ce": 0.0 if g else float("nan"), "kl": 0.0 if section.kappa else float("nan"),
              "clip_fraction": 0.0 if k else float("nan")}
    size = section.micro_prompts or len(posts)
    for start in range(0, len(posts), size):
        cut = slice(start, min(start + size, len(posts)))
        rows = [gold[i] + (sampled[i] if k else []) for i in range(cut.start, cut.stop)]
        packed = pack(prompts[cut], rows, policy.tokenizer.pad_token_id, policy.device)
        if not packed.completion_mask.any():
            continue  # every group of this slice has zero advantage and no gold reply: no gradient
        logprobs = policy.logprobs(packed, temperatures.to(policy.device))
        ce = policy_term = kl = None
        if g:
            ce = obj.cross_entropy(logprobs[:, :g].flatten(0, 1), packed.completion_mask[:, :g].flatten(0, 1),
                                   denominator=bottom_ce)
        if k:
            new, mask = logprobs[:, g:].flatten(0, 1), packed.completion_mask[:, g:].flatten(0, 1)
            old = None if scored.old_logprobs is None else \
                scored.old_logprobs[cut, :, :new.shape[-1]].flatten(0, 1).to(new.device)
            policy_term, stats = obj.policy_loss(new, old, scored.advantages[cut].flatten().to(new.device), mask,
                                                 section.clip_low, section.clip_high, section.loss_normalizer, limit,
                                                 denominator=bottom)
            totals["clip_fraction"] += np.nan_to_num(stats["clip_fraction"]) * len(rows) / len(posts)
            if section.kappa:
                with torch.no_grad():
                    ref = policy.logprobs(packed, temperatures.to(policy.device), reference=True)
                ref = ref[:, g:].flatten(0, 1)
                kl = obj.kl_penalty(new, ref, mask, section.kl_estimator, section.loss_normalizer, limit,
                                    denominator=bottom)
                totals["kl"] += obj.kl_value(new, ref, mask).item() * len(rows) / len(posts)
        loss = obj.total(alpha=section.alpha, ce=ce, policy=policy_term, kappa=section.kappa, kl=kl)
        loss.backward()
        totals["loss"] += loss.item()
        totals["ce"] += ce.item() if g else 0.0
    return totals


def train(cfg, section, method: str, seed: int, posts: list, val_posts: list, *, paths, reward=None, encode=None,
          parents: list[Path] = ()) -> pd.DataFrame:
    """Train one method with one seed and return its history, one row a step.

    `posts` and `val_posts` have `.text` and `.gold` (tuple of human replies); `reward(posts, replies) -> (N,)` and
    `encode(texts) -> (N, d)` unit-norm are only called when the settings or the validation look need them;
    `parents` are adapter folders merged into the base first (the warm start; verified, see models.load_model).
    Writes the adapter to models/, history.csv, metrics.json, samples.json and env.json to results/. State is kept in
    scratch/ every `save_every` steps: a killed run continues where it was. Raises UserError when a term has a weight
    but its callable is missing.
    """
    if section.beta and reward is None:
        raise run.UserError(f"{method}: beta is {section.beta} but no reward was given")
    if section.lam and encode is None:
        raise run.UserError(f"{method}: lam is {section.lam} but no encoder was given")
    started = time.monotonic()
    accelerator = Accelerator(cpu=run.device_dtype(cfg.model)[0].type == "cpu", mixed_precision="no")
    run.seed_everything(seed)
    policy = Policy(cfg.model, parents, seed)
    optimizer = torch.optim.AdamW(policy.masters.values(), lr=section.lr, weight_decay=section.weight_decay)
    scales = {"reward": RunningScale(), "diversity": RunningScale()}
    rank, world, size = accelerator.process_index, accelerator.num_processes, section.prompts_per_step
    if size % world:
        raise run.UserError(f"{method}: prompts_per_step {size} cannot be shared by {world} processes")
    scratch, mark = paths.scratch(method, seed), fingerprint(cfg, section, posts, parents)
    state = load_state(scratch, policy, optimizer, mark)
    first, resumes = (state["step"], state["resumes"] + 1) if state else (0, 0)
    log = run.History(scratch / (f"rank{rank}" if rank else "") / "history.csv", COLUMNS)
    log.truncate(first)
    if state:
        for name, scale in scales.items():
            scale.load_state_dict(state["scales"][name])
        before = json.loads((scratch / "before.json").read_text())
        print(f"{method} s{seed}: resumed at step {first} of {section.steps}")
    else:
        log.rows.clear()
        row, before = look(policy, cfg, section, val_posts, reward, encode, seed)
        log.append({"step": 0, **row})
        run.write_json(scratch / "before.json", before)

    def average(number: float) -> float:
        return accelerator.reduce(torch.tensor(float(number), device=policy.device), "mean").item()

    pending = []
    for step in run.progress(range(first, section.steps), section.steps - first, f"{method} s{seed}"):
        tick = time.monotonic()
        batch = batch_of(posts, step, size, seed)[rank::world]
        scored = None
        if section.beta or section.lam:
            if not pending:  # sample for `rollout_every` steps at once, never past a checkpoint
                ahead = min(section.rollout_every, section.steps - step, section.save_every - step % section.save_every)
                coming = [p for s in range(step, step + ahead) for p in batch_of(posts, s, size, seed)[rank::world]]
                rollouts = sampling.sample(policy.shadow, policy.tokenizer, [p.text for p in coming],
                                           section.samples_per_prompt, cfg.sampling,
                                           seed=(seed * 1_000_003 + step) * world + rank)
                whole = score(section, coming, rollouts, reward if section.beta else None, encode, scales,
                              lambda x: accelerator.gather(x.to(policy.device)).cpu())
                pending = split(whole, len(batch))
                for later in pending[1:]:  # by then the policy has moved: keep what it thought when it sampled
                    later.old_logprobs = behaviour_logprobs(policy, cfg, later)
            scored = pending.pop(0)
        totals = backward(policy, cfg, section, batch, scored, [seed, step], average)
        policy.collect_gradients(accelerator)
        norm = torch.nn.utils.clip_grad_norm_(policy.masters.values(), section.max_grad_norm)
        lr = section.lr * min(1.0, (step + 1) / max(1, section.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        policy.publish()
        seconds = time.monotonic() - tick  # of the step; a look at validation posts is not counted
        row = {"step": step + 1, **totals, **describe(scored), "grad_norm": norm.item(), "lr": lr, "seconds": seconds,
               "tokens_per_s": totals["tokens"] / seconds}
        if (step + 1) % section.eval_every == 0 or step + 1 == section.steps:
            val, after = look(policy, cfg, section, val_posts, reward, encode, seed)
            row |= val
            print(f"{method} s{seed} step {step + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in val.items()), flush=True)
        log.append(row)
        if (step + 1) % section.save_every == 0 and step + 1 < section.steps and rank == 0:
            save_state(scratch, policy, optimizer, {
                "step": step + 1, "resumes": resumes, "fingerprint": mark,
                "scales": {name: scale.state_dict() for name, scale in scales.items()}})
    accelerator.wait_for_everyone()
    if rank:
        return pd.read_csv(log.path)
    return finish(cfg, section, method, seed, policy, log, scales, paths, parents, val_posts,
                  (before, after), resumes, time.monotonic() - started)


def fingerprint(cfg, section, posts: list, parents: list[Path]) -> str:
    """What a resumed run must share with the one that was killed: settings, posts and the weights it starts from."""
    parts = [asdict(cfg.model), asdict(cfg.sampling), asdict(section), [(p.text, p.gold) for p in posts],
             [models.adapter_digest(p) for p in parents]]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finish(cfg, section, method, seed, policy, log, scales, paths, parents, val_posts, samples, resumes,
           seconds) -> pd.DataFrame:
    """Write the adapter and the files of record, drop the scratch folder, return the history."""
    out, folder = paths.results(method, seed), paths.models(method, seed)
    models.save_adapter(folder, policy.masters, cfg.model,
                        {"method": method, "seed": seed,
                         "parents": [{"folder": str(Path(p).relative_to(paths.root)),
                                      "sha256": models.adapter_digest(p)} for p in parents]})
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log.path, out / "history.csv")
    history = pd.read_csv(out / "history.csv")
    last, first = history.iloc[-1], history.iloc[0]
    metrics = {f"{name}_{when}": float(row[name]) for name in history.columns if name.startswith("val_")
               for when, row in (("before", first), ("after", last)) if np.isfinite(row[name])}
    metrics |= {"steps": section.steps, "resumes": resumes, "tokens_per_s": float(history.tokens_per_s.median()),
                "train_seconds": float(history.seconds.sum())}
    if section.lam:
        metrics["literal_lambda"] = obj.literal_lambda(
            section.lam, scales["diversity"].scale, section.samples_per_prompt, cfg.sampling.max_new_tokens,
            section.loss_normalizer)
        metrics["diversity_scale"] = scales["diversity"].scale
    if section.beta:
        metrics["reward_scale"] = scales["reward"].scale
    run.write_json(out / "metrics.json", metrics)
    before, after = samples
    run.write_json(out / "samples.json", [{"post": post.text, "human": list(post.gold), "before": b, "after": a}
                                          for post, b, a in zip(val_posts, before, after)])
    run.write_env(out / "env.json", cfg, wall_seconds=seconds, resumes=resumes)
    shutil.rmtree(paths.scratch(method, seed))
    return history
