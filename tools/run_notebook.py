"""papermill with the same arguments, but a notebook's fault without papermill's own traceback around it.

python tools/run_notebook.py notebooks/01_data.ipynb out.ipynb -p preset smoke

What a user can repair (UserError) is one line, `error: ...`; anything else the notebook's own traceback. Both go to
stderr as the last thing said, with exit status 1.
"""

from __future__ import annotations

import re
import sys

from papermill.cli import papermill
from papermill.exceptions import PapermillExecutionError


def main() -> int:
    try:
        papermill()  # ends the process itself unless a cell fails
    except PapermillExecutionError as error:
        line = re.sub(
            r"[\x00-\x20\x7f-\x9f]+", " ", error.evalue
        )  # no control sequence of a file's
        print(
            f"error: {line}" if error.ename == "UserError" else str(error).strip(), file=sys.stderr
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
