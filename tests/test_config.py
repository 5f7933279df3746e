"""Presets and the settings loader: complete, equal in shape, and strict about mistakes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil

import pytest
import yaml
from conftest import ROOT

from polylib import config, study
from polylib.config import UserError

PRESETS = sorted(p.stem for p in (ROOT / "params").glob("*.yaml"))


@pytest.fixture
def laptop(tmp_path):
    """A copy of the laptop preset that a test may spoil: edit(old, new) returns the file's path."""
    text = (ROOT / "params" / "laptop.yaml").read_text()

    def edit(old: str, new: str) -> str:
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
        return str(tmp_path / "mine.yaml")

    return edit


def test_these_presets_exist():
    assert {"gpu", "laptop", "paper", "quick", "smoke"} <= set(PRESETS)


def values_by_hand(preset):
    """The settings of a preset by the rule written in laptop.yaml's head; PyYAML reads the files."""
    own = yaml.safe_load((ROOT / "params" / f"{preset}.yaml").read_text())
    values = values_by_hand(own["extends"]) if "extends" in own else {}
    for name in ("sft", "polychromic", "grpo", "hybrid", "ppo"):
        for section in (own.get("training", {}), own.get(name, {})):
            values.setdefault(name, {}).update(section)
    for name, item in own.items():
        if name in ("extends", "training", "sft", "polychromic", "grpo", "hybrid", "ppo"):
            continue
        values[name] = values.get(name, {}) | item if isinstance(item, dict) else item
    return values


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_say_the_same_to_another_yaml_reader(preset):
    """Every value in the dataclass is the file's value or the extended file's, and none is missing or left over."""
    cfg, wanted = dataclasses.asdict(config.load(preset, ROOT)), values_by_hand(preset)
    assert set(cfg) == {"preset", *wanted}
    for key, value in wanted.items():
        assert not isinstance(value, dict) or set(cfg[key]) == set(value)
        for name, item in value.items() if isinstance(value, dict) else [(None, value)]:
            mine = cfg[key][name] if name else list(cfg[key])
            assert mine == (float(item) if isinstance(mine, float) else item), (key, name)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_file_loads_as_the_same_settings_and_keeps_its_bytes(
    preset, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "new" / "settings.yaml"
    assert config.main([preset, str(out)]) == 0
    text = out.read_text()
    assert text.count("#") == 1 and "extends" not in yaml.safe_load(text)
    assert dataclasses.replace(config.load(str(out)), preset=preset) == config.load(preset)
    out.unlink()
    assert config.main([preset, str(out)]) == 0 and out.read_text() == text


def test_a_preset_departs_from_the_one_it_extends(tmp_path):
    """training of a preset beats the extended file's method section, its own method section beats that; mappings
    that are values are replaced."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params" / "base.yaml").write_text(
        "extends: laptop\ngrpo: {steps: 7}\ndata: {columns: {text: reply}}\n"
    )
    (tmp_path / "params" / "mine.yaml").write_text(
        "extends: base\ntraining: {steps: 5, warmup_steps: 2}\nsft: {steps: 6}\ndata: {columns: {likes: n}}\n"
    )
    base, mine = config.load("base", tmp_path), config.load("mine", tmp_path)
    assert (base.grpo.steps, base.hybrid.steps) == (7, 10)
    assert (mine.grpo.steps, mine.hybrid.steps, mine.sft.steps, mine.sft.warmup_steps) == (
        5,
        5,
        6,
        2,
    )
    assert (
        mine.data.columns == {"likes": "n"}
        and mine.data.max_chars == 280
        and mine.grpo.kappa == 0.1
    )
    common = config.training("mine", tmp_path)
    assert (common["steps"], common["warmup_steps"], common["lr"]) == (5, 2, base.sft.lr)


@pytest.mark.parametrize(
    "text, says",
    [
        ("extends: mine\n", ["mine.yaml", "extends itself"]),
        ("extends: laptpo\n", ["laptpo.yaml", "presets there", "laptop"]),
        (
            "extends: laptop\ntraining: {stesp: 3}\n",
            ["mine.yaml", "training.stesp", "training.steps"],
        ),
        ("extends: laptop\npreset: other\n", ["mine.yaml", "unknown setting preset"]),
        ("extends: laptop\ntraining: 3\n", ["mine.yaml", "training must be a section"]),
        (
            "extends: laptop\nmethods: [grpo]\nswept: [grpo]\n",
            ["mine.yaml", "methods must hold sft"],
        ),
        (
            "extends: laptop\ngrpo: {init: polychromic}\nmethods: [sft, grpo]\nswept: [sft]\n",
            ["grpo.init is polychromic"],
        ),
    ],
)
def test_a_departure_that_cannot_be_is_one_line(tmp_path, text, says):
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params" / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.load("mine", tmp_path)
    assert all(word in str(caught.value) for word in says) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "written, number", [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("'1e-5'", 1e-5), ("1", 1.0)]
)
def test_floats_are_floats_however_they_are_written(laptop, written, number):
    lr = config.load(laptop("lr: 1.0e-3", f"lr: {written}")).reward_model.lr
    assert lr == number and type(lr) is float


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("  kappa: 0.1", "  kapa: 0.1", ["grpo.kapa", "grpo.kappa"]),
        ("  max_grad_norm: 1.0\n", "", ["sft.max_grad_norm", "missing"]),
        ("grpo:  #", "grop:  #", ["grop", "grpo"]),
        ("  epochs: 200", "  epochs: many", ["reward_model.epochs", "int", "many"]),
        ("  epochs: 200", "  epochs: true", ["reward_model.epochs", "int", "True"]),
        ("  hidden: 64", "  hidden: 64.5", ["reward_model.hidden", "64.5"]),
        ("lr: 1.0e-3", "lr: .nan", ["reward_model.lr", "float"]),
        ("lr: 1.0e-3", "lr: true", ["reward_model.lr", "float"]),
        ("phase: rl", "phase: rll", ["phase", "sft | rl | all", "rll"]),
        ("columns: {}", "columns: {text: 3}", ["data.columns.text", "str"]),
        ("train: 0.55", "train: 0.65", ["sum to 1", "1.1"]),
        ("samples: 10", "samples: 9", ["evaluation.ks", "9"]),
        (
            "samples_per_prompt: 4",
            "samples_per_prompt: 2",
            ["polychromic.lam", "samples_per_prompt >= 3"],
        ),
        ("[42, 123, 456]", "[42, 42]", ["seeds"]),
        ("lambda0, polychromic", "lambda1, polychromic", ["methods", "lambda1"]),
        ("swept: [sft]", "swept: [lambda0]", ["swept", "sft among them"]),
        ("swept: [sft]", "swept: [sft, ppo]", ["swept", "names out of methods"]),
        (
            '  url: ""',
            "  url: https://me:secret@host/v1",
            ["llm_judge.url holds more than an address", "$LLM_API_KEY"],
        ),
        ("  max_tokens: 8", "  max_tokens: 0", ["llm_judge.max_tokens", "0"]),
        ("sampling:", "sampling: 3\nother:", ["other"]),
        ("model:", "model: [", ["not readable as YAML"]),
    ],
)
def test_a_mistake_gives_one_line_naming_file_and_key(laptop, old, new, says):
    with pytest.raises(UserError) as caught:
        config.load(laptop(old, new))
    message = str(caught.value)
    assert "mine.yaml" in message and "\n" not in message and "me:secret" not in message
    for word in says:
        assert word in message


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="laptpo.*gpu.*laptop.*paper.*quick.*smoke"):
        config.load("laptpo", ROOT)


def test_a_user_error_is_one_line_in_a_notebook_too():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shown = []
    shell._showtraceback = lambda kind, error, lines: shown.extend(lines)
    shell.run_cell(
        "from polylib.config import UserError; raise UserError('a.csv row 3: likes missing')"
    )
    assert shown == ["UserError: a.csv row 3: likes missing"]


# ---- choosing a study


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params").mkdir()
    for preset in PRESETS:
        (tmp_path / "params" / f"{preset}.yaml").write_bytes(
            (ROOT / "params" / f"{preset}.yaml").read_bytes()
        )
    (tmp_path / "polylib" / "data").mkdir(parents=True)
    (tmp_path / study.CORPUS).write_text("{}\n")
    return tmp_path


def test_the_committed_choice_is_the_laptop_study_on_the_bundled_corpus(project):
    study.select("laptop", root=project)
    assert (project / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_a_study_trains_what_it_lists_and_nothing_else(project):
    (project / "params" / "mine.yaml").write_text("extends: smoke\nmethods: [sft]\nswept: [sft]\n")
    chosen = study.select("mine", root=project)
    others = ("lambda0", "polychromic", "grpo", "hybrid", "dpo", "ppo")
    assert chosen["trained"] == {"sft": [42], **{name: [] for name in others}}
    assert chosen["ablation"] == []
    assert study.select("smoke", root=project)["ablation"] == [42]


def test_selecting_twice_leaves_the_file_alone(project):
    study.select("smoke", root=project)
    before = (project / "params.yaml").stat()
    study.select("smoke", root=project)
    after = (project / "params.yaml").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_own_data_gets_a_study_of_its_own(project):
    (project / "my tweets (2).v1.csv").write_text("x\n")
    with pytest.raises(UserError, match="rename"):  # parentheses cannot stand in a shell command
        study.select("smoke", "my tweets (2).v1.csv", project)
    (project / "my tweets.v1.csv").write_text("x\n")
    chosen = study.select("smoke", str(project / "my tweets.v1.csv"), project)
    assert chosen["study"] == "smoke-my_tweets_v1" and chosen["data"] == "my tweets.v1.csv"
    assert yaml.safe_load((project / "params.yaml").read_text()) == chosen


@pytest.mark.parametrize(
    "place", ['a"b.csv', "a$(touch x).csv", "a`b`.csv", "a;b.csv", "a\nb.csv", "a'b.csv"]
)
def test_no_path_can_break_out_of_the_command_line(project, place):
    (project / place).write_text("x\n")
    with pytest.raises(UserError, match="rename"):
        study.select("smoke", place, project)


def test_a_hub_data_set_becomes_a_file_that_dvc_can_watch(project, monkeypatch):
    """The hub itself is replaced: rows as its library gives them, a date among them."""
    asked = []

    def rows(source):
        asked.append(source)
        return [{"text": "caf\u00e9", "at": datetime.date(2026, 1, 2)}]

    monkeypatch.setattr(study.read, "hub_rows", rows)
    for _ in range(2):
        chosen = study.select("smoke", "hub:some-one/re.plies@v1", project)
    assert (
        asked == ["hub:some-one/re.plies@v1"]
        and chosen["study"] == "smoke-hub_some_one_re_plies_v1_e0b08751"
    )
    assert json.loads((project / chosen["data"]).read_text()) == {
        "text": "caf\u00e9",
        "at": "2026-01-02",
    }


def test_an_unreachable_hub_is_one_line(project, monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="hub:a/b@main: not reachable") as caught:
        study.select("smoke", "hub:a/b@main", project)
    assert "\n" not in str(caught.value) and not (project / "params.yaml").exists()


def test_a_missing_file_is_one_line_and_changes_nothing(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert study.main(["smoke", "--data", "nowhere.csv"]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "nowhere.csv" in error and not (project / "params.yaml").exists()
    )


@pytest.mark.parametrize(
    "section, key, value, says",
    [
        ("sampling", "top_p", 0.0, "above 0 and at most 1, found 0.0"),
        ("sampling", "top_p", 1.5, "at most 1, found 1.5"),
        ("sampling", "top_k", -1, "0 or more (0 is off), found -1"),
        ("dpo", "beta", 0, "above 0 (at 0 every pair"),
        ("grpo", "steps", 0, "at least 1, found 0"),
        ("grpo", "curriculum", 1.0, "0 or more and below 1, found 1.0"),
        ("grpo", "steps", "5", "int, found '5'"),
        ("grpo", "lam", True, "float, found True"),
        ("model", "source", 3, "str"),
        ("grpo", "mask_truncated", 1, "bool, found 1"),
        ("evaluation", "ks", 3, "list, found 3"),
        ("grpo", "phase", "rll", "sft | rl | all, found 'rll'"),
    ],
)
def test_a_value_out_of_place_is_one_line_with_its_range(tmp_path, section, key, value, says):
    values = config.resolved("smoke", ROOT)
    values[section][key] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        config.load(str(tmp_path / "mine.yaml"))
    message = str(caught.value)
    assert (
        f"mine.yaml: {section}.{key} must be " in message
        and says in message
        and "\n" not in message
    )
    with pytest.raises(ValueError, match=key):  # in Python too, where a section is made
        dataclasses.replace(getattr(config.load("smoke", ROOT), section), **{key: value})


def test_an_unknown_setting_is_not_dropped_in_python():
    with pytest.raises((TypeError, ValueError), match="kapa"):
        dataclasses.replace(config.load("smoke", ROOT).grpo, kapa=1.0)


@pytest.mark.parametrize(
    "grid, message",
    [
        ("{gamma: [1.0]}", "one or two of alpha, beta, lam, kappa"),
        ("{lam: []}", "one or two of alpha"),
        ("{lam: [1.0], beta: [1.0], kappa: [0.1]}", "one or two of alpha"),
        ("{lam: [1.0, 1.0]}", "repeats a value"),
        ("{lam: [-1.0]}", r"ablation.grid.lam\[0\] must be 0 or more"),
    ],
)
def test_an_ablation_that_cannot_run_is_one_line(laptop, grid, message):
    with pytest.raises(config.UserError, match=rf"mine.yaml: .*{message}"):
        config.load(laptop("grid: {}", f"grid: {grid}"))
