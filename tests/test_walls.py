"""The house's walls, read from the source: who may import whom, who may write, who may start processes."""

from __future__ import annotations

import ast
import sys

import pytest
from conftest import ROOT, imported, source_of

MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted((ROOT / "polylib").rglob("*.py"))
}
GROUND = {
    "settings",
    "config",
    "run",
    "names",
    "stats",
    "metrics",
}  # single modules that every room may use
MAY = {  # room: the rooms it may import besides the ground and itself; no arrow goes back
    "models": set(),
    "data": set(),
    "rewards": {"models"},
    "hacking": {"rewards"},
    "training": {"models"},
    "rivals": {"models", "training"},
    "reward_checks": {"rewards", "hacking"},
    "evaluation": {"models", "data", "rewards", "hacking"},
    "experiments": {"models", "training", "hacking"},
    "analysis": {"rewards", "reward_checks", "hacking", "evaluation"},
    "figures": {"training", "hacking", "evaluation", "experiments", "analysis"},
    "study": {"data"},
}
PURE = {  # module: what it may import besides mathematics and the other pure modules
    "polylib.models.truncation": {"torch"},
    "polylib.models.packing": {"torch"},
    "polylib.training.objective": {"torch"},
    "polylib.training.diversity": {"torch"},
    "polylib.training.advantages": {"torch"},
    "polylib.training.schedules": {"torch"},
    "polylib.training.anatomy": {"torch"},
    "polylib.training.toy": {"torch"},
    "polylib.metrics": {"numpy", "scipy"},
    "polylib.stats": {"numpy", "scipy"},
}
MATHEMATICS = {
    "__future__",
    "math",
    "itertools",
    "functools",
    "dataclasses",
    "typing",
    "collections",
}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def calls(path):
    return [node for node in ast.walk(ast.parse(source_of(path))) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def room(name: str) -> str:
    return (name.split(".") + [""])[1]


@pytest.mark.parametrize("module", MODULES)
def test_no_room_imports_one_that_it_may_not(module):
    """Together with MAY, which has no circle, this is: no circle and no arrow back."""
    mine = room(module)
    allowed = GROUND | {mine} | MAY.get(mine, set()) if mine not in GROUND else GROUND
    for name in imported(MODULES[module]):
        if inside(name, "polylib") and name != "polylib":
            assert room(name) in allowed, f"{module} imports {name}"


def test_the_rooms_stand_in_an_order():
    standing: set[str] = set()
    while left := MAY.keys() - standing:
        free = {name for name in left if MAY[name] <= standing}
        assert free, f"a circle among {sorted(left)}"
        standing |= free


def test_only_figures_draw():
    for module, path in MODULES.items():
        draws = {name for name in imported(path) if name.split(".")[0] in ("matplotlib", "seaborn")}
        assert not draws or inside(module, "polylib.figures"), f"{module} imports {sorted(draws)}"


@pytest.mark.parametrize("pure_module", PURE)
def test_pure_modules_import_no_model_file_or_text_library(pure_module):
    for name in imported(MODULES[pure_module]):
        top = name.split(".")[0]
        pure = any(inside(name, other) for other in PURE) or name in (
            "polylib",
            "polylib.models",
            "polylib.training",
        )
        assert top in PURE[pure_module] | MATHEMATICS or pure, f"{pure_module} imports {name}"


def test_only_config_knows_yaml():
    knows = {
        m
        for m, path in MODULES.items()
        if any(inside(n, lib) for n in imported(path) for lib in ("yaml", "ruamel"))
    }
    assert knows == {"polylib.config"}


def test_nothing_starts_processes():
    """Threads may wait for answers of a server; a process would load torch again."""
    banned = (
        "subprocess",
        "multiprocessing",
        "torch.multiprocessing",
        "concurrent.futures.ProcessPoolExecutor",
        "concurrent.futures.process",
        "pty",
    )
    for module, path in MODULES.items():
        assert not {n for n in imported(path) if any(inside(n, b) for b in banned)}, module
        assert not [c for c in calls(path) if name_of(c) in ("system", "popen", "fork", "spawn")], (
            module
        )


def test_nothing_unpickles_or_runs_downloaded_code():
    for module, path in MODULES.items():
        assert not {
            n
            for n in imported(path)
            if n.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib")
        }, module
        for call in calls(path):
            given = {k.arg: k.value for k in call.keywords}
            assert "trust_remote_code" not in given, module
            if (
                name_of(call) == "load"
                and isinstance(call.func, ast.Attribute)
                and getattr(call.func.value, "id", "") == "torch"
            ):
                only = given.get("weights_only")
                assert isinstance(only, ast.Constant) and only.value is True, (
                    f"{module}: torch.load without weights_only=True"
                )
            if name_of(call) == "read_pickle":
                raise AssertionError(module)


def test_only_run_writes_files_of_record():
    """Writers by name. Excused: config (params.yaml), models (weights)."""
    excused = {"polylib.run", "polylib.config", "polylib.models.__init__"}
    for module, path in MODULES.items():
        if module in excused:
            continue
        for call in calls(path):
            name = name_of(call)
            assert name not in ("write_text", "write_bytes", "dump"), (
                f"{module}:{call.lineno} {name}"
            )
            if name == "open":
                mode = next(
                    (
                        a.value
                        for a in [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
                        if isinstance(a, ast.Constant)
                        and isinstance(a.value, str)
                        and len(a.value) <= 3
                    ),
                    "r",
                )
                assert not set(mode) & set("wax+"), f"{module}:{call.lineno} opens for writing"
            if name == "to_csv":  # without a path it returns text
                assert not call.args and "path_or_buf" not in {k.arg for k in call.keywords}, (
                    f"{module}:{call.lineno}"
                )


def test_no_path_of_one_machine_is_written_anywhere():
    for path in [
        *MODULES.values(),
        *(ROOT / "params").rglob("*.yaml"),
        ROOT / "dvc.yaml",
        ROOT / "Makefile",
    ]:
        text = path.read_text(encoding="utf-8")
        for place in ("/home/", "/Users/", "/work/", "/root/", sys.prefix):
            assert place not in text, f"{path.name} names {place}"
