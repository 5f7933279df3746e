"""Do the tests of the training rooms catch what they claim to catch? Inject known faults, one at a time.

    python tests/mutants.py [words of a fault's name]      ends with "caught N of N", exit status 1 if one was
    missed

A scratch copy of `polylib` is edited, never the checkout. Each fault runs in a fork of a process that has already
imported torch, and stops at the first test that fails. Faults of the pure rooms run the tests of the mathematics,
faults of the rooms that touch a model those of the engine. Not collected by pytest (minutes, not seconds).
"""
from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers.loss.loss_utils  # noqa: F401  (imported once here, shared by every fork)
import trl.trainer.grpo_trainer  # noqa: F401
from faults import FAULTS as PURE
from faults_engine import FAULTS as ENGINE

ROOT = Path(__file__).resolve().parents[1]
SUITES = {"pure": ["objective", "kl", "advantages", "normalizers", "diversity", "pathwise", "anatomy", "toy",
                  "trl_parity"],
          "engine": ["sampling", "truncated_sampling", "logprobs", "models", "loop"]}
FAULTS = ([("pure", name, f"training/{room}", old, new) for name, room, old, new in PURE]
          + [("engine", *fault) for fault in ENGINE])


def first_failure(scratch: Path, kind: str) -> str:
    """Run the suites in a fork with the scratch copy first on the path; name of the first failing test or
    ''."""
    log = scratch / "log.txt"
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:nbval",
                              *(f"tests/test_{s}.py" for s in SUITES[kind])])
        sys.stdout.flush()
        os._exit(int(status))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return ""
    found = re.search(r"(?:FAILED|ERROR) tests/(\S+)", log.read_text())
    return found[1] if found else f"the run itself broke (status {status})"


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(prefix="polylib-mutants-") as folder:
        scratch = Path(folder)
        shutil.copytree(ROOT / "tests", scratch / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        for folder in ("polylib", "params"):
            shutil.copytree(ROOT / folder, scratch / folder, ignore=shutil.ignore_patterns("__pycache__"))
        os.chdir(scratch)
        (scratch / "pytest.ini").write_text("[pytest]\npythonpath = . tests\n")
        checkout = (ROOT, ROOT / "tests")
        sys.path = [str(scratch)] + [p for p in sys.path if Path(p or ".").resolve() not in checkout]
        faults = [f for f in FAULTS if all(w in f[1] for w in words)]
        for kind in sorted({f[0] for f in faults}):
            if broken := first_failure(scratch, kind):
                raise SystemExit(f"the suite is red before any fault: {broken}")
        caught = 0
        for kind, name, room, text, replacement in faults:
            path = scratch / f"polylib/{room}.py"
            source = path.read_text()
            if text not in source:
                raise SystemExit(f"fault {name!r}: its text has left {room}.py; update tests/faults*.py")
            path.write_text(source.replace(text, replacement))
            test = first_failure(scratch, kind)
            path.write_text(source)
            caught += bool(test)
            print(f"{'caught' if test else 'MISSED'} | {name} | {test}", flush=True)
        print(f"caught {caught} of {len(faults)}")
        return int(caught < len(faults))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
