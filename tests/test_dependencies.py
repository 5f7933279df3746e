"""What the package imports it declares, what only tests need it does not, and every declared range holds its pin."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib

import pytest
from conftest import ROOT, imported
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
DEV = {
    canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"]["dev"])
}
DOCS = {
    canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"]["docs"])
}


def pins(name: str) -> dict[str, str]:
    """Package to version, of a file of pins."""
    words = (ROOT / "requirements" / name).read_text(encoding="utf-8").split()
    pairs = (word.split("==") for word in words if "==" in word)
    return {canonicalize_name(package): version for package, version in pairs}


LOCK, DOCS_LOCK = pins("lock.txt"), pins("docs.txt")
UNIMPORTED = {  # runtime dependencies that no module names, and what needs them
    "dvc": "make reproduce",
    "gguf": "transformers reads the default model's weights with it",
    "ipykernel": "notebooks",
    "ipywidgets": "tqdm's bar in a notebook",
    "jupyterlab": "make lab",
    "nbstripout": "stage strip",
    "papermill": "every stage but the first two",
}


def distributions(folder: str) -> set[str]:
    """The packages that the modules of a folder import, the standard library and the project's own left out."""
    owners = importlib.metadata.packages_distributions()
    names = {
        name.split(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imported(path)
    }
    own = {path.stem for f in (folder, "tools") for path in (ROOT / f).rglob("*.py")} | {"polylib"}
    return {
        canonicalize_name(owners[name][0]) for name in names - own - set(sys.stdlib_module_names)
    }


def test_the_package_imports_what_it_declares_and_declares_nothing_else():
    found = distributions("polylib") - {
        "pydantic-core"
    }  # a part of pydantic, always of its version
    assert found == set(RUNTIME) - set(UNIMPORTED), "declare it in pyproject.toml, or drop it"
    assert not UNIMPORTED.keys() - RUNTIME.keys()


def test_nothing_that_only_tests_use_is_installed_for_everyone():
    assert not set(DEV) & set(RUNTIME) and not set(DEV) & distributions("polylib")
    assert {"rouge-score", "pytest", "websocket-client"} <= distributions("tests") & set(DEV)


@pytest.mark.parametrize("name", [*RUNTIME, *DEV])
def test_every_range_holds_the_pinned_version(name):
    assert LOCK[name] in (RUNTIME | DEV)[name].specifier


def test_the_documentation_adds_pins_and_changes_none():
    assert not set(DOCS_LOCK) & set(LOCK)
    assert [name for name, r in DOCS.items() if DOCS_LOCK[name] not in r.specifier] == []
    installs = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-c requirements/lock.txt -r requirements/docs.txt" in installs


def test_pip_and_conda_install_the_same():
    recipe = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert (
        "- -c requirements/lock.txt\n" in recipe and "- -e .[dev]\n" in recipe
    )  # all pins, and the tests' packages
    assert "install -qq -r requirements/lock.txt" in (ROOT / "tools" / "setup.sh").read_text(
        encoding="utf-8"
    )
