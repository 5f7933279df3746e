"""papermill with the same arguments, but a notebook's fault without papermill's own traceback around it.

python tools/run_notebook.py notebooks/01_data.ipynb out.ipynb -p preset smoke

What a user can repair (UserError) is one line, `error: ...`; anything else the notebook's own traceback. Both go to
stderr as the last thing said, with exit status 1. The one line is also added to the file $POLYLIB_FAULT, if that is
set: tools/reproduce.sh says it again below what DVC and make say of a stage that failed.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError


def main() -> int:
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
