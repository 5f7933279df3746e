"""The benchmarks run: every script on the tiny model, one round. Nothing is asserted about time."""

from __future__ import annotations

import importlib
import math
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "common")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_runs_on_the_tiny_model(name, monkeypatch, capsys):
    if name == "step":
        pytest.importorskip("trl")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module(name)
    try:
        ratios = script.main(["--model", "tiny", "--rounds", "1"])
    finally:
        for module in (name, "common"):  # plain names: leave none behind for other tests
            sys.modules.pop(module, None)
    tables = list(ratios.values()) if isinstance(next(iter(ratios.values())), dict) else [ratios]
    for table in tables:
        assert len(table) >= 2 and 1.0 in table.values()  # the reference against itself
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in table.values())
    assert "CPU x" in capsys.readouterr().out
