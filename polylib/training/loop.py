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

Which estimator carries a term to the weights, what bounds it and how its weight moves are settings (config.TrainConfig,
explained in params/laptop.yaml): `scoring` makes the advantages, `step` the loss, `schedules` the weights that change.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from polylib import models, run
from polylib.training import anatomy, pathwise
from polylib.training import objective as obj
from polylib.training.advantages import RunningScale
from polylib.training.policy import Policy, load_state, save_state
from polylib.training.rollouts import batch_of, collect, curriculum
from polylib.training.schedules import AdaptiveKL, gold_and_samples
from polylib.training.scoring import describe, human_rewards, uses_ranks, uses_samples
from polylib.training.step import backward
from polylib.training.validation import HACKED, WATCHED, look, rewards_of

COLUMNS = ["step", "loss", "ce", "reward", "reward_std", "diversity", "pathwise", "kl", "kappa", "entropy", "length",
           "truncated", "zero_variance", "invalid", "clip_fraction", "advantage_clipped", "grad_norm", "lr", "tokens",
           "tokens_per_s", "seconds", *anatomy.COLUMNS,
           "val_ce", "val_reward", "val_diversity", "val_kl", "val_length", "val_truncated", *WATCHED]


def train(cfg, section, method: str, seed: int, posts: list, val_posts: list, *, paths, reward=None, encode=None,
          parents: list[Path] = (), watch=None) -> pd.DataFrame:
    """Train one method with one seed and return its history, one row a step.

    `posts` and `val_posts` have `.text` and `.gold` (tuple of human replies), for a curriculum also `.engagement`;
    `reward(posts, replies) -> (N,)` and `encode(texts) -> (N, d)` unit-norm are only called when the settings or the
    validation look need them; `watch` sees every look's samples (see `validation.look`; a resumed run shows it those
    before training again) and may end the run early (`on_hacked`); `parents` are adapter folders merged into the base
    first (the warm start; verified, see models.load_model). Writes the adapter to models/, history.csv, metrics.json,
    samples.json and env.json to results/. State is kept in scratch/ every `save_every` steps (rounded up to whole
    `updates_per_rollout`): a killed run continues where it was. Raises UserError when a term has a weight but its
    callable is missing.
    """
    sampling, ranked = uses_samples(section), uses_ranks(section)
    if (section.beta or ranked) and reward is None:
        raise run.UserError(f"{method}: beta is {section.beta} but no reward was given" if section.beta else
                            f"{method}: {section.diversity_gradient} multiplies by a reward but no reward was given")
    if section.lam and section.diversity_gradient not in pathwise.KINDS and encode is None:
        raise run.UserError(f"{method}: lam is {section.lam} but no encoder was given")
    if section.kappa and section.kl_estimator == "k1":
        print(f"{method}: kl_estimator k1 in the loss has an expected gradient of zero: kappa does nothing")
    started = time.monotonic()
    accelerator = Accelerator(cpu=run.device_dtype(cfg.model)[0].type == "cpu", mixed_precision="no")
    run.seed_everything(seed)
    policy = Policy(cfg.model, parents, seed)
    optimizer = torch.optim.AdamW(policy.masters.values(), lr=section.lr, weight_decay=section.weight_decay)
    scales = {"reward": RunningScale(), "diversity": RunningScale()}
    controller = AdaptiveKL(section.kappa, section.kl_target, section.kl_rule,
                            bounds=tuple(section.kl_bounds)) if section.kl_target else None
    rank, world, size = accelerator.process_index, accelerator.num_processes, section.prompts_per_step
    if size % world:
        raise run.UserError(f"{method}: prompts_per_step {size} cannot be shared by {world} processes")
    if section.lam and section.diversity_gradient == "shared" and size == world:
        raise run.UserError(f"{method}: diversity_gradient shared needs two posts a process; raise prompts_per_step")
    posts = curriculum(posts, section.curriculum)
    updates = section.updates_per_rollout if sampling else 1
    save_every = section.save_every + -section.save_every % updates  # never in the middle of a replay
    trained_on = reward if section.beta or ranked else None
    scratch, mark = paths.scratch(method, seed), fingerprint(cfg, section, posts, parents, trained_on)
    own = scratch / (f"rank{rank}" if rank else "")
    state = load_state(scratch, policy, optimizer, mark)
    first, resumes = (state["step"], state["resumes"] + 1) if state else (0, 0)
    log = run.History(own / "history.csv", COLUMNS)
    log.truncate(first)
    if state:
        for name, scale in scales.items():
            scale.load_state_dict(state["scales"][name])
        if controller:
            controller.load_state_dict(state["controller"])
        before, yardstick = (json.loads((own / f"{name}.json").read_text()) for name in ("before", "yardstick"))
        if watch and before:
            watch([post.text for post in val_posts], before, rewards_of(reward, val_posts, before))
        print(f"{method} s{seed}: resumed at step {first} of {section.steps}")
    else:
        log.rows.clear()
        row, before = look(policy, cfg, section, val_posts, reward, encode, seed, watch)
        log.append({"step": 0, **row})
        yardstick = human_rewards(reward, posts).tolist() if ranked else []
        run.write_json(own / "before.json", before)
        run.write_json(own / "yardstick.json", yardstick)
    yardstick = torch.tensor(yardstick) if ranked else None

    def average(number: float) -> float:
        return accelerator.reduce(torch.tensor(float(number), device=policy.device), "mean").item()

    def gather(numbers: torch.Tensor) -> torch.Tensor:
        return accelerator.gather(numbers.to(policy.device)).cpu()

    pending, scored, stopped = [], None, None
    for step in run.progress(range(first, section.steps), section.steps - first, f"{method} s{seed}"):
        tick = time.monotonic()
        position, replay = divmod(step, updates)
        batch = batch_of(posts, position, size, seed)[rank::world]
        alpha, share = gold_and_samples(section.chord, section.alpha, step)
        now = replace(section, alpha=alpha, kappa=controller.coef if controller else section.kappa)
        if sampling and replay == 0:
            if not pending:  # sample for `rollout_every` batches at once, never past a checkpoint
                ahead = min(section.rollout_every, -(-(section.steps - step) // updates),
                            (save_every - step % save_every) // updates)
                coming = [p for s in range(position, position + ahead)
                          for p in batch_of(posts, s, size, seed)[rank::world]]
                pending = collect(policy, cfg, now, coming, len(batch), (seed * 1_000_003 + step) * world + rank,
                                  reward, encode, scales, gather, yardstick)
            scored = pending.pop(0)
        looks = section.anatomy_every and (step + 1) % section.anatomy_every == 0
        parts = anatomy.Anatomy(policy.params.values()) if looks else None
        totals = backward(policy, cfg, now, batch, scored, [seed, step], average, share, parts)
        policy.collect_gradients(accelerator)
        norm = torch.nn.utils.clip_grad_norm_(policy.masters.values(), section.max_grad_norm)
        lr = section.lr * min(1.0, (step + 1) / max(1, section.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        policy.publish()
        if controller:
            controller.update(average(totals["kl"]))
        seconds = time.monotonic() - tick  # of the step; a look at validation posts is not counted
        row = {"step": step + 1, **totals, **describe(scored), **(parts.row() if parts else {}),
               "kappa": now.kappa if now.kappa else None, "grad_norm": norm.item(), "lr": lr, "seconds": seconds,
               "tokens_per_s": totals["tokens"] / seconds}
        if (step + 1) % section.eval_every == 0 or step + 1 == section.steps:
            val, after = look(policy, cfg, section, val_posts, reward, encode, seed, watch)
            row |= val
            print(f"{method} s{seed} step {step + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in val.items()), flush=True)
        log.append(row)
        if row.get("val_level", 0) >= HACKED and section.on_hacked == "stop":
            print(f"{method} s{seed}: stopped at step {step + 1}, the reward is being gamed (see val_level, val_judge)")
            stopped = step + 1
            break
        if (step + 1) % save_every == 0 and step + 1 < section.steps and rank == 0:
            save_state(scratch, policy, optimizer, {
                "step": step + 1, "resumes": resumes, "fingerprint": mark,
                "controller": controller.state_dict() if controller else None,
                "scales": {name: scale.state_dict() for name, scale in scales.items()}})
    own_history = pd.read_csv(log.path)
    accelerator.wait_for_everyone()
    if rank:
        return own_history  # read before the barrier: behind it the first process drops the folder

    def more(history: pd.DataFrame) -> dict:
        early = {"stopped_early": stopped} if stopped else {}
        return early | weights_as_written(cfg, section, scales, history)

    return finish(cfg, method, seed, policy, log, paths, parents, val_posts, (before, after), steps=section.steps,
                  resumes=resumes, seconds=time.monotonic() - started, more=more)


def fingerprint(cfg, section, posts: list, parents: list[Path], reward=None) -> str:
    """What a resumed run must share with the one that was killed: settings, posts, the weights it starts from, and
    the reward it trains on, by what that says of a few human replies."""
    parts = [asdict(cfg.model), asdict(cfg.sampling), asdict(section), [(p.text, p.gold) for p in posts],
             [models.adapter_digest(p) for p in parents]]
    if reward is not None:
        few = [(post.text, post.gold[0]) for post in posts[:8]]
        parts.append([round(float(x), 3) for x in reward([text for text, _ in few], [reply for _, reply in few])])
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_as_written(cfg, section, scales: dict, history: pd.DataFrame) -> dict:
    """literal_lambda, diversity_scale, reward_scale for metrics.json: what the dimensionless weights amount to; a
    reason instead of a number where no single number exists."""
    why = None if section.scale_advantages in ("running", "none") else {
        "value": None, "reason": f"scale_advantages {section.scale_advantages}: another scale at every step"}
    found = {f"{name}_scale": why or scales[name].scale for name, weight in
             (("reward", section.beta), ("diversity", section.lam)) if weight}
    if section.lam and section.diversity_gradient in pathwise.KINDS:
        return {name: x for name, x in found.items() if name != "diversity_scale"} | {"literal_lambda": section.lam}
    if not section.lam:
        return found
    tokens, normalizer = cfg.sampling.max_new_tokens, section.loss_normalizer
    if normalizer in ("dapo", "token"):  # divided by the tokens there were
        tokens, normalizer = float(history["length"].mean()), "dapo"
    if normalizer == "grpo":
        literal = {"value": None, "reason": "loss_normalizer grpo: 1/|y| differs from reply to reply"}
    elif isinstance(found["diversity_scale"], dict):
        literal = found["diversity_scale"]
    else:
        literal = obj.literal_lambda(section.lam, found["diversity_scale"], section.samples_per_prompt, tokens,
                                     normalizer)
    return found | {"literal_lambda": literal}


def finish(cfg, method, seed, policy, log, paths, parents, val_posts, samples, *, steps, resumes, seconds, more,
           **env) -> pd.DataFrame:
    """Write the adapter and the files of record of a trained run, drop its scratch folder, return the history.

    samples: replies to `val_posts` before and after training; `more(history)` are the method's own numbers for
    metrics.json; `env` goes into env.json."""
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
    metrics |= {"steps": steps, "resumes": resumes, "tokens_per_s": float(history.tokens_per_s.median()),
                "train_seconds": float(history.seconds.sum())}
    run.write_json(out / "metrics.json", metrics | more(history))
    run.write_json(out / "samples.json", [{"post": post.text, "human": list(post.gold), "before": b, "after": a}
                                          for post, b, a in zip(val_posts, *samples)])
    run.write_env(out / "env.json", cfg, wall_seconds=seconds, resumes=resumes, **env)
    shutil.rmtree(paths.scratch(method, seed))
    return history
