"""The hall: paths, files of record, history, provenance, progress."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import random
import subprocess

import jupyter_client
import nbformat
import numpy as np
import papermill
import pytest
import torch
from conftest import ROOT
from tqdm import std

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
    with pytest.raises(UserError, match="metrics.json: cannot be written .disk full.; make room"):
        run.write_json(target, {"a": 2})
    assert json.loads(target.read_text())["b"] == 1
    assert [file.name for file in target.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), np.float64("nan"), {"value": None}, {"value": None, "reason": ""}],
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
    assert rows == [
        {"step": "1", "loss": "0.333333", "val_ce": ""},
        {"step": "2", "loss": "", "val_ce": "3"},
    ]
    again = run.History(path, ["step", "loss", "val_ce"])
    assert again.rows == [], "a damaged file could be continued: a checkpoint holds the rows"
    again.rows = history.rows[:1]
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


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so."""
    now = [1000.0]
    monkeypatch.setattr(std, "time", lambda: now[0])
    return now


def worked(clock, stream, monkeypatch, steps=12, seconds=4.0):
    monkeypatch.setattr(run.sys, "stdout", stream)
    for step in run.progress(range(steps), steps, "grpo s42"):
        clock[0] += seconds
        if step == 5:
            run.say("a word in between")
    return stream.getvalue()


def test_progress_in_a_log_is_a_plain_line_every_ten_seconds_with_what_is_left(monkeypatch, clock):
    text = worked(clock, io.StringIO(), monkeypatch)
    assert not set("\r\x1b█|") & set(text)
    lines = text.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        *(f"grpo s42 {n}/12" for n in (0, 3)),
        "a word in between",
        *(f"grpo s42 {n}/12" for n in (6, 9, 12)),
        "grpo s42 12/12",
    ]
    assert lines[1] == "grpo s42 3/12,  4.00s/it, 00:12 gone, 00:36 left"


def test_progress_on_a_terminal_is_one_bar_that_makes_room_for_words(monkeypatch, clock):
    text = worked(clock, Terminal(), monkeypatch)
    assert text.count("\n") == 2 and text.count("\r") > 12 and "\ra word in between\n" in text
    assert "grpo s42:  25%" in text and "3/12 [00:12<00:36,  4.00s/it]" in text


def test_a_loop_that_is_left_early_closes_its_bar(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr(run.sys, "stdout", stream)
    for step in run.progress(range(9), 9, "left"):
        clock[0] += 1
        if step == 1:
            break
    del step
    gc.collect()
    assert stream.getvalue().endswith("\n") and not std.tqdm._instances


CELLS = """
import sys, time
sys.path.insert(0, {root!r})
from polylib import run
for _ in run.progress(range(3), 3, "sft s42"):
    time.sleep(0.01)
"""


def test_a_notebook_gets_a_widget_only_where_somebody_looks(tmp_path, monkeypatch):
    """A real kernel: what papermill keeps has plain lines and no widget state; the same cell for a reader has a bar."""
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    cell = CELLS.format(root=str(ROOT))
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "in.ipynb"
    )
    kept = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False
    )
    assert "widgets" not in kept.metadata and {
        out.output_type for out in kept.cells[-1].outputs
    } == {"stream"}
    assert "sft s42 3/3" in "".join(out.text for out in kept.cells[-1].outputs)
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3")
    try:
        seen = []
        client.execute_interactive(cell, allow_stdin=True, output_hook=seen.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert any(
        "application/vnd.jupyter.widget-view+json" in message["content"].get("data", {})
        for message in seen
    )


HOSTILE = "\x1b[31mred\x1b[0m \x9b2J \x07 \x08\x08 \r over \u202e \u2066 \u2028 \x00"


def test_no_text_reaches_a_terminal_raw(capsys):
    """Escape sequences, bells, overwriting and turned writing are spelled out; line ends, tabs and emoji stay."""
    run.say(f"post: {HOSTILE}")
    said = capsys.readouterr().out
    assert "\\x1b[31mred\\x1b[0m \\x9b2J \\x07" in said and "\\u202e" in said
    error = UserError(f"{HOSTILE}: no such file")
    for text in (said, str(error), *error._render_traceback_(), repr(error)):
        assert not set(HOSTILE) & set(text) - set(map(chr, range(32, 127))), text
    run.say("née 👩‍👩‍👧\t日本語\nשלום")
    assert capsys.readouterr().out == "née 👩‍👩‍👧\t日本語\nשלום\n"


def test_files_follow_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        run.atomic_write(tmp_path / "a", b"1")
        run.append_line(tmp_path / "b", "1")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for write in (run.atomic_write, run.append_line):
        with pytest.raises(UserError, match="file/a: cannot be written .*; make room"):
            write(tmp_path / "file" / "a", "1")


def test_where_the_system_does_not_tell_memory_the_record_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "resource", None)  # as on Windows
    run.write_env(tmp_path / "env.json", config.load("smoke", ROOT))
    memory = json.loads((tmp_path / "env.json").read_text())["peak_memory_mb"]
    assert memory == {"value": None, "reason": "this system does not tell"}


@pytest.mark.parametrize("name", ["a.bin", "b.json", run.SUMS])
@pytest.mark.parametrize(
    "damage", [lambda c: c[:-3], lambda c: b"", lambda c: bytes([c[0] ^ 1]) + c[1:]]
)
def test_a_damaged_file_of_a_sealed_folder_is_set_aside_and_named(tmp_path, name, damage, capsys):
    (tmp_path / "a.bin").write_bytes(bytes(range(99)))
    run.write_json(tmp_path / "b.json", {"x": 1})
    run.check(tmp_path, "no checksums, no word")
    run.seal(tmp_path)
    run.check(tmp_path, "all is well")
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UserError, match=f"{name} was damaged and is set aside; fit again"):
        run.check(tmp_path, "fit again")
    assert capsys.readouterr().out.count("\n") == 1
    assert (tmp_path / f"{name}.damaged").is_file() and not (tmp_path / name).exists()
    if name != run.SUMS:
        with pytest.raises(UserError, match=f"{name} is missing; fit again"):
            run.check(tmp_path, "fit again")
