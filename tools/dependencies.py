"""Write each stage's polylib dependencies into dvc.yaml, from what its notebook imports (a test compares the two).

    python tools/dependencies.py     # after a notebook or a module gained or lost an import
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import needs  # noqa: E402  (the tests own the import graph)


def rewritten(lines: list[str]) -> list[str]:
    """Line by line, so that comments and layout stay: in each `deps:` the polylib modules come last, sorted."""
    out: list[str] = []
    notebook, inside = "", False
    for line in lines:
        if re.fullmatch(r"  \w+:", line):
            notebook = ""
        found = re.search(r"^      \.build/\$\{study\}/(\w+)\.ipynb$", line)
        notebook = found[1] if found else notebook
        if inside and not line.startswith("      - "):
            inside = False
            if notebook:
                modules = needs(ROOT / "notebooks" / f"{notebook}.ipynb")
                out += [f"      - {name}" for name in sorted(modules, key=lambda name: (name.count("/"), name))]
        inside = inside or line == "    deps:"
        if not (inside and re.match(r"      - polylib/.*\.(?:py|html|css|js)$", line)):
            out.append(line)
    return out


if __name__ == "__main__":
    pipeline = ROOT / "dvc.yaml"
    before = pipeline.read_text(encoding="utf-8")
    after = "\n".join(rewritten(before.splitlines())) + "\n"
    if after != before:
        pipeline.write_text(after, encoding="utf-8")
        print("dvc.yaml: dependencies rewritten")
