"""dvc.yaml against the notebooks and modules it names, and the smoke study really run in a copy."""

from __future__ import annotations

import ast
import json
import re
import shutil

import nbformat
import pytest
import yaml
from conftest import ROOT, needs, shell
from dvc.repo import Repo
from papermill.exceptions import PapermillExecutionError

from polylib import config, study

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {
    name: stage for name, stage in PIPELINE["stages"].items() if name not in ("settings", "strip")
}
NOTEBOOKS = [
    dep.removeprefix("notebooks/").removesuffix(".ipynb")
    for dep in PIPELINE["stages"]["strip"]["deps"]
]
INJECTED = {
    name: re.findall(r"-p (\w+)", stage["cmd"].partition("${pm}")[2])
    for name, stage in STAGES.items()
}


def notebook_of(stage: dict) -> str:
    return re.search(r"\.build/\$\{study\}/(\w+)\.ipynb", stage["cmd"])[1]


def paths_of(stage: dict, *kinds: str) -> set[str]:
    """Dependency or output paths of a stage, without their options."""
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def test_every_notebook_is_stripped_and_run():
    assert NOTEBOOKS == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert {notebook_of(stage) for stage in STAGES.values()} == set(NOTEBOOKS)
    assert PIPELINE["stages"]["strip"]["outs"] == [
        f".build/${{study}}/{name}.ipynb" for name in NOTEBOOKS
    ]


DRAWS = ("figures", "names.py")  # what only draws or labels


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_folders_its_notebook_computes_with(name):
    """Every module lies in a folder that is listed, and every folder that is listed holds a module that is used."""
    listed = {path for path in paths_of(STAGES[name], "deps") if path.startswith("polylib")}
    if listed == {"polylib"}:
        assert name in ("paper_figures", "diagnostics")
        return
    used = needs(ROOT / "notebooks" / f"{notebook_of(STAGES[name])}.ipynb", without=DRAWS)
    rooms = {"/".join(path.split("/")[:2]) for path in used}
    assert rooms == listed


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_stripped_notebook_and_on_nothing_that_holds_timings(name):
    deps = paths_of(STAGES[name], "deps")
    assert f".build/${{study}}/{notebook_of(STAGES[name])}.ipynb" in deps
    assert not [path for path in deps if "notebooks/" in path or path.endswith("env.json")]


@pytest.mark.parametrize("name", PIPELINE["stages"])
def test_every_path_a_stage_writes_carries_the_study(name):
    outs = paths_of(PIPELINE["stages"][name], "outs", "metrics", "plots")
    assert outs and all("${study}" in path for path in outs)
    assert PIPELINE["stages"][name]["matrix"]["study"] == [
        "${study}"
    ]  # the stage's own name carries it too


def section_reads(notebook: str) -> set[str]:
    """Sections of `cfg` a notebook names: cfg.grpo, cfg.model, ... ."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    found = re.findall(
        r"\bcfg\.(\w+)", "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    )
    return set(found) & set(vars(config.load("smoke", ROOT)))


@pytest.mark.parametrize("name", STAGES)
def test_the_sections_a_notebook_reads_are_its_parameters(name):
    listed = {"seeds", "methods"} & set(
        filter(lambda p: isinstance(p, str), STAGES[name]["params"])
    )
    for entry in STAGES[name]["params"]:
        keys = entry["results/${study}/settings.yaml"] if isinstance(entry, dict) else []
        listed |= {
            key.partition(".")[0] for key in keys
        }  # a section, or one setting of it: grpo.reward
    assert section_reads(notebook_of(STAGES[name])) <= listed


def parameters(notebook: str) -> tuple[dict[str, ast.AnnAssign], list[str]]:
    """Assignments of the cell tagged `parameters`, which is the first code cell, and the sources after it."""
    cells = [
        c
        for c in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
        if c.cell_type == "code"
    ]
    assert "parameters" in cells[0].metadata.get("tags", []), (
        f"{notebook}: first code cell is not the parameters"
    )
    assigned = {}
    for node in ast.parse(cells[0].source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        assigned[target.id] = node
    return assigned, [c.source for c in cells[1:]]


@pytest.mark.parametrize("name", STAGES)
def test_every_injected_parameter_reaches_its_notebook(name):
    """Papermill only warns about a name the notebook does not have; and a later assignment would undo it."""
    assigned, later = parameters(notebook_of(STAGES[name]))
    body = ast.parse("\n".join(re.sub(r"^\s*[%!].*$", "", source, flags=re.M) for source in later))
    names = [node for node in ast.walk(body) if isinstance(node, ast.Name)]
    for injected in INJECTED[name]:
        assert injected in assigned, f"{name}: -p {injected} is not in the parameters cell"
        assert any(n.id == injected and isinstance(n.ctx, ast.Load) for n in names), (
            f"{injected} is never used"
        )
        assert not any(n.id == injected and isinstance(n.ctx, ast.Store) for n in names), (
            f"{injected} is rebound"
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_sees_every_parameter(notebook):
    """Its parser skips lines it does not understand (a second `=`, `int | None`) without a word."""
    from papermill.inspection import inspect_notebook

    seen = inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
    assert set(seen) == set(parameters(notebook)[0])


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_defaults_are_the_smoke_study(notebook):
    values = {key: ast.literal_eval(node.value) for key, node in parameters(notebook)[0].items()}
    assert values["preset"] == values["study"] == "smoke"
    assert values.get("seed", 42) in config.load("smoke", ROOT).seeds


@pytest.mark.parametrize(
    ("name", "message", "shown"),
    [
        ("UserError", "my.csv: no\n\x1b[31m column", "error: my.csv: no [31m column\n"),
        ("KeyError", "'x'", "the notebook's own\n"),
    ],
)
def test_what_a_failed_cell_leaves_on_the_terminal(
    monkeypatch, tmp_path, capsys, name, message, shown
):
    """One line for what a user can repair, the notebook's traceback for the rest, nothing around either. The one line
    is left for tools/reproduce.sh, too, where that asks for it."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import run_notebook

    def fails():
        raise PapermillExecutionError(2, 3, "cell", name, message, ["the notebook's own"])

    monkeypatch.setattr(run_notebook, "papermill", fails)
    assert run_notebook.main() == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(shown)
    assert name == "KeyError" or captured.err == shown
    monkeypatch.setenv("POLYLIB_FAULT", str(tmp_path / "fault"))
    assert run_notebook.main() == run_notebook.main() == 1
    left = (tmp_path / "fault").read_text() if name == "UserError" else ""
    assert left == 2 * shown * (name == "UserError")
    assert name == "UserError" or not (tmp_path / "fault").exists()


def test_every_stage_runs_its_notebook_through_that():
    (runner,) = [entry["pm"] for entry in PIPELINE["vars"] if "pm" in entry]
    assert runner.startswith("PYTHONPATH=. python tools/run_notebook.py ")
    assert all(
        "${pm}" in stage["cmd"] and "papermill" not in stage["cmd"] for stage in STAGES.values()
    )


# ---- the real thing: minutes


@pytest.mark.pipeline
def test_under_dvc_too_a_users_fault_is_one_line(checkout):
    """A file that was good when the study was chosen and is not when DVC runs it."""
    before = (checkout / "params.yaml").read_text()
    rows = checkout / "turned bad.csv"
    rows.write_text("tweet_id,tweet\n1,hello\n")
    try:
        study.select("smoke", str(rows), checkout)
        said = shell("dvc", "repro", "data@smoke-turned_bad", cwd=checkout, fail=False)
    finally:
        (checkout / "params.yaml").write_text(before)
        rows.unlink()
        shutil.rmtree(checkout / "results" / "smoke-turned_bad")
    assert said.count("no column reply_id, reply, reply_likes; rename it") == 1
    assert re.search(r"^error: turned bad\.csv: no column", said, re.M)
    assert "Traceback" not in said and "site-packages" not in said and "Exception" not in said


@pytest.mark.pipeline
def test_the_smoke_study_runs_and_writes_only_where_it_may(smoke):
    changed = shell("git", "status", "--porcelain", "-uall", cwd=smoke).splitlines()
    names = {line[3:] for line in changed}
    assert {name for name in names if not name.startswith("results/smoke/")} <= {
        "params.yaml",
        "dvc.lock",
    }
    for expected in (
        "summary.json",
        "grpo/s42/history.csv",
        "evaluation/human/metrics.json",
        "data/manifest.json",
    ):
        assert f"results/smoke/{expected}" in names
    for name in names:
        if name.endswith(".json"):
            json.loads((smoke / name).read_text(), parse_constant=pytest.fail)


@pytest.mark.pipeline
def test_a_second_run_does_nothing(smoke):
    assert "Running stage" not in shell("dvc", "repro", cwd=smoke)
    assert stale(smoke) == set()


def stale(folder) -> set[str]:
    """Stages that `dvc status` names, asked in this process: a command spends seconds on its own imports."""
    with Repo(str(folder)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}  # without the path of dvc.yaml


@pytest.mark.pipeline
def test_one_changed_setting_touches_only_what_hangs_on_it(smoke):
    preset = smoke / "params" / "smoke.yaml"
    before = preset.read_text()
    try:
        preset.write_text(before + "\ngrpo:\n  lr: 1.0e-4\n")
        assert stale(smoke) == {"settings@smoke"}
        shell("dvc", "repro", "settings@smoke", cwd=smoke)
        assert stale(smoke) == {"grpo@smoke-42"}
    finally:
        preset.write_text(before)
        shell("dvc", "repro", "settings@smoke", cwd=smoke)
    assert stale(smoke) == set()


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "file, expected",
    [
        ("figures/style.py", {"paper_figures@smoke", "diagnostics@smoke"}),
        (
            "training/loop.py",
            {
                f"{name}@smoke-42"
                for name in (
                    "sft",
                    "lambda0",
                    "polychromic",
                    "grpo",
                    "hybrid",
                    "dpo",
                    "ppo",
                    "ablation",
                )
            }
            | {"paper_figures@smoke", "diagnostics@smoke"},
        ),
    ],
)
def test_one_changed_module_touches_only_the_stages_that_compute_with_its_folder(
    smoke, file, expected
):
    """A colour retrains no model; the loop retrains every one (and what follows runs if their results differ)."""
    module = smoke / "polylib" / file
    before = module.read_text()
    try:
        module.write_text(before + "\n# changed\n")
        assert stale(smoke) == expected
    finally:
        module.write_text(before)
    assert stale(smoke) == set()


@pytest.mark.pipeline
def test_saving_a_notebook_with_outputs_runs_nothing_but_strip(smoke):
    path = smoke / "notebooks" / "05_grpo.ipynb"
    before = path.read_text()
    try:
        notebook = nbformat.read(path, as_version=4)
        cell = next(c for c in notebook.cells if c.cell_type == "code")
        cell.execution_count, cell.outputs = 9, [nbformat.v4.new_output("stream", text="saved\n")]
        cell.metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}
        cell.id, notebook.metadata["kernelspec"] = (
            "another-id",
            {"name": "conda-env-x-py", "display_name": "x"},
        )
        nbformat.write(notebook, path)
        assert stale(smoke) == {"strip@smoke"}
        assert re.findall(r"Running stage '(.+)'", shell("dvc", "repro", cwd=smoke)) == [
            "strip@smoke"
        ]
    finally:
        path.write_text(before)
        shell("dvc", "repro", cwd=smoke)
