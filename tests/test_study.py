"""Choosing a study: its name, what it remembers, and that no name or path can do more than name something."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ENV, ROOT, shell
from data_rows import jsonl, threads

from polylib import study
from polylib.config import UserError


@pytest.fixture
def project(tmp_path):
    """A folder with presets and the bundled corpus' place, as the working directory."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "polylib" / "data").mkdir(parents=True)
    (tmp_path / study.CORPUS).write_text("{}\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def state(project) -> dict:
    """Every file below the project but presets and data, with its bytes."""
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in project.rglob("*.yaml")
        if "params" not in path.relative_to(project).parts[:1]
    }


@pytest.mark.parametrize(
    "file, name",
    [
        ("2024.01.csv", "smoke-2024_01"),
        ("2024.02.csv", "smoke-2024_02"),
        ("ответы.csv", "smoke-ответы"),
        ("推文.csv", "smoke-推文"),
        ("my tweets.csv.gz", "smoke-my_tweets"),
        ("Tweets.JSONL", "smoke-Tweets"),
        ("a--b__c.parquet", "smoke-a_b_c"),
        ("....csv", "smoke-data"),
        ("x" * 200 + ".csv", "smoke-" + "x" * 60),
    ],
)
def test_a_study_is_named_after_preset_and_file(project, file, name):
    assert study.select("smoke", write(project / file, file), project)["study"] == name


@pytest.mark.parametrize(
    "first, second",
    [("a/tweets.csv", "b/tweets.csv"), ("2024.01.csv", "2024-01.csv"), ("t.csv", "t.jsonl")],
)
def test_another_file_under_a_studys_name_is_refused_with_the_way_out(project, first, second):
    """Before anything is written; the way out works, and the first study is still there to be chosen again."""
    one, two = write(project / first, "one\n"), write(project / second, "two\n")
    mine = study.select("smoke", one, project)
    before = state(project)
    with pytest.raises(
        UserError, match=r"other data \(sha256 .*--name NAME.*delete results/"
    ) as told:
        study.select("smoke", two, project)
    assert str(told.value).isprintable() and state(project) == before
    assert study.select("smoke", two, project, name="second")["study"] == "second"
    assert study.select("smoke", one, project) == mine
    shutil.rmtree(project / "results" / mine["study"])
    assert study.select("smoke", two, project)["data"] == second


def test_a_study_knows_its_file_by_content(project):
    """A moved file is the same data; the same path with other rows is not."""
    path = write(project / "a" / "t.csv", "one\n")
    study.select("smoke", path, project)
    os.rename(path, project / "t.csv")
    assert study.select("smoke", "t.csv", project)["data"] == "t.csv"
    write(project / "t.csv", "two\n")
    with pytest.raises(UserError, match="results/smoke-t is of other data"):
        study.select("smoke", "t.csv", project)


def test_a_study_knows_its_preset(project):
    """Preset laptop-t on the corpus and preset laptop on t.csv would share a name; so would one --name."""
    write(project / "params" / "smoke-t.yaml", "extends: smoke\n")
    study.select("smoke-t", root=project)
    path = write(project / "t.csv", "{}\n")  # the corpus' very bytes
    with pytest.raises(UserError, match=r"other settings \(preset smoke-t, now smoke\)"):
        study.select("smoke", path, project)


def test_a_study_older_than_its_memory_is_known_by_its_manifest(project):
    path = write(project / "t.csv", "one\n")
    manifest = project / "results" / "smoke-t" / "data" / "manifest.json"
    write(manifest, json.dumps({"sha256": {"source": "0" * 64}}))
    with pytest.raises(UserError, match="other data"):
        study.select("smoke", path, project)
    write(manifest, json.dumps({"sha256": {"source": ""}}))  # a hub source has no file's hash
    study.select("smoke", path, project)


def test_no_folder_of_this_machine_is_remembered_with_results(project, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("elsewhere") / "t.csv", "one\n")
    study.select("smoke", path, project)
    memory = yaml.safe_load((project / "results" / "smoke-t" / "study.yaml").read_text())
    assert memory["data"] == "t.csv" and set(memory) == {"study", "preset", "data", "sha256"}


@pytest.mark.parametrize(
    "name", ["$(touch X)", "a b", "2024", "nan", "../x", "a'b", "a\nb", "x" * 101]
)
def test_a_study_is_named_like_a_word(project, name):
    with pytest.raises(UserError, match="rename it"):
        study.select("smoke", root=project, name=name)
    assert not (project / "params.yaml").exists()


@pytest.mark.parametrize(
    "file",
    ["it's.csv", "50%.csv", "tweets (1).csv", "$(touch X).csv", "a`b.csv", 'a"b.csv', "a\nb.csv"],
)
def test_a_file_whose_name_a_shell_would_read_is_refused(project, file):
    with pytest.raises(UserError, match="rename it; usable are") as told:
        study.select("smoke", write(project / file, "one\n"), project)
    assert str(told.value).isprintable() and not (project / "params.yaml").exists()


def test_two_hub_sources_are_two_files(project, monkeypatch):
    monkeypatch.setattr(study.read, "hub_rows", lambda source: [{"from": source}])
    places = {study.select("smoke", f"hub:{s}", project)["data"] for s in ("a/b_c@v", "a_b/c@v")}
    assert len(places) == 2


# ---- a preset is the file that was given


@pytest.mark.parametrize(
    "place", ["elsewhere/laptop.yaml", "elsewhere/new.yaml", "params/preregistration/laptop.yaml"]
)
def test_a_preset_outside_params_is_refused_not_replaced_by_its_namesake(
    project, monkeypatch, place
):
    monkeypatch.chdir(project)
    write(project / place, "extends: smoke\n")
    with pytest.raises(UserError, match="copy the file there, under a name that is still free"):
        study.select(place, root=project)
    assert not (project / "params.yaml").exists()


def test_a_preset_in_params_may_be_given_as_a_path(project, monkeypatch):
    monkeypatch.chdir(project)
    for place in ("params/smoke.yaml", str(project / "params" / "smoke.yaml")):
        assert study.select(place, root=project)["preset"] == "smoke"


# ---- the command line


def test_without_a_preset_the_current_study_is_looked_at_again(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    jsonl(project / "t.jsonl", threads(60))
    assert study.main(["smoke", "--data", "t.jsonl", "--name", "mine"]) == 0
    first = capsys.readouterr().out
    assert (
        study.main([]) == 0 and capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
    )
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("study: mine", "study: $(touch X)"))
    assert study.main([]) == 2 and "rename it" in capsys.readouterr().err
    (project / "params.yaml").unlink()
    assert study.main([]) == 2 and "params.yaml" in capsys.readouterr().err


HOSTILE = [
    "$(touch X)",
    "`touch X`",
    "$(shell touch X)",
    '"; touch X; "',
    "'; touch X; '",
    "a;touch X",
]


@pytest.mark.parametrize(
    "variable", ["PRESET", "DATA", "NAME", "JOBS", "PROCESSES", "RUNNER", "STUDY"]
)
def test_make_hands_what_was_typed_to_the_scripts_and_runs_none_of_it(tmp_path, variable):
    """The scripts are replaced by one that writes down what it got."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for script in ("reproduce.sh", "paper.sh"):
        asked = '"$1"' if script == "paper.sh" else f'"$STUDY_{variable}"'
        write(tmp_path / "tools" / script, f"printf '%s' {asked} >got\n")
    target = "paper" if variable == "STUDY" else "reproduce"
    for value in HOSTILE:
        subprocess.run(
            ["make", "-o", "setup", "-s", target, f"{variable}={value}"],
            cwd=tmp_path,
            env=ENV,
            check=True,
            timeout=30,
        )
        assert (tmp_path / "got").read_text() == value and not (tmp_path / "X").exists()


@pytest.mark.parametrize(
    "key", ["STUDY_PRESET", "STUDY_DATA", "STUDY_NAME", "STUDY_JOBS", "STUDY_PROCESSES"]
)
def test_the_script_hands_on_each_word_whole(tmp_path, key):
    """python is replaced by a script that writes down its words and refuses."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "reproduce.sh", tmp_path / "tools")
    write(tmp_path / "bin" / "python", "#!/bin/sh\nprintf '%s\\0' \"$@\" >got; exit 2\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    for value in HOSTILE:
        given = {"STUDY_PRESET": "smoke", "STUDY_DATA": "a", "STUDY_NAME": "b", key: value}
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "tools/reproduce.sh"],
            cwd=tmp_path,
            env=ENV | given | {"PATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 2 and not (tmp_path / "X").exists()
        if key in ("STUDY_JOBS", "STUDY_PROCESSES"):
            assert done.stderr.startswith(f"error: {key[6:]}=") and not (tmp_path / "got").exists()
            continue
        assert (tmp_path / "got").read_text().split("\0")[1:-1] == [
            "polylib.study",
            f"--data={given['STUDY_DATA']}",
            f"--name={given['STUDY_NAME']}",
            "--",
            given["STUDY_PRESET"],
        ]


# ---- two studies at once


def test_a_run_keeps_its_study_while_another_is_chosen(tmp_path):
    """tools/dvc_study.py reads the params.yaml that is named, dvc itself the shared one; names of any script work."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "polylib" / "data").mkdir(parents=True)
    (tmp_path / study.CORPUS).write_text("{}\n")
    write(tmp_path / "推文.csv", "one\n")
    shell("git", "init", "-q", cwd=tmp_path)
    shell("dvc", "init", "-q", cwd=tmp_path)
    first = study.select("smoke", "推文.csv", tmp_path)["study"]
    study.select("quick", root=tmp_path)
    tool = (sys.executable, ROOT / "tools" / "dvc_study.py", f"scratch/{first}/params.yaml")
    names = shell(*map(str, tool), "stage", "list", "--name-only", cwd=tmp_path).splitlines()
    assert f"grpo@{first}-42" in names and not [n for n in names if "@quick" in n]
    assert "grpo@quick-42" in shell("dvc", "stage", "list", "--name-only", cwd=tmp_path)


def script(tmp_path, ran: str) -> dict:
    """tools/reproduce.sh in a folder where python is replaced, but for the line that takes the lock: `ran` is what the
    shell does for a command of DVC. The environment to run it in."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "reproduce.sh", tmp_path / "tools")
    (tmp_path / "scratch" / "smoke").mkdir(parents=True)
    stub = f"""#!/bin/sh
case $1 in -c) exec {sys.executable} "$@" ;; -m) echo "params.yaml: study smoke, preset smoke" ;; *) {ran} ;; esac
"""
    write(tmp_path / "bin" / "python", stub)
    (tmp_path / "bin" / "python").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return ENV | {"PATH": path, "STUDY_JOBS": "1"}


def start(folder, env):
    return subprocess.run(
        ["sh", "tools/reproduce.sh"], cwd=folder, env=env, capture_output=True, text=True
    )


def test_a_study_that_is_running_is_not_started_again(tmp_path):
    """The lock goes with the process that holds it."""
    env = script(tmp_path, "echo ran")
    with (tmp_path / "scratch" / "smoke" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = start(tmp_path, env)
        assert second.returncode == 2 and "ran" not in second.stdout
        assert second.stderr.startswith("error: study smoke is already running")
        assert second.stderr.count("\n") == 1
    assert start(tmp_path, env).stdout.endswith("ran\n")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_users_fault_is_the_last_thing_that_is_said(tmp_path, jobs):
    """Below DVC's "failed to reproduce" and make's "Error 255", once however many stages say it; of this run alone."""
    fails = (
        'case "$*" in *list*) echo data@smoke; echo sft@smoke-42; exit 0 ;; *settings*) exit 0 ;; esac; '
        'for n in 1 2; do echo "error: my.csv: no column" | tee -a "$POLYLIB_FAULT" >&2; done; '
        'echo "ERROR: failed to reproduce" >&2; exit 255'
    )
    env = script(tmp_path, fails) | {"STUDY_JOBS": jobs}
    for _ in range(2):
        failed = start(tmp_path, env)
        said = failed.stderr.splitlines()
        assert failed.returncode and said[-1] == "error: my.csv: no column" != said[-2]
        assert ("make: ***" in failed.stderr) == (jobs == "2")
    shutil.rmtree(tmp_path / "bin"), shutil.rmtree(tmp_path / "tools")
    os.rename(tmp_path / "scratch", tmp_path / "old")
    env = script(tmp_path, 'echo "ERROR: another" >&2; exit 255') | {"STUDY_JOBS": "1"}
    shutil.copy(tmp_path / "old" / "smoke" / "fault", tmp_path / "scratch" / "smoke")
    assert start(tmp_path, env).stderr.splitlines() == ["ERROR: another"]
