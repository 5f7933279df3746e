"""Notebooks: what is committed of them, what they may hold, and that they run with the outputs they show."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, shell, source_of

from polylib import run
from polylib.config import UserError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "NBVAL_CHECK_OUTPUT"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nbval(*paths, cwd, fail=True):
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
        env={"PYTHONPATH": os.fspath(cwd)},  # the copy's polylib, not the installed one
    )


@each
def test_a_checked_cell_keeps_count_and_output_and_no_other_cell_does(path):
    """nbval compares only cells with an execution count: stripped, a checked cell would always pass."""
    checked = [cell for cell in code_cells(path) if CHECKED in cell.source]
    assert checked, f"{path.name} checks nothing"
    for cell in checked:
        assert cell.execution_count is not None and cell.outputs, f"{path.name}: unchecked\n{cell.source}"
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, f"{path.name}: an error is stored as the expected output\n{cell.source}"
    for cell in code_cells(path):
        if cell not in checked:
            assert cell.execution_count is None and not cell.outputs, f"make notebooks-clean\n{cell.source}"


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
    assert max(len(cell.source.splitlines()) for cell in code_cells(path)) <= 15


@each
def test_a_notebook_finds_the_project_before_it_reads_anything(path):
    """One line after the imports, whatever folder Jupyter or papermill started in."""
    first = next(node for node in ast.parse(code_cells(path)[1].source).body
                 if not isinstance(node, (ast.Import, ast.ImportFrom)))
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
    """A notebook with one checked cell that prints 4 and stores what the test says."""

    def write(stored: str, count: int | None = 1):
        cell = nbformat.v4.new_code_cell(f"# {CHECKED}\nprint(2 + 2)", execution_count=count)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "one.ipynb")
        return tmp_path / "one.ipynb"

    return write


def test_a_wrong_stored_output_fails(one_cell, tmp_path):
    assert "1 passed" in nbval(one_cell("4\n"), cwd=tmp_path)
    assert "1 failed" in nbval(one_cell("5\n"), cwd=tmp_path, fail=False)


@pytest.mark.pipeline
def test_a_wrong_stored_output_in_a_real_notebook_fails(desk):
    path = desk / "notebooks" / NOTEBOOKS[0].name
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if c.cell_type == "code" and CHECKED in c.source)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="planted\n")]
    wrong = path.with_name("wrong.ipynb")
    nbformat.write(notebook, wrong)
    try:
        assert "1 failed" in nbval(wrong, cwd=desk, fail=False)
    finally:
        wrong.unlink()


@pytest.mark.pipeline
@each
def test_a_notebook_runs_and_shows_what_it_stores(path, desk):
    """Executed anew with its own defaults, the smoke study, next to that study's files."""
    nbval(desk / "notebooks" / path.name, cwd=desk)
