"""Sphinx settings of `make docs`. The source folder is the project folder, so links between pages work in the pages
as they are on a forge and in the built site alike. Nothing is fetched and no notebook is run."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def shown_notebooks() -> list[str]:
    """Every notebook once: as the laptop study's first seed left it, where that is there, else its source."""
    pages = []
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        names = (f"{source.stem}{run}.ipynb" for run in ("", "-s42", "-grpo-s42"))
        executed = [ROOT / "results" / "laptop" / "notebooks" / name for name in names]
        found = next((file for file in executed if file.is_file()), source)
        pages.append(found.relative_to(ROOT).as_posix())
    return pages


project, author, copyright = "polylib", "the authors of polylib", "2026, Apache-2.0"
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "LOG.md", "docs/**.md", "tests/README.md"]
include_patterns += ["polylib/data/CORPUS.md", *shown_notebooks()]
exclude_patterns = [".*", "data", "models", "scratch", "docs/_build"]

extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # these scripts would come from the network
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "ignore-module-all": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
add_module_names = False
nitpick_ignore_regex = [  # types of other libraries, and the settings, which params/laptop.yaml explains
    (r"py:.*", r"(?!polylib\.).*|polylib\.settings\..*")
]

html_theme = "furo"
html_title = "Polychromic replies"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_static/index.html"]  # leads from the top of the site to docs/index.html
html_math_renderer = "mathml"
html_copy_source = False


def list_notebooks(app, docname: str, source: list[str]) -> None:
    """On the start page, NOTEBOOKS becomes the notebooks in their order, wherever each lies."""
    if docname == root_doc:
        names = [f"/{name.removesuffix('.ipynb')}" for name in shown_notebooks()]
        source[0] = source[0].replace("\nNOTEBOOKS\n", "\n" + "\n".join(names) + "\n")


def write_api_pages(app) -> None:
    """One page a folder of polylib, one section a module, all from docstrings."""
    target = ROOT / "docs" / "api"
    target.mkdir(exist_ok=True)
    folders: dict[str, list[str]] = {}
    for file in sorted((ROOT / "polylib").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        folder = file.relative_to(ROOT).parent.as_posix().replace("/", ".")
        folders.setdefault(folder, []).append(module)
    for old in target.glob("*.md"):
        if old.stem not in folders:
            old.unlink()
    for folder, modules in folders.items():
        text = f"# {folder}\n"
        for module in modules:
            title = "" if module == folder else f"\n## {module.removeprefix(folder + '.')}\n"
            text += f"{title}\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
        page = target / f"{folder}.md"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: a paragraph that is a list, a table or indented stays as it is typed; in the others
    `names` are code, *words* are emphasised and no other character is markup."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        if re.search(r"^( |\||- |\d\. )", paragraph, re.M):
            paragraphs.append("::\n\n" + textwrap.indent(textwrap.dedent(paragraph), "    "))
            continue
        parts = paragraph.split("`")
        parts[::2] = [re.sub(r"[\\*|_]", r"\\\g<0>", part) for part in parts[::2]]
        parts[::2] = [
            re.sub(r"(?<!\w)\\\*(\w[\w ]*)\\\*(?!\w)", r"*\1*", part) for part in parts[::2]
        ]
        parts[1::2] = [f"\\ ``{part}``\\ " if part else "" for part in parts[1::2]]
        paragraphs.append("".join(parts))
    lines[:] = "\n\n".join(paragraphs).splitlines()


def mathml(formula: str, display: str) -> str:
    """A formula as MathML, which browsers draw themselves: no script, no network. What latex2mathml does not know it
    would show as typed; that is a warning here, and so an error of `make docs`."""
    known = formula.replace(r"\arg", r"\operatorname{arg}").replace(r"\setminus", r"\backslash")
    shown = convert(known, display=display)
    if re.search(r">\\[A-Za-z]", shown):
        logger.warning("formula with a command that is not drawn: %s", formula)
    return shown


def inline_math(self, node) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def block_math(self, node) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("builder-inited", write_api_pages)
    app.connect("source-read", list_notebooks)
    app.connect("autodoc-process-docstring", plain_docstring)
