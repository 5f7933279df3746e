"""An accelerator that does not exist: the same numbers as on the processor, no float64, few waits for a number."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from pretend_device import DEVICE, pretending
from safetensors.torch import load_file
from tiny import CFG, HYBRID, POSTS, length_reward, letters, project_of_talkative_models, tokenizer

from polylib import models, run
from polylib.models import sampling
from polylib.training import loop, scoring

STEP = dataclasses.replace(HYBRID, steps=2, eval_every=2, eval_samples=2, save_every=1)
MENU = {
    "kept tokens, two updates": (
        {"top_p": 0.9, "top_k": 12},
        {"updates_per_rollout": 2, "entropy": 0.01, "scale_advantages": "group"},
    ),
    "sets, tokens of the batch": (
        {},
        {"diversity_gradient": "set_level", "loss_normalizer": "dapo", "advantage_clip": 1.0},
    ),
    "ranks, later batches, k3+": (
        {},
        {"diversity_gradient": "darling", "rollout_every": 2, "kl_estimator": "k3+"}
        | {"kl_level": "token", "mask_truncated": True, "micro_prompts": 1, "anatomy_every": 2},
    ),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    project_of_talkative_models(tmp_path, monkeypatch)


@pytest.fixture
def pretend(monkeypatch):
    """Switch where models go."""

    def switch(on: bool):
        device = DEVICE if on else torch.device("cpu")
        for module in (run, models):
            monkeypatch.setattr(
                module, "device_dtype", lambda cfg: (device, torch.float32, "a test's")
            )
        monkeypatch.setattr(loop, "hardware", lambda device: [device])
        return pretending() if on else nullcontext()

    return switch


def test_it_refuses_what_an_accelerator_refuses():
    with pretending() as counts:
        x = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises((TypeError, RuntimeError)):
            x.numpy()
        before = counts["read"]
        assert x.sum().item() == 3 and x.tolist() == [1, 1, 1] and len(x[x > 0]) == 3
        assert counts["read"] == before + 3


def test_sampling_waits_twice_a_token(pretend):
    """Once to see who has ended, once for the guard against impossible tokens; once more where rows are dropped."""
    drawn = {}
    for on in (False, True):
        with pretend(on) as counts:
            model = models.load_model(CFG.model)
            before = counts["read"] if on else 0
            found = sampling.sample(
                model, tokenizer(), [post.text for post in POSTS], 3, CFG.sampling, 1
            )
            tokens = int(found.lengths.max())
            drawn[on] = found.texts, found.lengths.tolist()
            waited = counts["read"] - before if on else 0
    assert drawn[True] == drawn[False]
    rows = len(POSTS) * 3
    assert tokens < waited < 3 * tokens + 2 * rows + 4


@pytest.mark.parametrize("name", MENU)
def test_a_step_there_is_the_step_on_the_processor(pretend, name):
    """One rollout and all updates on it: the history's numbers, and the weights."""
    sampled, section = MENU[name]
    cfg = dataclasses.replace(CFG, sampling=dataclasses.replace(CFG.sampling, **sampled))
    section = dataclasses.replace(STEP, **section)
    found = []
    for on in (False, True):
        with pretend(on):
            it = loop.learner(cfg, section, 3, [], length_reward, letters)
            it.people = torch.linspace(10, 60, 9) if scoring.uses_ranks(section) else None
            rows = [loop.take_step(it, POSTS, step) for step in range(2)]
            masters = {key: master.detach().cpu() for key, master in it.policy.masters.items()}
        table = pd.DataFrame(rows).drop(columns=["seconds", "tokens_per_s"])
        found.append((table, masters))
    (rows, masters), (its_rows, its_masters) = found
    pd.testing.assert_frame_equal(rows, its_rows, rtol=1e-3, atol=1e-4)
    for key, master in masters.items():
        torch.testing.assert_close(its_masters[key], master, atol=1e-5, rtol=1e-3)


def test_a_run_there_is_the_run_on_the_processor(pretend, tmp_path):
    """From a merged parent, with a death and a resumption: adapter, history and samples."""
    found = []
    for on in (False, True):
        with pretend(on):
            found.append(trained(tmp_path / str(on)))
    (adapter, history, said), (its_adapter, its_history, its_said) = found
    assert said == its_said
    for key, weight in adapter.items():
        torch.testing.assert_close(its_adapter[key], weight, atol=1e-5, rtol=1e-3)
    pd.testing.assert_frame_equal(history, its_history, rtol=1e-3, atol=1e-4)


def trained(folder):
    """(adapter, history less times, samples) of a run that died in its second step and went on."""
    paths = run.Paths("t", folder)
    start = loop.learner(CFG, STEP, 5).policy
    g = torch.Generator().manual_seed(0)
    parent = paths.models("sft", 3)
    moved = {name: 0.02 * torch.randn(p.shape, generator=g) for name, p in start.masters.items()}
    models.save_adapter(parent, moved, CFG.model, {"method": "sft", "seed": 3, "parents": []})
    calls = []

    def dies(posts, replies):
        calls.append(1)
        if (
            len(calls) == 4
        ):  # the mark of the run, the first validation and the first step came before
            raise KeyboardInterrupt
        return length_reward(posts, replies)

    def train(reward):
        return loop.train(
            CFG,
            STEP,
            "m",
            3,
            POSTS,
            POSTS[:2],
            paths=paths,
            reward=reward,
            encode=letters,
            parents=[parent],
        )

    with pytest.raises(KeyboardInterrupt):
        train(dies)
    history = train(length_reward)
    said = json.loads((paths.results("m", 3) / "metrics.json").read_text())
    assert said["resumes"] == 1
    adapter = load_file(paths.models("m", 3) / "adapter.safetensors")
    samples = (paths.results("m", 3) / "samples.json").read_text()
    return adapter, history.drop(columns=["seconds", "tokens_per_s"]), samples
