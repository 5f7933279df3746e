"""Shared by the tests: the project's folder, its import graph, a copy in which the smoke study has run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "JUPYTER_PREFER_ENV_PATH": "1",
}


def shell(*command: str, cwd: Path, fail: bool = True, env: dict[str, str] | None = None) -> str:
    """stdout and stderr of a command; its tail is in the assertion if it fails and `fail` is set."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=ENV | (env or {}),
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if fail:
        said = done.stdout
        first = "\n".join(
            [line for line in said.splitlines() if "rror" in line][:20]
        )  # of jobs side by side
        assert done.returncode == 0, (
            f"{' '.join(command)} -> {done.returncode}\n{first}\n...\n{said[-6000:]}"
        )
    return done.stdout


def source_of(path: Path) -> str:
    """Python of a module or of a notebook's code cells (magics have no imports and are dropped)."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    lines = "\n".join(cell.source for cell in cells if cell.cell_type == "code").splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def imported(path: Path) -> set[str]:
    """Dotted names a file imports anywhere: `from polylib import run` gives polylib and polylib.run."""
    names = set()
    for node in ast.walk(ast.parse(source_of(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_files(names: set[str]) -> set[Path]:
    """Files of the polylib modules among dotted names, with the packages above them where those hold code."""
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "polylib":
            continue
        for depth in range(1, len(parts) + 1):
            stem = ROOT.joinpath(*parts[:depth])
            files |= {
                f
                for f in (stem.with_suffix(".py"), stem / "__init__.py")
                if f.is_file() and _has_code(f)
            }
    return files


def _has_code(path: Path) -> bool:
    """More than a docstring and __future__ imports."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        for node in body
    )


def needs(path: Path, without: tuple[str, ...] = ()) -> set[str]:
    """Project paths of every polylib module that running `path` can import, directly or through another; what lies in
    the packages `without` (figures, say) is left out, with what only they import."""

    def inside(files):
        return {f for f in files if f.relative_to(ROOT).parts[1] not in without}

    seen: set[Path] = set()
    todo = inside(module_files(imported(path)))
    while todo:
        seen |= todo
        todo = inside(set().union(*(module_files(imported(f)) for f in todo))) - seen
    return {f.relative_to(ROOT).as_posix() for f in seen}


def pytest_collection_modifyitems(items):
    """The smoke study starts first: it takes longest."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which runs the tests side by side
def pytest_xdist_make_scheduler(config, log):
    """A file stays on one worker, and the two files that need the smoke study stay together: it runs once."""
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "smoke" if Path(file).name in ("test_notebooks.py", "test_pipeline.py") else file

    return Rooms(config, log)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A git repository with this working tree's tracked and new files: what a clone would hold."""
    copy = tmp_path_factory.mktemp("checkout") / "project"
    listed = shell("git", "ls-files", "-coz", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():  # a deletion not yet committed is listed too
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shell("git", "init", "-q", cwd=copy)
    shell("git", "add", "-A", cwd=copy)
    shell(
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "commit",
        "-qm",
        "checkout",
        cwd=copy,
    )
    return copy


@pytest.fixture(scope="session")
def smoke(checkout) -> Path:
    """The checkout after `make reproduce PRESET=smoke JOBS=1`, less the set-up (minutes). One stage at a time: the
    other tests have the other core, and a process of DVC for each stage costs more than the stages gain."""
    shell(sys.executable, "-m", "polylib.study", "smoke", cwd=checkout)
    shell("sh", "tools/reproduce.sh", cwd=checkout, env={"STUDY_JOBS": "1"})
    return checkout
