"""A look at the data before a study is chosen: what it holds, what it is too small for, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import types

import pandas as pd
import pytest
from conftest import ROOT
from data_rows import data, frame, jsonl, record, threads

from polylib import config, study
from polylib.data import prepare, profile
from polylib.run import Paths, UserError

SMOKE = dataclasses.replace(config.load("smoke", ROOT), data=data())


def test_profile_by_hand():
    likes = [[0, 0, 5], [-2, 4], [3]]
    raw = frame(
        [record(p, k, reply_likes=y) for p, ys in enumerate(likes) for k, y in enumerate(ys)]
    )
    raw.loc[:2, "reply_author"] = "ann"
    raw["lang"] = "en"
    rejects = pd.DataFrame({"reason": ["too_few_replies"], "count": [1], "examples": [[]]})
    rows = raw[:5].assign(split=["train"] * 3 + ["test"] * 2)
    preferences = pd.DataFrame({"split": ["train", "train"], "tweet_id": ["p0", "p0"]})
    read, liked, unknown, kept, limits = profile.describe(
        raw, rows, rejects, preferences, "observed"
    )
    assert read.startswith("read 6 replies to 3 posts in 3 threads; replies a post 1 | 2 | 3 (")
    assert liked.startswith("observed likes -2 | 1.5 | 4.5 | 5 (") and "under 2 posts" in liked
    assert "none 33%, below 0 17%" in liked
    assert unknown == (
        "unknown: reply_author 50%, reply_author_followers 100%, reply_time_diff_seconds 100%, "
        "tweet_author 100%, tweet_likes 100%"
    )
    assert kept == "kept 5 replies to 2 posts; set aside: too_few_replies 1"
    for count in ("1 test posts", "0 validation posts", "0 judge posts", "1 training posts"):
        assert count in limits
    assert "no like" not in limits


@pytest.fixture(scope="module")
def large():
    """Clean, split rows with enough of everything, and their pairs."""
    made = {name: 40 for name in ("train", "validation", "test", "judge")}
    rows = [
        record(f"{name}{p}", k, reply_likes=k, reply_author_followers=9, reply_time_diff_seconds=9)
        for name, n in made.items()
        for p in range(n)
        for k in range(2)
    ]
    rows = frame(rows).assign(split=[name for name, n in made.items() for _ in range(2 * n)])
    train = rows[rows["split"] == "train"].drop_duplicates("tweet_id")
    return rows, train[["split", "tweet_id"]]


def test_limits_are_said_only_where_there_are_any(large):
    rows, preferences = large
    assert profile.limits(rows, preferences) == []
    few = rows[~rows["tweet_id"].isin([f"ptest{k}" for k in range(11)])]
    assert [line.split(":")[0] for line in profile.limits(few, preferences)] == ["29 test posts"]
    alike = rows.assign(reply_likes=rows["reply_likes"].where(rows["split"] != "judge", 1))
    assert "0 judge posts" in profile.limits(alike, preferences)[0]
    assert "29 training posts" in profile.limits(rows, preferences[:29])[0]
    unliked = rows.assign(reply_likes=rows["reply_likes"].where(rows["split"] == "judge", 0))
    assert "have no like" in profile.limits(unliked, preferences)[0]


def test_limits_reach_the_files_of_a_study(tmp_path):
    paths = Paths("study", tmp_path)
    settings = types.SimpleNamespace(data=data())
    prepare.prepare(settings, jsonl(tmp_path / "a.jsonl", threads(60)), paths)
    manifest, metrics = (
        json.loads((paths.results("data") / f"{name}.json").read_text())
        for name in ("manifest", "metrics")
    )
    assert any("12 test posts" in line for line in manifest["limits"])
    assert metrics["limits"] == len(manifest["limits"]) >= 3


@pytest.mark.parametrize("alike", ["train", "validation", "judge"])
def test_a_split_in_which_nothing_is_liked_better_is_refused(tmp_path, alike):
    rows = threads(40)
    made = prepare.make(data(), jsonl(tmp_path / "a.jsonl", rows)).rows
    same = set(made.loc[made["split"] == alike, "tweet_id"])
    rows = [r | {"reply_likes": 1} if r["tweet_id"] in same else r for r in rows]
    with pytest.raises(UserError, match=rf"a\.jsonl: in split {alike} no post") as caught:
        prepare.look(SMOKE, jsonl(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(caught.value)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    for name in ("laptop", "smoke"):
        text = (ROOT / "params" / f"{name}.yaml").read_text()
        (tmp_path / "params" / f"{name}.yaml").write_text(text)
    (tmp_path / "params.yaml").write_text("study: before\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"a": 1}], "no column tweet_id"),
        ([record(0, k, reply_likes="many") for k in range(9)], "row 1: reply_likes is 'many'"),
        (threads(3), "only 3 independent threads"),
        ([r | {"reply_likes": 0} for r in threads(30)], "replies that differ in likes"),
        ([r | {"reply": "ok"} for r in threads(9)], "cleaning left none"),
    ],
)
def test_a_study_is_refused_in_one_line_before_anything_changes(project, capsys, rows, says):
    jsonl(project / "mine.jsonl", rows)
    assert study.main(["smoke", "--data", "mine.jsonl"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert (project / "params.yaml").read_text() == "study: before\n"
    assert sorted(p.name for p in project.iterdir()) == ["mine.jsonl", "params", "params.yaml"]


def test_a_study_that_can_be_is_profiled_and_chosen(project, capsys):
    jsonl(project / "mine.jsonl", threads(60))
    assert study.main(["smoke", "--data", "mine.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "read 240 replies to 60 posts" in said and "limits: " in said
    assert "study smoke-mine" in said and "smoke-mine" in (project / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("section", "key", "split"),
    [
        ("evaluation", "prompts", "test"),
        ("evaluation", "likelihood_prompts", "test"),
        ("llm_judge", "compare_posts", "test"),
        ("reward_model", "preflight_posts", "validation"),
        ("grpo", "eval_prompts", "validation"),
        ("polychromic", "eval_prompts", "validation"),
        ("dpo", "eval_prompts", "validation"),
        ("ppo", "eval_prompts", "validation"),
        ("ablation", "posts", "test"),
    ],
)
def test_more_posts_than_a_split_holds_are_refused(tmp_path, section, key, split):
    """As many as there are may be asked for; one more is another study than the preset says. What no method of the
    preset uses asks for nothing."""
    path = jsonl(tmp_path / "a.jsonl", threads(80))  # 40, 8, 16 and 16 posts
    held = {"test": 16, "validation": 8}[split]
    grid = dataclasses.replace(SMOKE.ablation, grid={})

    def look(number, **others):
        changed = dataclasses.replace(vars(SMOKE)[section], **{key: number})
        return prepare.look(dataclasses.replace(SMOKE, **{section: changed} | others), path)

    if section != "ablation":
        assert look(held)
    asked = rf"asks for: .*{section}\.{key} {held + 1} \(split {split} holds {held}\)"
    with pytest.raises(UserError, match=asked):
        look(held + 1)
    if section in ("ablation", "reward_model", "grpo", "dpo", "ppo"):
        assert look(held + 1, methods=("sft", "polychromic"), **{"ablation": grid})


def test_no_shipped_preset_asks_for_more_posts_than_the_corpus_holds():
    corpus, made = ROOT / "polylib/data/corpus.jsonl", {}
    for preset in sorted(path.stem for path in (ROOT / "params").glob("*.yaml")):
        cfg = config.load(preset, ROOT)
        key = repr(cfg.data)  # gpu reads what laptop reads
        made[key] = made.get(key) or prepare.make(cfg.data, corpus)
        prepare._enough(cfg, corpus, made[key].rows)
