"""dvc, with params.yaml of one study: what dvc.yaml calls ${study} stays the same while others choose other studies.

python tools/dvc_study.py scratch/laptop/params.yaml repro grpo@laptop-42

DVC reads params.yaml anew in every command and has no option for another file's `vars`; its name is set here.

$STUDY_SLOTS, groups of GPUs such as "0,1 2,3", is where stages run side by side: the command takes the first group that
no other command of this checkout holds, waits if there is none, and sees these GPUs alone (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import dvc.parsing
from dvc.cli import main


def take_slot(groups: list[str]):
    """Hold the first free group of GPUs until the file that is returned is closed, or this process ends."""
    while True:
        for number, gpus in enumerate(groups):
            lock = Path(f"scratch/slot{number}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
            return lock
        time.sleep(0.5)


if __name__ == "__main__":
    assert dvc.parsing.DEFAULT_PARAMS_FILE == "params.yaml"
    dvc.parsing.DEFAULT_PARAMS_FILE = sys.argv[1]
    slot = take_slot(os.environ["STUDY_SLOTS"].split()) if os.environ.get("STUDY_SLOTS") else None
    sys.exit(main(sys.argv[2:]))
