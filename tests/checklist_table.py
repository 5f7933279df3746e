"""The two tables of tests/README.md: rows of the checklist, and known faults with the test that caught each.

python tests/checklist_table.py      writes the table of rows; `make mutants` writes that of faults
"""

from __future__ import annotations

import re
from pathlib import Path

from faults_rows import ROWS

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def rows() -> str:
    """Row, claim, kind of evidence, test, and the fault that turns this very test red."""
    tests = re.findall(
        r"^def (test_row_(\d\d)_\w+)", (HERE / "test_checklist.py").read_text(), re.MULTILINE
    )
    names = {int(number): name for name, number in tests}
    return _table(
        ["row", "claim", "kind", "test in test_checklist.py", "fault that turns it red"],
        [
            [str(number), claim, kind, f"`{names[number]}`", fault]
            for number, claim, kind, fault, *_ in ROWS
        ],
    )


def faults(results: list[tuple[str, str, str]]) -> str:
    """Fault, room, caught by; `results` of tests/mutants.py."""
    return _table(
        ["fault", "room", "caught by"],
        [[name, room, f"`{test}`" if test else "MISSED"] for name, room, test in results],
    )


def between(name: str, text: str) -> str:
    """What stands between the markers of this table. Raises ValueError if there are none."""
    found = re.search(f"<!-- {name} -->\n(.*?)\n?<!-- end of {name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(
            f"tests/README.md has no markers <!-- {name} --> and <!-- end of {name} -->"
        )
    return found[1]


def write(name: str, table: str) -> None:
    """Replace the table between its markers."""
    text = README.read_text(encoding="utf-8")
    head, tail = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    between(name, text)
    start, end = text.index(head) + len(head), text.index(tail.lstrip("\n"))
    README.write_text(text[:start] + table + tail[:1] + text[end:], encoding="utf-8")


if __name__ == "__main__":
    write("rows", rows())
