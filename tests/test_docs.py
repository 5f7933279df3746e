"""The documentation: messages it explains are in the code, links lead to headings, and its settings do what they say.

`make docs` builds it with every warning an error; what is here needs no Sphinx, but for the last tests.
"""

from __future__ import annotations

import ast
import re
import types

import pytest
from conftest import ROOT, shell

PAGES = [ROOT / name for name in shell("git", "ls-files", "*.md", cwd=ROOT).split()]


def messages() -> list[str]:
    """Every text in polylib and in the scripts of tools, with … for what is filled in when it is said."""
    found = [file.read_text(encoding="utf-8") for file in (ROOT / "tools").glob("*.sh")]
    for file in (ROOT / "polylib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "…") for part in node.values]
                text = "".join(part if isinstance(part, str) else "…" for part in parts)
                found.append(re.sub("…+", "…", text))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def explained() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n(.*?)\n```", page, re.S)
    return [" ".join(block.split()) for block in blocks]


def test_every_message_that_troubleshooting_explains_is_in_the_code():
    quoted, said = explained(), messages()
    assert len(quoted) > 25 and len(set(quoted)) == len(quoted)
    missing = [
        line for line in quoted if not any(line.removesuffix("…").strip() in text for text in said)
    ]
    assert missing == []


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as a forge makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_a_heading_lead_to_one(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text):
        goal = (page.parent / target).resolve() if target else page
        assert anchor in slugs(goal.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("latex2mathml", reason="make docs installs it")
    pytest.importorskip("sphinx", reason="make docs installs it")
    module = types.ModuleType("conf")
    module.__file__ = str(ROOT / "docs" / "conf.py")
    exec(compile((ROOT / "docs" / "conf.py").read_text(), "conf.py", "exec"), vars(module))
    return module


def test_every_notebook_is_shown_once(conf):
    numbers = [re.search(r"(\d\d)_\w+", name)[1] for name in conf.shown_notebooks()]
    assert numbers == sorted({f.name[:2] for f in (ROOT / "notebooks").glob("*.ipynb")})


def test_a_docstring_is_text_and_its_tables_stay_as_typed(conf):
    lines = ["Mean of `x_*` over |A|, *not* a sum: a * b.", "", "    y = f(x)", "", "| a | b |"]
    conf.plain_docstring(None, "function", "f", None, None, lines)
    text, code, table = "\n".join(lines).split("\n\n::\n\n")
    assert text == r"Mean of \ ``x_*``\  over \|A\|, *not* a sum: a \* b."
    assert (code, table) == ("    y = f(x)", "    | a | b |")


def test_a_formula_that_cannot_be_drawn_is_a_warning(conf, monkeypatch):
    warned = []
    monkeypatch.setattr(conf.logger, "warning", lambda *said: warned.append(said))
    assert "<msub>" in conf.mathml(r"\arg\max_w S \setminus y", "inline") and not warned
    conf.mathml(r"\nosuchcommand x", "block")
    assert len(warned) == 1
