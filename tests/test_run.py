"""The hall: paths, files of record, history, provenance, progress."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT

from polylib import config, run
from polylib.run import UserError


def test_root_is_the_nearest_folder_with_a_pipeline(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert run.root(tmp_path / "a" / "b") == tmp_path.resolve()
    with pytest.raises(UserError, match="no dvc.yaml"):
        run.root(tmp_path.parent)


def test_paths_are_arithmetic(tmp_path):
    paths = run.Paths("laptop", tmp_path)
    assert paths.models("grpo", 42) == tmp_path / "models/laptop/grpo/s42"
    assert paths.results("data") == tmp_path / "results/laptop/data"
    assert paths.results("grpo", 42) == tmp_path / "results/laptop/grpo/s42"
    assert paths.evaluation("grpo", 42) == tmp_path / "results/laptop/evaluation/grpo/s42"
    assert paths.evaluation("human") == tmp_path / "results/laptop/evaluation/human"
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "sub" / "metrics.json"
    run.write_json(target, {"b": 1, "a": [np.float32(0.5), np.int64(3), np.bool_(True)]})
    assert target.read_text() == '{\n  "a": [\n    0.5,\n    3,\n    true\n  ],\n  "b": 1\n}\n'

    def no_rename(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        run.write_json(target, {"a": 2})
    assert json.loads(target.read_text())["b"] == 1


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), np.float64("nan"), {"value": None}, {"value": None, "reason": ""}]
)
def test_a_number_that_could_not_be_computed_needs_its_reason(tmp_path, bad):
    with pytest.raises(ValueError, match=r"metrics\.json\.deep\[1\]"):
        run.write_json(tmp_path / "metrics.json", {"deep": [1, bad]})
    assert not (tmp_path / "metrics.json").exists()
    run.write_json(tmp_path / "metrics.json", {"deep": {"value": None, "reason": "one seed"}})


def test_history_is_whole_after_every_row_and_continues(tmp_path):
    path = tmp_path / "history.csv"
    history = run.History(path, ["step", "loss", "val_ce"])
    history.append({"step": 1, "loss": 1 / 3})
    history.append({"step": 2, "loss": float("nan"), "val_ce": 3})
    rows = list(csv.DictReader(path.open()))  # read by the standard library, not by us
    assert rows == [{"step": "1", "loss": "0.333333", "val_ce": ""}, {"step": "2", "loss": "", "val_ce": "3"}]
    again = run.History(path, ["step", "loss", "val_ce"])
    again.truncate(1)
    again.append({"step": 2, "loss": 0.25})
    assert [row["loss"] for row in csv.DictReader(path.open())] == ["0.333333", "0.25"]
    with pytest.raises(ValueError, match="los"):
        again.append({"los": 1.0})


def test_commit_agrees_with_git(tmp_path):
    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert run.commit(tmp_path)[0] is None and "git" in run.commit(tmp_path)[2]
    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "params.yaml").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "x")
    assert run.commit(tmp_path)[:2] == (git("rev-parse", "HEAD"), False)
    (tmp_path / "params.yaml").write_text("2\n")  # a run rewrites it: not a change of code
    (tmp_path / "new.txt").touch()
    assert run.commit(tmp_path)[1] is False
    (tmp_path / "code.py").write_text("2\n")
    assert run.commit(tmp_path)[1] is True


def test_env_names_what_is_needed_to_repeat_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("POLYLIB_USD_PER_HOUR", "0.90")
    cfg = config.load("smoke", ROOT)
    run.write_env(tmp_path / "env.json", cfg, wall_seconds=1800, resumes=2)
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["cost_usd"] == 0.45 and env["wall_seconds"] == 1800 and env["resumes"] == 2
    assert env["versions"]["torch"] == torch.__version__ and env["peak_memory_mb"] > 50
    assert env["dtype"] == "float32" and env["dtype_reason"]
    monkeypatch.delenv("POLYLIB_USD_PER_HOUR")
    run.write_env(tmp_path / "env.json", cfg)
    assert json.loads((tmp_path / "env.json").read_text())["cost_usd"]["value"] is None


@pytest.mark.parametrize(
    "flags, dtype",
    [
        ({"avx512_bf16", "fma"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx2", "avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_bfloat16_only_where_the_cpu_has_it(monkeypatch, flags, dtype):
    model = config.load("laptop", ROOT).model.__class__(
        **{**vars(config.load("laptop", ROOT).model), "device": "cpu"}
    )
    monkeypatch.setattr(run, "cpu_flags", lambda: flags)
    device, found, reason = run.device_dtype(model)
    assert (device.type, found) == ("cpu", dtype) and str(dtype).removeprefix("torch.") in reason


def test_seeds_reach_all_three_generators():
    draws = []
    for seed in (1, 1, 2):
        run.seed_everything(seed)
        draws.append((random.random(), np.random.random(), float(torch.rand(()))))
    assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[1], draws[2], strict=True))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, breaks", [(io.StringIO(), 4), (Terminal(), 1)])
def test_progress_writes_lines_to_a_log_and_rewrites_one_on_a_terminal(monkeypatch, stream, breaks):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(run.sys, "stdout", stream)
    assert list(run.progress("abcd", 4, "steps", every=5.0)) == list("abcd")
    text = stream.getvalue()
    assert text.count("\n") == breaks and "steps 1/4, 7 s each, 0:21 left" in text and "4/4 done in" in text
