"""Many machines: a GPU a job, a runner before a stage, a study that travels. Stand-ins for nvidia-smi, DVC, papermill
and the runner write down what they get."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import ENV, ROOT, shell
from dvc.repo import Repo

from polylib import config, run

TOOLS = ROOT / "tools"
DVC = """
import json, os, sys, time
def main(words):
    if "list" in words:
        print("settings@s", "data@s", "reward_model@s", *(f"sft@s-{n}" for n in range(7)), sep="\\n")
    elif "--single-item" in words:
        began = time.time()
        time.sleep(0.4)
        seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "STUDY_RUNNER")}
        with open("ran", "a") as stream:
            stream.write(json.dumps([words[-1], began, time.time(), seen]) + "\\n")
"""
PYTHON = f"""#!/bin/sh
case "$1 $2" in "-m polylib.study") echo "params.yaml: study s, preset s" ;; *) exec {sys.executable} "$@" ;; esac
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def reproduce(tmp_path, gpus: int, **given) -> tuple[subprocess.CompletedProcess, list]:
    """tools/reproduce.sh on a machine with so many GPUs, and (stage, began, ended, environment) of all it started."""
    program(tmp_path / "bin" / "python", PYTHON)
    lines = "".join(f"echo {n}; " for n in range(gpus))
    program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\n{lines or 'exit 9'}\n")
    program(tmp_path / "dvc" / "__init__.py", "")
    program(tmp_path / "dvc" / "parsing.py", 'DEFAULT_PARAMS_FILE = "params.yaml"\n')
    program(tmp_path / "dvc" / "cli.py", DVC)
    (tmp_path / "tools").mkdir()
    for name in ("reproduce.sh", "dvc_study.py"):
        shutil.copy(TOOLS / name, tmp_path / "tools")
    (tmp_path / "scratch" / "s").mkdir(parents=True)
    env = {key: value for key, value in ENV.items() if key != "OMP_NUM_THREADS"} | given
    env |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{ENV['PATH']}", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["sh", "tools/reproduce.sh"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    ran = tmp_path / "ran"
    return done, [json.loads(line) for line in ran.open()] if ran.exists() else []


@pytest.mark.parametrize(
    ("gpus", "given", "groups"),
    [
        (4, {}, {"0": 1, "1": 1, "2": 1, "3": 1}),
        (5, {"STUDY_PROCESSES": "2"}, {"0,1": 1, "2,3": 1}),
        (2, {"STUDY_JOBS": "4"}, {"0": 2, "1": 2}),
        (4, {"CUDA_VISIBLE_DEVICES": "3,1"}, {"3": 1, "1": 1}),
    ],
    ids=["a job a GPU", "two processes a job", "more jobs than GPUs", "some GPUs are allowed"],
)
def test_every_job_has_gpus_of_its_own(tmp_path, gpus, given, groups):
    """All of them work at a time, and none for more jobs than were asked for."""
    done, ran = reproduce(tmp_path, gpus, **given)
    assert done.returncode == 0, done.stderr
    assert len(ran) == 9 and {seen["CUDA_VISIBLE_DEVICES"] for *_, seen in ran} == set(groups)
    most = Counter()
    for _, moment, *_ in ran:
        busy = Counter(s["CUDA_VISIBLE_DEVICES"] for _, a, b, s in ran if a <= moment < b)
        most |= busy
    assert most == groups


def test_too_few_gpus_for_one_training_are_one_line(tmp_path):
    done, ran = reproduce(tmp_path, 2, STUDY_PROCESSES="4")
    assert done.returncode == 2 and not ran
    assert done.stderr == "error: PROCESSES=4: there are fewer GPUs\n"


def test_with_a_runner_the_cluster_shares_out_gpus_and_cores(tmp_path):
    done, ran = reproduce(tmp_path, 2, STUDY_RUNNER="srun --gpus 1")
    assert done.returncode == 0, done.stderr
    alike = {
        "CUDA_VISIBLE_DEVICES": None,
        "OMP_NUM_THREADS": None,
        "STUDY_RUNNER": "srun --gpus 1",
    }
    assert len(ran) == 9 and all(seen == alike for *_, seen in ran)
    assert max(sum(a <= moment < b for _, a, b, _ in ran) for _, moment, *_ in ran) > 2


PAPERMILL = """
import json, os, sys
def papermill():
    with open(f"got-{os.environ.get('RANK', 'alone')}", "w") as stream:
        json.dump([sys.argv[1:], sorted(set(os.environ) & {"STUDY_RUNNER", "WORLD_SIZE", "LOCAL_RANK"})], stream)
    sys.exit(0)
"""
WORDS = ["-k", "python3", "notebooks/05_grpo.ipynb", "out/05_grpo-s42.ipynb", "-p", "seed", "42"]


def notebook(tmp_path, words: list[str], **given) -> dict:
    """{rank: (words, environment) that papermill is started with} by tools/run_notebook.py."""
    program(tmp_path / "papermill" / "__init__.py", "")
    program(tmp_path / "papermill" / "cli.py", PAPERMILL)
    program(
        tmp_path / "papermill" / "exceptions.py", "class PapermillExecutionError(Exception): pass"
    )
    shell(
        sys.executable,
        str(TOOLS / "run_notebook.py"),
        *words,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"} | given,
        fail=False,
    )
    return {file.name[4:]: json.loads(file.read_text()) for file in tmp_path.glob("got-*")}


def test_a_runner_gets_its_words_and_then_the_stage(tmp_path):
    """The runner's own words stay whole, and what it starts is the same command without a runner."""
    program(tmp_path / "runner", '#!/bin/sh\nprintf "%s\\n" "$@" >asked\nshift 2\nexec "$@"\n')
    runner = f"'{tmp_path / 'runner'}' '--comment=two words' --gpus=1"
    got = notebook(tmp_path, WORDS, STUDY_RUNNER=runner)
    assert got == {"alone": [WORDS, []]}
    first, second, *rest = (tmp_path / "asked").read_text().splitlines()
    assert [first, second] == ["--comment=two words", "--gpus=1"] and rest[2:] == WORDS


@pytest.mark.parametrize("runner", ["nowhere --gpus=1", "srun 'open", "$(touch X)"])
def test_a_runner_that_cannot_be_started_is_one_line(tmp_path, monkeypatch, runner):
    monkeypatch.syspath_prepend(TOOLS)
    import run_notebook

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDY_RUNNER", runner)
    with pytest.raises(SystemExit, match="^error: RUNNER=") as refused:
        run_notebook.launch()
    assert "\n" not in str(refused.value) and not (tmp_path / "X").exists()


def test_a_stage_that_trains_runs_in_as_many_processes_and_writes_once(tmp_path):
    """All read the same notebook; only the first writes where DVC looks. Other stages have one process."""
    got = notebook(tmp_path, WORDS, STUDY_PROCESSES="2")
    assert set(got) == {"0", "1"} and got["0"][0] == WORDS
    assert got["1"][0] == [*WORDS[:3], "scratch/ranks/05_grpo-s42-1.ipynb", *WORDS[4:]]
    assert all({"WORLD_SIZE", "LOCAL_RANK"} <= set(seen) for _, seen in got.values())
    other = [word.replace("05_grpo", "07_evaluation") for word in WORDS]
    (tmp_path / "second").mkdir()
    assert notebook(tmp_path / "second", other, STUDY_PROCESSES="2") == {"alone": [other, []]}


@pytest.mark.parametrize(
    ("asked", "rank", "found"),
    [
        ("auto", None, "cuda:0"),
        ("auto", "3", "cuda:3"),
        ("cuda", "1", "cuda:1"),
        ("cuda:2", "1", "cuda:2"),
        ("cpu", "1", "cpu"),
    ],
)
def test_a_process_loads_on_its_own_gpu(monkeypatch, asked, rank, found):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    model = config.load("smoke", ROOT).model
    model = type(model)(**vars(model) | {"device": asked, "dtype": "float32"})
    assert str(run.device_dtype(model)[0]) == found


def test_a_finished_study_travels_through_a_folder(tmp_path, monkeypatch):
    """Made-up outputs of every stage, pushed to a folder and pulled into a clone: all are there, all up to date, so
    that nothing of a study is in neither git nor DVC's cache."""
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("polylib", "params", "notebooks"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, here)
    trained = {
        name: [] for name in ("sft", "lambda0", "polychromic", "grpo", "hybrid", "dpo", "ppo")
    }
    chosen = {"study": "s", "preset": "smoke", "data": "polylib/data/corpus.jsonl", "seeds": [1]}
    chosen |= {"methods": ["sft"], "trained": trained | {"sft": [1]}, "ablation": [1]}
    (here / "params.yaml").write_text(yaml.safe_dump(chosen))
    shell("git", "init", "-q", cwd=here)
    shell("dvc", "init", "-q", cwd=here)
    shell("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=here)
    monkeypatch.chdir(here)
    with Repo() as repo:
        outs = {out.fs_path for stage in repo.index.stages for out in stage.outs}
        for out in map(Path, sorted(outs)):
            file = out if out.suffix else out / "inside.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(out))
        settings = yaml.safe_dump(config.resolved("smoke", here))
        (here / "results" / "s" / "settings.yaml").write_text(settings)
        repo.commit(force=True)
    shell("git", "add", "-A", cwd=here)
    shell("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "study", cwd=here)
    shell("dvc", "push", "-q", cwd=here)
    shell("git", "clone", "-q", str(here), str(there), cwd=tmp_path)
    files = {file.relative_to(here) for out in outs for file in inside(Path(out))}
    assert not (there / "models").exists() and len(files) > 30
    shell("dvc", "pull", "-q", cwd=there)
    assert all((there / file).read_bytes() == (here / file).read_bytes() for file in files)
    assert "up to date" in shell("dvc", "status", cwd=there)


def inside(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
