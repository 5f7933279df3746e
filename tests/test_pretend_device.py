"""An accelerator that does not exist, in a process of its own: once torch has such a device, it has it everywhere."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import shell

import polylib


def test_the_numbers_there_are_those_of_the_processor():
    """The cases of pretend_device_cases.py, on the package at hand."""
    here = Path(__file__).parent
    said = shell(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        str(here / "pretend_device_cases.py"),
        cwd=here,
        env={"PYTHONPATH": str(Path(polylib.__file__).parents[1])},
        fail=False,
    )
    assert " passed" in said.splitlines()[-1] and "failed" not in said, said[-3000:]
