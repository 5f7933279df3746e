"""The one loop. SFT, polychromic, GRPO and hybrid are four settings of it.

    L = alpha * CE(gold) - beta * E[reward] - lambda * E[D(y_1..y_K)] + kappa * KL(policy || reference)

    |              | alpha | beta | lambda | kappa |
    | SFT          |   1   |  0   |   0    |   0   |
    | polychromic  |   1   |  0   |   λ    |   0   |
    | GRPO         |   0   |  1   |   0    |   κ   |
    | hybrid       |   α   |  β   |   λ    |   κ   |

Reward and diversity are scores of sampled text, so both reach the weights as per-sample advantages on one set of
rollouts; a term whose weight is 0 is not computed. The reward and the text encoder come in as callables.
Cross-entropy is the model's own likelihood (temperature 1); sampled completions are scored at the temperature they
were sampled at.

Which estimator carries a term to the weights, what bounds it and how its weight moves are settings (config.TrainConfig,
explained in params/laptop.yaml). `take_step` is one step from samples to update; `scoring` makes the advantages of
reward and diversity, `step.backward` weighs and adds the four terms, `schedules` holds the one weight that changes.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from polylib import models, run
from polylib.models.encoder import hardware
from polylib.training import anatomy
from polylib.training import objective as obj
from polylib.training.advantages import RunningScale
from polylib.training.policy import Policy, load_state, lora_weights, save_state
from polylib.training.rollouts import batch_of, collect, curriculum
from polylib.training.schedules import AdaptiveKL
from polylib.training.scoring import describe, human_rewards, uses_ranks, uses_samples
from polylib.training.step import backward
from polylib.training.validation import HACKED, WATCHED, rewards_of, validate

COLUMNS = [
    "step",
    "loss",
    "ce",
    "reward",
    "reward_std",
    "diversity",
    "kl",
    "kappa",
    "entropy",
    "length",
    "truncated",
    "zero_variance",
    "invalid",
    "clip_fraction",
    "advantage_clipped",
    "grad_norm",
    "lr",
    "tokens",
    "tokens_per_s",
    "seconds",
    *anatomy.COLUMNS,
    "val_ce",
    "val_reward",
    "val_diversity",
    "val_kl",
    "val_length",
    "val_truncated",
    *WATCHED,
]


@dataclass
class Learner:
    """What a step reads and changes: the policy and whatever a resumed run has to have back."""

    cfg: object
    section: object
    seed: int
    policy: Policy
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    reward: Callable | None
    encode: Callable | None
    scales: dict[str, RunningScale]
    controller: AdaptiveKL | None
    scratch: Path | None = None  # where a batch that cannot be learned from is kept
    people: torch.Tensor | None = None  # sorted rewards of people's replies, where `uses_ranks`
    first: int = 0  # the step this process started at
    pending: list = field(default_factory=list)  # scored batches that wait for their step
    scored: object = None  # of the current step; a replay uses it again

    @property
    def updates(self) -> int:
        """Steps taken on one batch of samples."""
        return self.section.updates_per_rollout if uses_samples(self.section) else 1

    @property
    def save_every(self) -> int:
        """Steps between checkpoints: `save_every`, rounded up, since none lies in the middle of a replay."""
        return self.section.save_every + -self.section.save_every % self.updates

    def average(self, number: float) -> float:
        """Mean over processes."""
        return self.accelerator.reduce(
            torch.tensor(float(number), device=self.policy.device), "mean"
        ).item()

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """The numbers of all processes."""
        return self.accelerator.gather(numbers.to(self.policy.device)).cpu()

    @property
    def share(self) -> slice:
        """Which posts of a batch, or of a validation, are this process's."""
        return slice(self.accelerator.process_index, None, self.accelerator.num_processes)

    def gather_items(self, mine: list) -> list:
        """What all processes say of their `share`, in the order of the whole."""
        parts = gather_object([mine])
        whole = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: len(parts)] = part
        return whole

    def of_whole(self, row: dict) -> dict:
        """Numbers of the whole batch from those of this process's share: their means, for tokens the sum."""
        world = self.accelerator.num_processes
        if world == 1:
            return row
        whole = {name: self.average(value) for name, value in row.items()}
        return whole | {"tokens": whole["tokens"] * world}

    def validate(self, posts: list, watch) -> tuple[dict, list]:
        """`validation.validate`, shared out among the processes."""
        return validate(
            self.policy,
            self.cfg,
            self.section,
            posts,
            self.reward,
            self.encode,
            self.seed,
            watch,
            self.share,
            self.gather_items,
        )


def take_step(it: Learner, posts: list, step: int) -> dict:
    """Sample, score, loss, update. Returns the step's row of the history."""
    section, policy, started = it.section, it.policy, time.monotonic()
    position, replay = divmod(step, it.updates)
    batch = own_batch(it, posts, position)
    kappa = it.controller.coef if it.controller else section.kappa

    # Sample and score. A replay learns from the same samples again.
    if uses_samples(section) and replay == 0:
        if not it.pending:
            it.pending = sample_and_score(it, posts, step, len(batch))
        it.scored = it.pending.pop(0)

    # Loss and gradient: alpha * CE - beta * reward - lam * diversity + kappa * KL.
    anatomy_due = section.anatomy_every and (step + 1) % section.anatomy_every == 0
    parts = anatomy.Anatomy(policy.params.values()) if anatomy_due else None
    totals = backward(
        policy,
        it.cfg,
        section,
        batch,
        it.scored,
        [it.seed, step],
        it.average,
        parts,
        alpha=section.alpha,
        beta=section.beta,
        lam=section.lam,
        kappa=kappa,
    )

    # Update: the weights, the copy that samples, kappa.
    policy.collect_gradients(it.accelerator)
    norm = torch.nn.utils.clip_grad_norm_(policy.masters.values(), section.max_grad_norm)
    check_finite(it, batch, step, totals["loss"], norm.item())
    lr = section.lr * min(1.0, (step + 1) / max(1, section.warmup_steps))
    for group in it.optimizer.param_groups:
        group["lr"] = lr
    it.optimizer.step()
    policy.sync_weights()
    if it.controller:
        it.controller.update(it.average(totals["kl"]))
    seconds = time.monotonic() - started  # validation is not counted
    said = policy.critic.describe(it.scored) if policy.critic else {}
    whole = it.of_whole(totals | describe(it.scored) | said)
    return {
        "step": step + 1,
        **whole,
        **(parts.row() if parts else {}),
        "kappa": kappa if kappa else None,
        "grad_norm": norm.item(),
        "lr": lr,
        "seconds": seconds,
        "tokens_per_s": whole["tokens"] / seconds,
    }


def own_batch(it: Learner, posts: list, position: int) -> list:
    """This process's share of the `position`-th batch."""
    return batch_of(posts, position, it.section.prompts_per_step, it.seed)[it.share]


def sample_and_score(it: Learner, posts: list, step: int, size: int) -> list:
    """Scored samples for this process's `size` posts of each of the next `rollout_every` batches, drawn at once; never
    past a checkpoint."""
    ahead = min(
        it.section.rollout_every,
        -(-(it.section.steps - step) // it.updates),
        (it.save_every - step % it.save_every) // it.updates,
    )
    first = step // it.updates
    upcoming = [
        post
        for position in range(first, first + ahead)
        for post in batch_of(posts, position, it.section.prompts_per_step, it.seed)
    ]
    return collect(
        it.policy,
        it.cfg,
        it.section,
        upcoming,
        size,
        it.seed * 1_000_003 + step,
        it.reward,
        it.encode,
        it.scales,
        it.gather,
        it.people,
        it.share,
    )


def train(
    cfg,
    section,
    method: str,
    seed: int,
    posts: list,
    val_posts: list,
    *,
    paths,
    reward=None,
    encode=None,
    parents: list[Path] = (),
    watch=None,
    critic=None,
) -> pd.DataFrame:
    """Train one method with one seed and return its history, one row a step.

    `posts` and `val_posts` have `.text` and `.gold` (tuple of human replies), for a curriculum also `.engagement`;
    `reward(posts, replies) -> (N,)` and `encode(texts) -> (N, d)` unit-norm are only called when the settings or the
    validation need them; `watch` sees the samples of every validation (see `validation.validate`; a resumed run shows
    it the first ones before training again) and may end the run early (`on_hacked`); `parents` are adapter folders
    merged into the base first (the warm start; verified, see models.load_model); `critic` is a class that gives the
    policy a value head (rivals.ppo.Critic). Writes the adapter to models/, history.csv, metrics.json, samples.json and
    env.json to results/. State is kept in scratch/ every `save_every` steps (rounded up to whole
    `updates_per_rollout`): a killed run continues where it was. Raises UserError when a term has a weight but its
    callable is missing.
    """
    check_callables(section, method, reward, encode)
    started = time.monotonic()
    it = learner(cfg, section, seed, parents, reward, encode, critic)
    it.scratch = paths.scratch(method, seed)
    rank = it.accelerator.process_index
    check_processes(section, method, it.accelerator.num_processes, len(val_posts))
    posts = curriculum(posts, section.curriculum)
    marks = marks_of(
        cfg, section, posts, parents, reward if section.beta or uses_ranks(section) else None
    )
    log = run.History(
        it.scratch / (f"rank{rank}" if rank else "") / "history.csv",
        [*COLUMNS, *(critic.COLUMNS if critic else ())],
    )
    with run.enough_memory(
        f"{method} s{seed}", f"lower {method}.micro_prompts (now {section.micro_prompts}, 0 = all)"
    ):
        resumes, before = start_or_resume(it, method, posts, val_posts, marks, log, watch)
        after, stopped = learn(it, method, posts, val_posts, marks, log, watch, (resumes, before))

    it.accelerator.wait_for_everyone()
    if rank:
        it.accelerator.wait_for_everyone()  # for the files that the first process writes
        return pd.read_csv(paths.results(method, seed) / "history.csv")

    history = finish(
        cfg,
        method,
        seed,
        it.policy,
        log,
        paths,
        parents,
        val_posts,
        (before, after),
        numbers={"steps": section.steps, "resumes": resumes}
        | ({"stopped_early": stopped} if stopped else {})
        | weights_as_written(cfg, section, it.scales, pd.read_csv(log.path)),
        record={
            "wall_seconds": time.monotonic() - started,
            "resumes": resumes,
            "processes": it.accelerator.num_processes,
        },
    )
    it.accelerator.wait_for_everyone()
    return history


def learn(
    it: Learner,
    method: str,
    posts: list,
    val_posts: list,
    marks: dict[str, str],
    log: run.History,
    watch,
    state: tuple[int, list],
) -> tuple[list, int | None]:
    """Steps, validations and checkpoints from `it.first` on: (replies of the last validation, step at which `on_hacked`
    stopped the run). `state` is what `start_or_resume` gave, for the checkpoints."""
    section, after, stopped = it.section, [], None
    for step in run.progress(
        range(it.first, section.steps), section.steps - it.first, f"{method} s{it.seed}"
    ):
        row = take_step(it, posts, step)
        if (step + 1) % section.eval_every == 0 or step + 1 == section.steps:
            val, after = it.validate(val_posts, watch)
            row |= val
            run.say(
                f"{method} s{it.seed} step {step + 1}: "
                + ", ".join(f"{k} {v:.3f}" for k, v in val.items())
            )
        log.append(row)
        if row.get("val_level", 0) >= HACKED and section.on_hacked == "stop":
            run.say(
                f"{method} s{it.seed}: stopped at step {step + 1}, the reward is being gamed (val_level, val_judge)"
            )
            stopped = step + 1
            break
        if (
            (step + 1) % it.save_every == 0
            and step + 1 < section.steps
            and it.accelerator.process_index == 0
        ):
            checkpoint(it, step + 1, marks, log, *state)
    return after, stopped


def check_callables(section, method: str, reward, encode) -> None:
    """UserError when a term has a weight but its callable is missing."""
    if section.beta and reward is None:
        raise run.UserError(f"{method}: beta is {section.beta} but no reward was given")
    if uses_ranks(section) and reward is None:
        raise run.UserError(
            f"{method}: {section.diversity_gradient} multiplies by a reward but no reward was given"
        )
    if section.lam and encode is None:
        raise run.UserError(f"{method}: lam is {section.lam} but no encoder was given")


def check_processes(section, method: str, world: int, validated: int) -> None:
    """UserError when a batch or `validated` posts cannot be shared by `world` processes. A line where a launcher has
    started one process only."""
    size = section.prompts_per_step
    if size % world:
        raise run.UserError(
            f"{method}: prompts_per_step {size} cannot be shared by {world} processes"
        )
    if validated < world:
        raise run.UserError(
            f"{method}: {validated} held-out posts are fewer than {world} processes"
        )
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        run.say(
            f"{method}: one process trains, though a launcher was asked for several (accelerate launch on a CPU starts "
            "one); PROCESSES=2 or torchrun starts them"
        )


def learner(
    cfg, section, seed: int, parents: list[Path] = (), reward=None, encode=None, critic=None
) -> Learner:
    """Everything a first step needs: the policy at its start, a fresh optimizer, empty scales. Seeds the process."""
    accelerator = Accelerator(
        cpu=run.device_dtype(cfg.model)[0].type == "cpu", mixed_precision="no"
    )
    run.seed_everything(seed)
    policy = Policy(cfg.model, parents, seed)
    policy.critic = critic and critic(policy)
    optimizer = torch.optim.AdamW(
        policy.masters.values(), lr=section.lr, weight_decay=section.weight_decay
    )
    scales = {"reward": RunningScale(), "diversity": RunningScale()}
    controller = AdaptiveKL(section.kappa, section.kl_target) if section.kl_target else None
    return Learner(
        cfg, section, seed, policy, optimizer, accelerator, reward, encode, scales, controller
    )


def start_or_resume(
    it: Learner,
    method: str,
    posts: list,
    val_posts: list,
    marks: dict[str, str],
    log: run.History,
    watch,
) -> tuple[int, list]:
    """(times resumed, replies to `val_posts` before training): from the last whole checkpoint in `it.scratch`, where
    there is one of the same `marks`; else from a first validation, whose row opens the history."""
    state = load_state(it.scratch, it.policy, it.optimizer, marks)
    if state:
        it.first, resumes, before = state["step"], state["resumes"] + 1, state["before"]
        people, log.rows = state["people"], state["history"]
        for name, scale in it.scales.items():
            vars(scale).update(state["scales"][name])
        if it.controller:
            it.controller.coef = state["kappa"]
        if watch and before:
            watch(
                [post.text for post in val_posts], before, rewards_of(it.reward, val_posts, before)
            )
        print(f"{method} s{it.seed}: resumed at step {it.first} of {it.section.steps}")
    else:
        resumes = 0
        row, before = it.validate(val_posts, watch)
        log.append({"step": 0, **row})
        people = human_rewards(it.reward, posts).tolist() if uses_ranks(it.section) else []
    it.people = torch.tensor(people) if uses_ranks(it.section) else None
    return resumes, before


def checkpoint(
    it: Learner, step: int, marks: dict[str, str], log: run.History, resumes: int, before: list
) -> None:
    """Write what `start_or_resume` reads, all of it in one file: weights, optimizer, random numbers, scales, the KL
    controller, and what the files of record will say of the steps so far."""
    save_state(
        it.scratch,
        it.policy,
        it.optimizer,
        {
            "step": step,
            "resumes": resumes,
            "marks": marks,
            "kappa": it.controller.coef if it.controller else None,
            "scales": {name: vars(scale) for name, scale in it.scales.items()},
            "history": log.rows,
            "before": before,
            "people": [] if it.people is None else it.people.tolist(),
        },
    )


def check_finite(it: Learner, batch: list, step: int, loss: float, norm: float) -> None:
    """UserError before a loss or gradient that is not finite reaches the weights; its batch is kept in a file."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        posts = [{"post": post.text, "human": list(post.gold)} for post in batch]
        sampled = it.scored.rollouts.texts if it.scored else []
        folder = it.scratch or Path("scratch")
        refuse_step(folder, step + 1, loss, norm, {"posts": posts, "sampled": sampled})


def refuse_step(folder: Path, step: int, loss: float, norm: float, batch: dict) -> None:
    """Keep the batch of a step in a file of `folder` and end the run with one line, a UserError."""
    file = folder / f"not_finite_step{step}.json"
    run.write_json(file, {"step": step, "loss": str(loss), "grad_norm": str(norm), **batch})
    raise run.UserError(
        f"step {step}: loss {loss}, gradient {norm}, and no weight was saved after it; its batch is in {file}; lower "
        "lr or max_grad_norm and run again"
    )


def marks_of(cfg, section, posts: list, parents: list[Path], reward=None) -> dict[str, str]:
    """What a resumed run must share with the one that was killed, by name: settings, posts, the weights it starts from,
    the reward it trains on (by what that says of a few human replies), code, libraries, machine, processes, threads."""
    device, dtype, _ = run.device_dtype(cfg.model)
    few = [(post.text, post.gold[0]) for post in posts[:8]] if reward is not None else []
    said = reward(*map(list, zip(*few, strict=True))) if few else []
    room = Path(__file__).resolve().parent
    rooms = (room, room.parent / "models", room.parent / "rivals")
    code = [p for folder in rooms for p in sorted(folder.glob("*.py"))]
    parts = {
        "settings": [asdict(cfg.model), asdict(cfg.sampling), asdict(section)],
        "posts": [(post.text, post.gold) for post in posts],
        "parents": [models.adapter_digest(parent) for parent in parents],
        "reward": [round(float(x), 3) for x in said],
        "code": [(path.name, sha256(path.read_bytes()).hexdigest()) for path in code],
        "libraries": [importlib.metadata.version(name) for name in run.PACKAGES],
        "machine": [str(dtype), *hardware(str(device))],
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "threads": torch.get_num_threads(),
    }
    return {
        name: sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


def fingerprint(*run_of) -> str:
    """`marks_of` in one word."""
    return sha256(json.dumps(marks_of(*run_of), sort_keys=True).encode()).hexdigest()


def weights_as_written(cfg, section, scales: dict, history: pd.DataFrame) -> dict:
    """literal_lambda, diversity_scale, reward_scale for metrics.json: what the dimensionless weights amount to; a
    reason instead of a number where no single number exists."""
    found, scale = {}, scales["diversity"].scale
    if section.beta:
        reason = "scale_advantages group: another scale at every step"
        by_group = section.scale_advantages == "group"
        found["reward_scale"] = (
            {"value": None, "reason": reason} if by_group else scales["reward"].scale
        )
    if section.lam and section.loss_normalizer == "grpo":
        reason = "loss_normalizer grpo: 1/|y| differs from reply to reply"
        found |= {"diversity_scale": scale, "literal_lambda": {"value": None, "reason": reason}}
    elif section.lam:
        tokens = cfg.sampling.max_new_tokens
        if section.loss_normalizer == "dapo":  # divided by the tokens there were
            tokens = float(history["length"].mean())
        literal = obj.literal_lambda(
            section.lam, scale, section.samples_per_prompt, tokens, section.loss_normalizer
        )
        found |= {"diversity_scale": scale, "literal_lambda": literal}
    return found


def finish(
    cfg,
    method: str,
    seed: int,
    policy: Policy,
    log: run.History,
    paths: run.Paths,
    parents: list[Path],
    val_posts: list,
    samples: tuple[list, list],
    *,
    numbers: dict,
    record: dict,
) -> pd.DataFrame:
    """Write the adapter and the files of record of a trained run, drop its scratch folder, return the history.

    samples: replies to `val_posts` before and after training; `numbers` are the method's own for metrics.json, `record`
    is what env.json says besides the settings."""
    out = paths.results(method, seed)
    chain = [
        {"folder": os.path.relpath(parent, paths.root), "sha256": models.adapter_digest(parent)}
        for parent in parents
    ]
    models.save_adapter(
        paths.models(method, seed),
        {name: policy.masters[name] for name in lora_weights(policy.model)},
        cfg.model,
        {"method": method, "seed": seed, "parents": chain},
    )
    own = paths.models(method, seed)
    models.save_peft(own / "peft", cfg.model, [*parents, own])
    run.atomic_write(out / "history.csv", log.path.read_bytes())
    history = pd.read_csv(out / "history.csv")
    metrics = {
        f"{name}_{when}": float(row[name])
        for name in history.columns
        if name.startswith("val_")
        for when, row in (("before", history.iloc[0]), ("after", history.iloc[-1]))
        if np.isfinite(row[name])
    }
    metrics |= {
        "tokens_per_s": float(history.tokens_per_s.median()),
        "train_seconds": float(history.seconds.sum()),
    }
    run.write_json(out / "metrics.json", metrics | numbers)
    replies = [
        {"post": post.text, "human": list(post.gold), "before": b, "after": a}
        for post, b, a in zip(val_posts, *samples)
    ]
    run.write_json(out / "samples.json", replies)
    run.write_env(out / "env.json", cfg, **record)
    # what a process killed in here leaves is a whole checkpoint or none: either way a rerun gives the same files
    shutil.rmtree(paths.scratch(method, seed))
    return history
