"""Notebooks as they are committed: no outputs, except in checked cells (`# NBVAL_CHECK_OUTPUT`), which keep
outputs and execution count: nbval compares only cells that have a count; stripped, it would check nothing.

    python tools/clean_notebooks.py notebooks/*.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with only what is worth a diff."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            cell.execution_count = number  # the position: the true count differs with every session
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = number
        else:
            cell.execution_count, cell.outputs = None, []
    return notebook


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(clean(nbformat.reads(before, as_version=4))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"cleaned {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
