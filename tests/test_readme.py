"""The README: its tables are what the files say, and every target, path, parameter and setting it names exists."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, shell
from study_fixture import write_study

from polylib import config
from polylib.analysis import results, significance
from polylib.config import UserError
from polylib.figures import significance_table, tables, tradeoffs
from polylib.run import Paths, write_json

_SPEC = importlib.util.spec_from_file_location(
    "readme_results", ROOT / "tools" / "readme_results.py"
)
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = re.sub(
    r"\\\n\s*", "", "\n".join(re.findall(r"```sh\n(.*?)```", ALL, re.S))
)  # continued lines joined
TREE = re.search(r"## What is where\n.*?```text\n(.*?)```", README, re.S)[1]
MENTIONED = (
    COMMANDS + "\n" + "\n".join(re.findall(r"`([^`\n]+)`", ALL))
)  # code blocks and code in prose


def tree_paths() -> list[str]:
    """Paths of the annotated tree; two spaces a level, the name ends at the first space."""
    paths, above = [], []
    for line in TREE.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        above[len(indent) // 2 :] = [name]
        paths.append("".join(above))
    return paths


# ---- the tables


def test_the_tables_are_what_the_script_writes():
    changed = shell("git", "status", "--porcelain", "--", "results", cwd=ROOT, fail=False).strip()
    if not Paths("laptop", ROOT).summary.is_file():
        pytest.skip("results/laptop is not in this checkout: there is nothing to compare with")
    if changed:
        pytest.skip(
            "results/ is not as committed: a study was run here; python tools/readme_results.py updates README"
        )
    for name, text in script.pages(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, (
            f"{name}: run python tools/readme_results.py"
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Invented results of the laptop preset, with what notebook 08 writes from them."""
    root = tmp_path_factory.mktemp("study")
    shutil.copytree(ROOT / "params", root / "params")
    cfg = config.load("laptop", root)
    paths = write_study(root, cfg, prompts=8)
    found = results.load(paths, cfg)
    tables.main(found).save(paths.figures)
    tradeoffs.quality_diversity(found).save(paths.figures, dpi=40)
    tested = significance.table(found, None).assign(p_adjusted=0.9)
    asked = {
        "family": ["primary", "equivalence"],
        "question": ["is it better?", "is quality kept?"],
    }
    asked |= {
        "kind": ["matched", "equivalence"],
        "effect": [0.1234, -0.01],
        "margin": [np.nan, 0.12],
    }
    asked |= {"method_low": [0.02, -0.2], "method_high": [0.22, 0.18], "p_adjusted": [0.041, 0.3]}
    asked |= {"verdict": ["above", "not established"]}
    tested = pd.concat([pd.DataFrame(asked), tested], ignore_index=True)
    significance_table.save(tested[tested["method"].notna()], found, paths.figures)
    tested.to_csv(paths.figures / "table_significance.csv", index=False)
    (paths.figures / "deviations.csv").write_text('what,registered,found\nseeds,"1, 2, 3","1, 2"\n')
    (paths.figures / "decision_guide.csv").write_text(
        "want,choose,because\nreplies that differ,polychromic,+.5 [.4 .6]\n"
    )
    shutil.rmtree(paths.results("data"))
    for number, file in enumerate(sorted((root / "results").glob("**/env.json"))):
        write_json(
            file,
            {
                "preset": "laptop",
                "wall_seconds": 60 * (number + 1),
                "peak_memory_mb": 1024,
                "peak_gpu_memory_mb": 3072,
                "device": "cpu, 2 cores",
                "dtype": "bfloat16",
            },
        )
    write_json(paths.results("data") / "manifest.json", {"engagement": "simulated"})
    return root, cfg, paths, found


def test_results_say_simulated_n_and_what_the_files_hold(study):
    root, cfg, paths, found = study
    block = script.results_block(root) + script.comparisons_block(root)
    assert "*simulated engagement*" in block and "n = 8 posts" in block and "p = 0.25" in block
    for method in cfg.methods:
        mean = np.mean([found.cells("diversity")[method, seed].mean() for seed in cfg.seeds])
        assert re.search(rf"^\|.*\b{mean:.3f} ± ", block, re.M), method
    first = np.mean([found.histories["grpo", s]["val_reward"].dropna().iloc[0] for s in cfg.seeds])
    last = np.mean([found.histories["grpo", s]["val_reward"].dropna().iloc[-1] for s in cfg.seeds])
    assert f"{first:.4g} → {last:.4g}" in block
    assert "nan" not in block.lower().replace("nann", "")
    volume = tradeoffs.hypervolumes(found).set_index("method")["hypervolume"]
    assert f"GRPO {1000 * (volume['grpo'] - volume['sft']):+.1f} [" in block
    assert "| is it better? | +0.123 | [+0.020, +0.220] | 0.041 | above |" in block
    asked = script.results_block(root).split("**What was asked")[1]
    assert (
        "departures from it: 1)" in asked
        and "| is quality kept? (margin 0.12) |" in asked
        and "0.9" not in asked
    )
    assert "| replies that differ | polychromic | +.5 [.4 .6] |" in block


def test_presets_add_up_minutes_and_own_up_to_what_never_ran(study):
    root, _, paths, _ = study
    runs = len(list((root / "results").glob("**/env.json")))
    block = script.presets_block(root) + "\n" + script.stages_block(root)
    rows = {line.split("|")[1].strip(): line for line in block.splitlines() if "|" in line}
    assert f"| {runs * (runs + 1) / 2:.1f} | 3.0 | cpu, 2 cores, bfloat16 |" in rows["`laptop`"]
    assert all("not run here" in rows[f"`{preset}`"] for preset in ("smoke", "gpu", "paper"))
    assert "| 3 |" in rows["`grpo`"]


def test_rewards_show_accuracy_attacks_and_false_alarms(tmp_path):
    folder = tmp_path / "results/laptop/reward_model"
    folder.mkdir(parents=True)
    (folder / "validation.csv").write_text(
        "dataset,model,metric,value,lo,hi,n\ncorpus,learned,pair_accuracy_engagement,.7123,.65,.76,500\n"
        "corpus,judge,pair_accuracy_engagement,.66,.6,.7,500\n"
        "ev,learned,pair_accuracy_engagement,.57,.5,.6,90\n"
    )
    (folder / "attacks.csv").write_text(
        "reward,attack,score,human_median,passed,beats\n"
        "learned,constant,1.5,.25,False,.9\nlearned,parrot,.125,.25,True,.1\n"
    )
    (folder / "planted.csv").write_text(
        "corpus,policy,level,label,z,threshold,feature,n,draws,caught\ncorpus,parrot,2,suspicious,20,3.5,copy3,150,3,1\n"
        "corpus,a tenth,0,ok,2,3.5,gzip,150,3,.33\ncorpus,people (fresh sets),0,ok,1.8,3.5,gzip,150,210,0.0095\n"
    )
    block = script.rewards_block(tmp_path)
    assert (
        "| learned | 0.712 [0.650, 0.760] | 0.570 [0.500, 0.600] |" in block
        and "| judge | 0.660" in block
    )
    assert "| constant | **+1.25** |" in block and "| parrot | -0.12 |" in block
    assert (
        "1 of 2 planted policies caught" in block
        and "% false alarms in 210 fresh human sets" in block
    )


def test_a_missing_file_is_named(study, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(study[0], root)
    (root / "results/laptop/grpo/s42/history.csv").unlink()
    with pytest.raises(UserError, match="grpo/s42/history.csv: missing"):
        script.results_block(root)


def test_only_marked_blocks_change():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert script.fill(text, {"x": "new"}) == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    assert (
        script.fill("<!-- x -->\n<!-- /x -->\n", {"x": r"\1"}) == "<!-- x -->\n\\1\n<!-- /x -->\n"
    )
    with pytest.raises(UserError, match="<!-- y -->"):
        script.fill(text, {"y": "new"})


# ---- what it names exists


def test_make_targets_exist_and_continuous_integration_calls_the_test_command():
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", MENTIONED))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"test", "reproduce", "lab"} <= named <= targets
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")


def test_every_path_of_the_tree_exists():
    paths = tree_paths()
    assert len(paths) > 15 and len(set(paths)) == len(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tree_leaves_no_folder_and_no_room_out():
    listed = {path.rstrip("/") for path in tree_paths()}
    tops = {
        path.split("/")[0] for path in shell("git", "ls-files", cwd=ROOT).split() if "/" in path
    }
    assert {top for top in tops if not top.startswith(".")} <= listed
    rooms = {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("polylib/*/*.py")}
    assert rooms <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_names_in_the_idea_are_in_the_files_they_point_to():
    idea = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8").split("## Which")[0]
    idea += README.split("## The one idea")[1].split("\n## ")[0]
    code = "\n".join(f.read_text() for f in (ROOT / "polylib" / "training").glob("*.py"))
    names = [name for name in re.findall(r"`([A-Za-z_]+)`", idea)]
    assert (
        len(names) > 8
        and [name for name in names if not re.search(rf"^(def|class) {name}\b", code, re.M)] == []
    )


def test_papermill_parameters_reach_their_notebooks():
    calls = [line for line in COMMANDS.splitlines() if line.strip().startswith("papermill")]
    assert len(calls) >= 2
    for call in calls:
        path = ROOT / re.search(r"(notebooks/\w+\.ipynb)", call)[1]
        cell = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        assert "parameters" in cell.metadata["tags"]
        known = {node.target.id for node in ast.parse(cell.source).body}
        given = set(re.findall(r" -p (\w+)", call))
        assert given and given <= known, f"{path.name}: {given - known}"


def test_stages_and_settings_in_commands_exist():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(re.findall(r"\b(\w+)@laptop", COMMANDS)) <= set(pipeline)
    changed = re.findall(r"-S 'params/(\w+)\.yaml:(\w+)\.(\w+)=", COMMANDS)
    assert changed
    for preset, section, key in changed:
        assert key in yaml.safe_load((ROOT / "params" / f"{preset}.yaml").read_text())[section]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "LOG.md"], ids=lambda page: page.name)
def test_no_path_of_one_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|work|root|tmp)/|localhost|\.internal", text)
