"""papermill with the same arguments, but a notebook's fault without papermill's own traceback around it.

python tools/run_notebook.py notebooks/01_data.ipynb out.ipynb -p preset smoke

What a user can repair (UserError) is one line, `error: ...`; anything else the notebook's own traceback. Both go to
stderr as the last thing said, with exit status 1. The one line is also added to the file $POLYLIB_FAULT, if that is
set: tools/reproduce.sh says it again below what DVC and make say of a stage that failed.

$STUDY_RUNNER is put in front of the whole command (`srun --gpus 1`), so that DVC and its locks stay where make runs.
With $STUDY_PROCESSES above 1 a notebook that trains runs in that many processes, which torchrun starts and which are
one training; each runs all cells. The first writes the notebook that was asked for, the others scratch/ranks/.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError

TRAINS = ("03_sft", "04_polychromic", "05_grpo", "06_hybrid")  # with the loop, which shares a batch


def launch() -> None:
    """Become the same command behind the runner, or in several processes; return where neither is asked for."""
    own = [sys.executable, *sys.argv]
    if asked := os.environ.pop("STUDY_RUNNER", "").strip():
        try:
            runner = shlex.split(asked)
            os.execvp(runner[0], [*runner, *own])
        except (OSError, ValueError) as error:  # not there, or a quote that is not closed
            sys.exit(f"error: RUNNER={asked}: {error}")
    processes = os.environ.pop("STUDY_PROCESSES", "") or "1"
    notebooks = [at for at, word in enumerate(sys.argv) if word.endswith(".ipynb")][:2]
    if processes != "1" and Path(sys.argv[notebooks[0]]).stem in TRAINS:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])
    if rank := int(os.environ.get("RANK", 0)):
        name = Path(sys.argv[notebooks[1]]).stem
        Path("scratch/ranks").mkdir(parents=True, exist_ok=True)
        sys.argv[notebooks[1]] = f"scratch/ranks/{name}-{rank}.ipynb"


def main() -> int:
    launch()
    try:
        papermill()  # ends the process itself unless a cell fails
    except PapermillExecutionError as error:
        if error.ename != "UserError":
            print(str(error).strip(), file=sys.stderr)
            return 1
        # no control sequence of a file's
        line = "error: " + re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", error.evalue)
        print(line, file=sys.stderr)
        if told := os.environ.get("POLYLIB_FAULT"):
            with Path(told).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
