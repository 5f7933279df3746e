"""The paper: no number is typed, every file it reads is made, and it compiles where LaTeX is."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import reply_rows
from study_fixture import ROOT, small_config, write_study

from polylib.analysis import results, significance
from polylib.figures import costs, failure_table, paper, significance_table, tables, tradeoffs

TEX = (ROOT / "paper" / "paper.tex").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A project folder with the made-up study, its tables and one figure."""
    root, cfg = tmp_path_factory.mktemp("paper"), small_config()
    paths = write_study(root, cfg)
    reply_rows.write(paths, cfg)
    found = results.load(paths, cfg)
    for table in (tables.main(found), tables.everything(found)):
        table.save(found.paths.figures)
    paper.write(found)
    significance_table.save(significance.table(found, None), found, found.paths.figures)
    failure_table.table(failure_table.rates(found), found.note).save(found.paths.figures)
    costs.table(found).save(found.paths.figures)
    tradeoffs.quality_diversity(found).save(found.paths.figures, 40)
    for folder in ("paper", "tools"):
        (root / folder).mkdir()
    shutil.copy(ROOT / "paper" / "paper.tex", root / "paper")
    shutil.copy(ROOT / "tools" / "paper.sh", root / "tools")
    return found


def build(root, name="laptop"):
    return subprocess.run(
        ["sh", "tools/paper.sh", name], cwd=root, capture_output=True, text=True, check=False
    )


def test_no_result_is_typed_into_the_text():
    """Decimals, percentages and counts of runs or posts come from commands; years and sizes of the page may stand."""
    body = TEX.partition("\\begin{document}")[2]
    body = re.sub(
        r"\\exhibit\{\w+\}|%.*|et al\.\\ \d{4}|\[[^]]*\]|\\begin\{\w+\}|\{\d+pt\}|95\\,\\%",
        "",
        body,
    )
    assert not re.findall(r"\d+\.\d+|\d+\s*\\?%|\b\d{2,}\b", body), (
        "write a \\study... command instead"
    )


def test_every_input_and_command_of_the_text_is_made(study):
    for name in re.findall(r"\\input\{\\made/([\w.]+)\}", TEX):
        assert (study.paths.figures / name).stat().st_size, name
    used = set(re.findall(r"\\study([a-z]+)", TEX)) - {"name"}
    assert used <= set(paper.numbers(study)), used - set(paper.numbers(study))
    assert all(name.isalpha() for name in paper.numbers(study))


def test_what_is_missing_is_one_line(study, tmp_path):
    shutil.copytree(study.paths.root / "tools", tmp_path / "tools")
    shutil.copytree(study.paths.root / "paper", tmp_path / "paper")
    done = build(tmp_path)
    assert (
        done.returncode == 1 and done.stderr.startswith("paper: ") and done.stderr.count("\n") == 1
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_the_paper_compiles_with_a_figure_and_without_the_others(study):
    done = build(study.paths.root)
    assert done.returncode == 0, done.stderr
    assert (study.paths.root / "paper" / "laptop.pdf").read_bytes().startswith(b"%PDF")
    log = (study.paths.root / "paper" / "build" / "laptop.log").read_text(errors="replace")
    assert "quality_diversity.pdf" in log and "undefined" not in log
