"""Do the tests catch what they claim to catch? Put known faults into the code, one at a time, and see red.

    python tests/mutants.py [words]   only those of a group (a key of SUITES, or rows) or name: `row 15`

Ends with "caught N of N"; the exit status is 1 if one was missed. A run over all of them writes the table of faults
into tests/README.md. One worker a core, each with a scratch copy of `polylib`; the checkout is never edited. A fault
runs in forks of a process that has already imported the slow libraries, test file by test file, the likeliest for the
faulty room first, and stops at the first test that fails; it counts if the same test is green without the fault. One
fault a row of the checklist (tests/faults_rows.py) must turn red that row's own test. Not collected by pytest: minutes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import checklist_table
import pytest
import torch
from faults import FAULTS as PURE
from faults_data import FAULTS as DATA
from faults_engine import FAULTS as ENGINE
from faults_evaluation import FAULTS as EVALUATION
from faults_rewards import FAULTS as REWARDS
from faults_rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1200  # a fault may also make a test run for ever
SLOW = (
    "two_processes",
    "row_26",
    "killed_run",
    "habit_is_learned",
    "other_settings",
)  # after their file's other tests
SUITES = {
    "data": [
        "data_files",
        "data_read",
        "data_clean",
        "data_prepare",
        "adapters",
        "profile",
        "signed_scores",
        "study",
    ],
    "pure": [
        "objective",
        "kl",
        "advantages",
        "normalizers",
        "diversity",
        "schedules",
        "anatomy",
        "toy",
        "trl_parity",
    ],
    "engine": [
        "sampling",
        "truncated_sampling",
        "logprobs",
        "models",
        "rivals",
        "ppo",
        "fault_kinds",
        "loop_menu",
        "loop",
        "pretend_device",
        "families",
        "templates",
    ],
    "rewards": [
        "metrics",
        "stats",
        "score",
        "rewards_learned",
        "rewards_validate",
        "rewards_judge",
        "rewards_ties",
        "rewards_heuristic",
        "rewards_features",
        "attacks",
        "hacking",
        "overoptimisation",
        "rewards_coherence",
        "hacking_figures",
        "rewards_context",
        "rewards_llm",
        "rewards_llm_load",
    ],
    "evaluation": [
        "novelty",
        "score",
        "likelihood",
        "exact",
        "stats",
        "significance",
        "error_rates",
        "winrate",
        "rewards_llm",
        "figures",
        "ablation",
        "report",
    ],
}
FIRST = {  # room -> the test files to try before the others of its suite
    "data/files": ["data_files"],
    "data/read": ["data_read", "data_files"],
    "data/clean": ["data_clean"],
    "data/prepare": ["data_prepare", "profile"],
    "data/hub": ["data_read"],
    "data/adapters": ["adapters"],
    "data/pairs": ["signed_scores"],
    "data/profile": ["profile"],
    "study": ["study", "profile"],
    "config": ["study"],
    "training/objective": ["normalizers", "objective", "kl"],
    "training/advantages": ["advantages", "kl"],
    "training/diversity": ["diversity"],
    "training/schedules": ["schedules"],
    "training/anatomy": ["anatomy"],
    "training/toy": ["toy"],
    "models/packing": ["logprobs", "truncated_sampling"],
    "training/policy": ["loop"],
    "training/loop": ["loop"],
    "training/step": ["loop", "loop_menu"],
    "training/rollouts": ["loop", "loop_menu"],
    "training/scoring": ["loop_menu", "loop"],
    "rivals/dpo": ["rivals"],
    "rivals/ppo": ["ppo"],
    "models/attention": ["logprobs", "sampling", "families"],
    "models/check": ["families"],
    "models/truncation": ["truncated_sampling"],
    "models/sampling": ["sampling", "templates", "families", "fault_kinds"],
    "models/__init__": ["models", "families", "templates", "fault_kinds", "logprobs"],
    "stats": ["stats", "exact"],
    "evaluation/score": ["score"],
    "rewards/calibration": ["rewards_ties", "rewards_judge", "rewards_validate"],
    "rewards/conditional": ["rewards_learned", "rewards_validate"],
    "rewards/heuristic": ["rewards_heuristic"],
    "rewards/__init__": ["rewards_heuristic"],
    "rewards/judge": ["rewards_ties", "rewards_judge"],
    "rewards/learned": ["rewards_learned"],
    "reward_checks/validate": ["rewards_ties", "rewards_validate"],
    "models/likelihood": ["rewards_coherence"],
    "rewards/llm": ["rewards_llm"],
    "rewards/llm_client": ["rewards_llm"],
    "reward_checks/attacks": ["attacks"],
    "hacking/__init__": ["hacking"],
    "hacking/features": ["hacking"],
    "hacking/preflight": ["overoptimisation"],
    "analysis/hacked": ["overoptimisation"],
    "figures/hacking_figures": ["hacking_figures"],
    "evaluation/overlap": ["novelty"],
    "evaluation/human_baseline": ["score"],
    "evaluation/token_kl": ["likelihood"],
    "evaluation/likelihood": ["likelihood"],
    "analysis/equivalence": ["exact"],
    "analysis/variance": ["exact"],
    "analysis/effects": ["error_rates", "significance"],
    "analysis/preregistration": ["significance"],
    "analysis/significance": ["significance"],
    "analysis/decision": ["significance"],
    "figures/report": ["report"],
    "figures/failure_table": ["report"],
    "figures/tradeoffs": ["figures"],
    "figures/tables": ["figures"],
    "figures/costs": ["figures", "report"],
    "experiments/ablation": ["ablation"],
    "analysis/winrate": ["winrate"],
    "reward_checks/verdicts": ["winrate"],
    "analysis/replies": ["winrate", "report"],
    "reward_checks/agreement": ["winrate"],
    "analysis/judging": ["winrate"],
    "rewards/llm_controls": ["winrate", "rewards_llm"],
}
FAULTS = (
    [
        ("rows", f"row {number:02d}: {name}", room, old, new)
        for number, _, _, name, room, old, new in ROWS
    ]
    + [("pure", name, f"training/{room}", old, new) for name, room, old, new in PURE]
    + [("data", *fault) for fault in DATA]
    + [("engine", *fault) for fault in ENGINE]
    + [("rewards", *fault) for fault in REWARDS]
    + [("evaluation", *fault) for fault in EVALUATION]
)
IMPORTS = {
    "": [
        "pandas",
        "scipy.stats",
        "nbformat",
        "safetensors.torch",
    ],  # before the first fork, by kind of fault
    "rows": [
        "accelerate",
        "peft",
        "transformers.models.llama.modeling_llama",
        "trl.trainer.dpo_trainer",
    ],
    "pure": ["transformers.loss.loss_utils", "trl.trainer.grpo_trainer"],
    "engine": [
        "accelerate",
        "peft",
        "transformers.models.llama.modeling_llama",
        "trl.trainer.dpo_trainer",
    ],
    "data": ["datasets", "sklearn.feature_extraction.text", "pyarrow.parquet", "emoji"],
    "rewards": ["sklearn.svm", "sklearn.linear_model", "rouge_score.rouge_scorer", "sacrebleu"],
    "evaluation": [
        "sklearn.linear_model",
        "sacrebleu",
        "matplotlib.pyplot",
        "statsmodels.api",
        "peft",
    ],
}


class SlowLast:
    """A pytest plugin: within a file the cheap tests come first."""

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: any(word in item.name for word in SLOW))


def files(kind: str, name: str, room: str) -> list[tuple[str, ...]]:
    """Arguments of pytest, one tuple a fork, in the order to try."""
    if kind == "rows":
        return [("tests/test_checklist.py", "-k", f"test_row_{name[4:6]}_")]
    suite = [s for s in SUITES[kind] if (ROOT / f"tests/test_{s}.py").is_file()]
    first = [s for s in FIRST.get(room, []) if s in suite]
    return [(f"tests/test_{s}.py",) for s in first + [s for s in suite if s not in first]]


def first_failure(scratch: Path, arguments: tuple[str, ...]) -> str:
    """Run these tests in a fork, the scratch copy first on its path; name of the first failing test or ''."""
    log = scratch / "log.txt"
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a test may start processes of its own
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.alarm(LIMIT_S)
        status = pytest.main(
            ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments], plugins=[SlowLast()]
        )
        sys.stdout.flush()
        os._exit(int(status))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return ""
    try:
        os.killpg(child, signal.SIGKILL)  # what a failed test left running
    except ProcessLookupError:
        pass
    if status == -signal.SIGALRM:
        return f"time limit of {LIMIT_S} s in {arguments[0]}"
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", log.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(
            f"{' '.join(arguments)} ended with status {status} and no failed test:\n{log.read_text()}"
        )
    return found[1]


def copied(scratch: Path) -> None:
    """What the tests read in `scratch`, and imports of this process's children go there."""
    for name in ("Makefile", "dvc.yaml"):
        shutil.copy(ROOT / name, scratch)
    for folder in ("tests", "polylib", "params", "tools", "docs"):
        shutil.copytree(
            ROOT / folder, scratch / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    os.chdir(scratch)
    (scratch / "pytest.ini").write_text("[pytest]\npythonpath = . tests\nmarkers =\n    pipeline\n")
    checkout = (ROOT, ROOT / "tests")
    sys.path = [str(scratch)] + [p for p in sys.path if Path(p or ".").resolve() not in checkout]


def tried(scratch: Path, fault: tuple, green: set) -> str:
    """The first test that turns red with this fault, and is green without it; '' if none does."""
    kind, name, room, text, replacement = fault
    path = scratch / f"polylib/{room}.py"
    source = path.read_text()
    if text not in source:
        raise SystemExit(f"fault {name!r}: its text has left {room}.py; update tests/faults*.py")
    for arguments in files(kind, name, room):
        path.write_text(source.replace(text, replacement))
        test = first_failure(scratch, arguments)
        path.write_text(source)
        if test:
            alone = (f"tests/{test}",) if "::" in test else arguments
            if alone not in green and (broken := first_failure(scratch, alone)):
                raise SystemExit(f"red without any fault: {broken}")
            green.add(alone)
            return test
    return ""


def work(todo, done, faults: list[tuple]) -> None:
    """One of several workers, each with a scratch copy of its own: takes numbers of faults until there are no more."""
    green: set = set()
    with tempfile.TemporaryDirectory(prefix="polylib-mutants-") as folder:
        scratch = Path(folder)
        copied(scratch)
        while (i := todo.get()) is not None:
            started = time.monotonic()
            try:
                done.put((i, tried(scratch, faults[i], green), time.monotonic() - started))
            except SystemExit as error:
                done.put((i, error, 0.0))
        os.chdir(ROOT)


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    faults = [f for f in FAULTS if all(w == f[0] if w in IMPORTS else w in f[1] for w in words)]
    for module in IMPORTS[""] + sorted(
        {m for kind in {f[0] for f in faults} for m in IMPORTS[kind]}
    ):
        importlib.import_module(module)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half a second a fork
    context, number = multiprocessing.get_context("fork"), min(os.cpu_count() or 1, len(faults))
    todo, done = context.SimpleQueue(), context.SimpleQueue()
    workers = [context.Process(target=work, args=(todo, done, faults)) for _ in range(number)]
    for worker in workers:
        worker.start()
    for i in [*range(len(faults)), *[None] * number]:
        todo.put(i)
    tests: dict[int, str] = {}
    while len(tests) < len(faults):
        i, test, seconds = done.get()
        if isinstance(test, SystemExit):
            for worker in workers:
                worker.terminate()
            raise test
        tests[i] = test
        print(
            f"{len(tests)}/{len(faults)} {'caught' if test else 'MISSED'} | {faults[i][1]} | {test or '-'} | "
            f"{seconds:.0f} s",
            flush=True,
        )
    for worker in workers:
        worker.join()
    caught = sum(map(bool, tests.values()))
    if not words:
        checklist_table.write(
            "faults", checklist_table.faults([(f[1], f[2], tests[i]) for i, f in enumerate(faults)])
        )
    print(f"caught {caught} of {len(faults)}")
    return int(caught < len(faults) or not faults)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
