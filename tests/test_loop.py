"""The loop as a whole: what is off costs and changes nothing, a killed run continues, slices add up."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from conftest import ENV
from safetensors.torch import load_file
from tiny import CFG, POSTS, length_reward, letters, talkative, weighted, weights

from polylib import models, run
from polylib.models import sampling
from polylib.training import anatomy, loop, policy, rollouts, scoring, step

SECTION, HYBRID = (
    dataclasses.replace(section, eval_every=3, eval_samples=2)
    for section in (tiny.SECTION, tiny.HYBRID)
)


@pytest.fixture(autouse=True)
def talkative_models(monkeypatch):
    """Every model of these tests ends its replies now and then."""
    plain = models.load_model
    monkeypatch.setattr(
        models,
        "load_model",
        lambda cfg, parents=(), seed=0: talkative(plain(cfg, parents, seed), 2),
    )


def train(folder, section, reward=length_reward, encode=letters, seed=3):
    paths = run.Paths("t", folder)
    folder.mkdir(exist_ok=True)
    history = loop.train(
        CFG, section, "m", seed, POSTS, POSTS[:2], paths=paths, encode=encode, reward=reward
    )
    return history, load_file(paths.models("m", seed) / "adapter.safetensors"), paths


@pytest.fixture(autouse=True)
def in_project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_is_written_and_finite(tmp_path):
    history, adapter, paths = train(tmp_path, HYBRID)
    assert list(history.step) == [0, 1, 2, 3]
    steps = history[history.step > 0]
    for column in ("loss", "ce", "reward", "diversity", "kl", "grad_norm", "tokens_per_s"):
        assert np.isfinite(steps[column]).all(), column
    assert any((tensor != 0).any() for name, tensor in adapter.items() if name.endswith("lora_B"))
    metrics = json.loads((paths.results("m", 3) / "metrics.json").read_text())
    assert metrics["literal_lambda"] > 0 and metrics["resumes"] == 0
    samples = json.loads((paths.results("m", 3) / "samples.json").read_text())
    assert len(samples) == 2 and len(samples[0]["before"]) == len(samples[0]["after"]) == 2
    assert not paths.scratch("m", 3).exists()


def test_kl_is_zero_at_the_start_and_grows(tmp_path):
    history, _, _ = train(tmp_path, HYBRID)
    assert abs(history.val_kl.iloc[0]) < 1e-6 and abs(history.kl.iloc[1]) < 1e-6
    assert history.val_kl.iloc[-1] > 1e-4


def test_lambda_zero_and_the_detached_term_are_bit_equal_to_sft(tmp_path):
    sft = train(tmp_path / "a", SECTION)[1]
    zero = train(tmp_path / "b", dataclasses.replace(SECTION, lam=0.0))[1]
    detached = train(
        tmp_path / "c", dataclasses.replace(SECTION, lam=3.0, diversity_gradient="detached")
    )[1]
    jackknife = train(tmp_path / "d", dataclasses.replace(SECTION, lam=3.0))[1]
    assert equal(sft, zero) and equal(sft, detached)
    assert not equal(sft, jackknife), "the diversity term must move the weights"


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, ahead):
    section = dataclasses.replace(
        HYBRID, steps=5, save_every=2, rollout_every=ahead, warmup_steps=4
    )
    whole, expected, _ = train(tmp_path / "whole", section)
    calls = []

    def dies_once(posts, replies):
        calls.append(1)
        if len(calls) == (6 if ahead == 1 else 4):  # the first call is the fingerprint's
            raise KeyboardInterrupt
        return length_reward(posts, replies)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", section, reward=dies_once)
    resumed, adapter, paths = train(tmp_path / "killed", section, reward=length_reward)
    assert json.loads((paths.results("m", 3) / "metrics.json").read_text())["resumes"] == 1
    assert equal(adapter, expected)
    columns = [c for c in whole.columns if c not in ("seconds", "tokens_per_s")]
    assert whole[columns].equals(resumed[columns])


def test_a_state_of_other_settings_is_not_resumed(tmp_path, capsys):
    calls = []

    def dies(posts, replies):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return length_reward(posts, replies)

    section = dataclasses.replace(HYBRID, steps=5, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, section, reward=dies)
    history, _, paths = train(tmp_path, dataclasses.replace(section, lam=2.0))
    assert "other settings" in capsys.readouterr().out
    assert list(history.step) == [0, 1, 2, 3, 4, 5]
    assert json.loads((paths.results("m", 3) / "metrics.json").read_text())["resumes"] == 0


def train_two_steps():
    section = dataclasses.replace(HYBRID, steps=2, prompts_per_step=4, eval_every=1)
    rank, asked = os.environ.get("RANK", "0"), []

    def watch(posts, replies, rewards):
        asked.append([posts, replies, rewards.tolist()])
        return {"val_judge": float(rank)}

    history = loop.train(
        CFG,
        section,
        "m",
        3,
        POSTS,
        POSTS[:3],
        paths=run.Paths("t", Path.cwd()),
        reward=length_reward,
        encode=letters,
        watch=watch,
    )
    assert Path("results/t/m/s3/samples.json").is_file(), "later cells read it, on every rank"
    history.to_csv(f"history-{rank}.csv", index=False)
    Path(f"watched-{rank}.json").write_text(json.dumps(asked))


def test_two_processes_equal_one(tmp_path, monkeypatch):
    """The same batches on one process and on two (gloo), which run a notebook as `make reproduce PROCESSES=2` does: the
    same samples, history and adapter up to rounding. Three held-out posts are shared by two, every rank ends with what
    the first wrote, and the first judges for both."""
    folders = {world: tmp_path / str(world) for world in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "dvc.yaml").touch()
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import test_loop\ntest_loop.train_two_steps()")]
    )
    nbformat.write(notebook, folders[2] / "05_grpo.ipynb")
    repo = Path(__file__).parents[1]
    words = "-k python3 -l python --no-progress-bar 05_grpo.ipynb out.ipynb".split()
    two = subprocess.Popen(
        [sys.executable, str(repo / "tools" / "run_notebook.py"), *words],
        cwd=folders[2],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.STDOUT,
        env=ENV
        | {
            "STUDY_PROCESSES": "2",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{repo}{os.pathsep}{Path(__file__).parent}",
        },
    )
    monkeypatch.undo()  # the plain model, as over there
    monkeypatch.chdir(folders[1])
    train_two_steps()  # meanwhile, on one process
    output = two.communicate(timeout=500)[0]
    assert two.returncode == 0, output
    assert (folders[2] / "out.ipynb").is_file()
    one, both = (
        load_file(run.Paths("t", at).models("m", 3) / "adapter.safetensors")
        for at in folders.values()
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, both[name], atol=1e-5, rtol=1e-3)
    alone, *ranks = (
        pd.read_csv(path).drop(columns=["seconds", "tokens_per_s", *anatomy.COLUMNS])
        for path in (folders[1] / "history-0.csv", *sorted(folders[2].glob("history-*.csv")))
    )
    for history in ranks:
        pd.testing.assert_frame_equal(alone, history, rtol=1e-3, atol=1e-5)
    said = [path.read_text() for folder in folders.values() for path in folder.glob("watched-*")]
    assert len(said) == 3 and len(set(said)) == 1, "all see the whole validation"


@pytest.mark.parametrize(
    ("processes", "validated", "message"),
    [(3, 9, "prompts_per_step 2 cannot be shared"), (2, 1, "1 held-out posts are fewer")],
)
def test_what_cannot_be_shared_is_refused(processes, validated, message):
    with pytest.raises(run.UserError, match=message):
        loop.check_processes(SECTION, "m", processes, validated)


def test_a_launcher_that_starts_one_process_of_two_says_so(monkeypatch, tmp_path, capsys):
    """What accelerate's own launcher sets for `accelerate launch --cpu --num_processes 2`."""
    args = launch_command_parser().parse_args(["--cpu", "--num_processes=2", "train.py"])
    args.num_machines, args.mixed_precision = 1, "no"
    args.num_cpu_threads_per_process, args.dynamo_backend = 1, "no"
    given = prepare_simple_launcher_cmd_env(args)[1]
    for asked in ({}, {key: given[key] for key in given if key.startswith("MASTER")}):
        for key, value in asked.items():
            monkeypatch.setenv(key, value)
        loop.check_processes(SECTION, "m", 1, 9)
        assert ("one process trains" in capsys.readouterr().out) == bool(asked)


def gradients(section, micro, seed=5):
    torch.manual_seed(0)
    actor = policy.Policy(CFG.model, [], 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, master in actor.masters.items():
            if name.endswith("lora_B"):
                master.copy_(torch.randn(master.shape, generator=generator) * 0.05)
    actor.sync_weights()
    sampled = sampling.sample(
        actor.sampler, actor.tokenizer, [p.text for p in POSTS], 4, CFG.sampling, seed
    )
    scales = {"reward": loop.RunningScale(), "diversity": loop.RunningScale()}
    scored = scoring.score(section, POSTS, sampled, length_reward, letters, scales)
    section = dataclasses.replace(section, micro_prompts=micro)
    totals = step.backward(actor, CFG, section, POSTS, scored, [0, 0], **weights(section))
    return totals, {name: p.grad.clone() for name, p in actor.params.items()}


@pytest.mark.parametrize("normalizer", ["dr_grpo", "grpo", "dapo", "sequence"])
def test_slices_of_a_batch_add_up_to_the_batch(normalizer):
    section = dataclasses.replace(HYBRID, loss_normalizer=normalizer)
    (whole, a), (sliced, b) = gradients(section, 0), gradients(section, 1)
    assert whole["loss"] == pytest.approx(sliced["loss"], abs=1e-5)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def test_later_steps_of_one_rollout_use_the_ratio(tmp_path):
    section = dataclasses.replace(
        HYBRID, steps=2, rollout_every=2, lr=0.1, clip_low=1e-4, clip_high=1e-4
    )
    history, _, _ = train(tmp_path, section)
    assert history.clip_fraction.iloc[1] == 0, "on policy: the ratio is 1"
    assert history.clip_fraction.iloc[2] > 0, "one step later the policy has moved"


def test_invalid_replies_earn_no_diversity():
    one_word = sampling.Rollouts(
        [[1]] * 1,
        torch.zeros(1, 3, 2, dtype=torch.long),
        torch.ones(1, 3, 2, dtype=torch.bool),
        torch.zeros(1, 3, 2),
        torch.zeros(1, 3, dtype=torch.bool),
        [["zzz", "a good reply", "b fine answer"]],
    )
    scales = {"reward": loop.RunningScale(), "diversity": loop.RunningScale()}
    section = dataclasses.replace(SECTION, lam=1.0, beta=0.0)
    scored = scoring.score(section, POSTS[:1], one_word, None, letters, scales)
    assert scored.valid.tolist() == [[False, True, True]]
    assert weighted(section, scored)[0, 0] < 0


def test_the_reward_sees_each_reply_with_its_own_post():
    texts = [[f"{post.id} {i}" for i in range(2)] for post in POSTS]
    flat = sampling.Rollouts(
        [[1]] * 4,
        torch.zeros(4, 2, 2, dtype=torch.long),
        torch.ones(4, 2, 2, dtype=torch.bool),
        torch.zeros(4, 2, 2),
        torch.zeros(4, 2, dtype=torch.bool),
        texts,
    )
    own = {post.text: post.id for post in POSTS}

    def owner(posts, replies):
        return np.array(
            [
                float(reply.split()[0] == own[post]) + int(reply[-1])
                for post, reply in zip(posts, replies)
            ]
        )

    scales = {"reward": loop.RunningScale(), "diversity": loop.RunningScale()}
    scored = scoring.score(
        dataclasses.replace(SECTION, beta=1.0, lam=0.0), POSTS, flat, owner, None, scales
    )
    assert scored.rewards.tolist() == [[1.0, 2.0]] * 4


def test_posts_of_an_epoch_are_all_seen_once():
    seen = [p.id for step in range(2) for p in rollouts.batch_of(POSTS, step, 2, seed=9)]
    assert sorted(seen) == sorted(p.id for p in POSTS)
    assert [p.id for p in rollouts.batch_of(POSTS, 1, 2, 9)] == seen[2:]


def test_a_weight_without_its_callable_raises(tmp_path):
    with pytest.raises(run.UserError, match="no reward"):
        train(tmp_path, HYBRID, reward=None)
    with pytest.raises(run.UserError, match="no encoder"):
        train(tmp_path, HYBRID, encode=None)


def test_a_rewarded_habit_is_learned(tmp_path):
    """End to end: reward short replies, and replies become shorter."""
    section = dataclasses.replace(
        SECTION,
        alpha=0.0,
        beta=1.0,
        steps=25,
        prompts_per_step=4,
        samples_per_prompt=8,
        lr=2e-2,
        eval_every=25,
        eval_samples=16,
    )
    history, _, _ = train(
        tmp_path, section, reward=lambda posts, replies: -length_reward(posts, replies)
    )
    assert history.val_length.iloc[-1] < 0.8 * history.val_length.iloc[0]
