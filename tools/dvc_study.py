"""dvc, with params.yaml of one study: what dvc.yaml calls ${study} stays the same while others choose other studies.

python tools/dvc_study.py scratch/laptop/params.yaml repro grpo@laptop-42

DVC reads params.yaml anew in every command and has no option for another file's `vars`; its name is set here.
"""

from __future__ import annotations

import sys

import dvc.parsing
from dvc.cli import main

if __name__ == "__main__":
    assert dvc.parsing.DEFAULT_PARAMS_FILE == "params.yaml"
    dvc.parsing.DEFAULT_PARAMS_FILE = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
