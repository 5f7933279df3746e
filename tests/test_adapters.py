"""Rows of other shapes: each becomes one record a reply, and every raw row is accounted for."""

from __future__ import annotations

import csv
import json
import re
import types

import pandas as pd
import pytest
from conftest import ROOT
from data_rows import data, jsonl, threads

from polylib import config
from polylib.data import adapters, prepare, read
from polylib.run import Paths, UserError

CASES = ROOT / "tests" / "cases" / "sources"
ELI5 = {
    "q_id": "tweet_id",
    "title": "tweet",
    "answers.a_id": "reply_id",
    "answers.text": "reply",
    "answers.score": "reply_likes",
}
SHP = {
    "post_id": "tweet_id",
    "history": "tweet",
    "c_root_id_*": "reply_id",
    "human_ref_*": "reply",
    "score_*": "reply_likes",
    "created_at_utc_*": "reply_created_at",
}
FLAT = {
    "uri": "reply_id",
    "reply_to": "tweet_id",
    "parent.text": "tweet",
    "parent.did": "tweet_author",
    "text": "reply",
    "did": "reply_author",
    "like_count": "reply_likes",
}


def load(name, columns, adapter):
    """(rows by reply id: post, reply, likes), (what went aside: row, reason), malformed."""
    aside = []
    rows, bad = read.load(CASES / name if "/" not in str(name) else name, columns, adapter, aside)[
        :2
    ]
    found = rows.set_index("reply_id")[["tweet_id", "reply_likes"]].apply(tuple, axis=1).to_dict()
    return found, [(number, reason) for number, reason, _ in aside], rows, bad


def test_explode_an_object_of_lists():
    found, aside, rows, bad = load("explode_object_of_lists.jsonl", ELI5, {"explode": "answers"})
    assert found == {
        "dbuoyxl": ("5lcjq6", 44),
        "dbur7gi": ("5lcjq6", -3),  # a score below 0 is engagement
        "cop9aa1": ("2wbr3k", 9),
    }
    assert rows["reply"][2].startswith("They play") and rows["tweet"][2].startswith("How do noise")
    assert (aside, len(bad)) == ([(3, "no_replies")], 0)


def test_explode_a_list_of_objects():
    columns = {
        "qid": "tweet_id",
        "question": "tweet",
        "answers.answer_id": "reply_id",
        "answers.text": "reply",
        "answers.pm_score": "reply_likes",
    }
    found, aside, _, _ = load("explode_list_of_objects.jsonl", columns, {"explode": "answers"})
    assert found == {"101": ("12", 4), "102": ("12", -1), "103": ("13", 2)} and aside == []


def test_explode_plain_texts_gets_ids_and_json_in_a_csv_cell_is_looked_into(tmp_path):
    answers = [{"text": "one", "n": {"likes": 3}}, {"text": "one", "n": {"likes": 0}}]
    with (tmp_path / "a.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["post", "answers"], ["hello", json.dumps(answers)]])
    columns = {"post": "tweet", "answers.text": "reply", "answers.n.likes": "reply_likes"}
    found, _, rows, _ = load(tmp_path / "a.csv", columns, {"explode": "answers"})
    assert [likes for _, likes in found.values()] == [3, 0]  # the same words twice, two replies
    assert rows["tweet_id"].nunique() == 1 and rows["reply_id"].is_unique
    again = load(tmp_path / "a.csv", columns, {"explode": "answers"})[0]
    assert again == found  # ids do not depend on the run


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"a_id": ["x"], "text": ["y", "z"], "score": [1]}, "no object of equally long lists"),
        ("words", "no list"),
        (7, "no list"),
    ],
)
def test_a_row_that_cannot_be_exploded_is_kept_aside_with_its_number(tmp_path, answers, says):
    good = [json.loads(line) for line in (CASES / "explode_object_of_lists.jsonl").open()][:1]
    rows = [good[0] | {"answers": {k: v * 30 for k, v in good[0]["answers"].items()}}]
    rows[0]["answers"]["a_id"] = [f"a{k}" for k in range(60)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"q_id": "q", "title": "t", "answers": answers}])
    found, _, _, bad = load(path, ELI5, {"explode": "answers"})
    assert len(found) == 60 and bad["row"].tolist() == [2] and says in bad["problem"][0]


def test_a_list_column_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="row 1: has no column replies to explode") as caught:
        load("explode_object_of_lists.jsonl", ELI5, {"explode": "replies"})
    assert "\n" not in str(caught.value)


def test_unpivot_two_scores_and_a_reply_that_stands_in_two_pairs():
    found, aside, rows, bad = load("unpivot_two_scores.jsonl", SHP, {"unpivot": ["A", "B"]})
    assert found == {"c1": ("a1", 60), "c2": ("a1", -4), "c3": ("a1", 75)}
    assert aside == [(2, "repeated")] and bad.empty
    assert rows.set_index("reply_id")["reply_created_at"]["c2"] == "2020-09-13T12:36:40Z"


def test_unpivot_chosen_and_rejected_chats_without_ids():
    columns = {"prompt": "tweet", "*.-1.content": "reply", "score_*": "reply_likes"}
    found, aside, rows, _ = load(
        "unpivot_chosen_rejected.jsonl", columns, {"unpivot": ["chosen", "rejected"]}
    )
    assert dict(zip(rows["reply"], rows["reply_likes"])) == {
        "The Loire, the longest of them.": 8,
        "Paris.": 2,
        "The Rhone.": 7,
    }
    assert rows["tweet_id"].nunique() == 1 and aside == [(2, "repeated")]


def test_a_reply_with_two_scores_is_named_not_merged(tmp_path):
    lines = [json.loads(line) for line in (CASES / "unpivot_two_scores.jsonl").open()]
    lines += [lines[0] | {f"c_root_id_{s}": f"{s}{k}" for s in "AB"} for k in range(30)]
    lines[1]["score_B"] = 61
    _, aside, _, bad = load(jsonl(tmp_path / "a.jsonl", lines), SHP, {"unpivot": ["A", "B"]})
    assert bad[["row", "problem"]].to_numpy().tolist() == [[2, "c1 was already used in row 1"]]
    assert aside == []


def test_self_join_a_flat_table():
    found, aside, rows, bad = load("self_join_flat.jsonl", FLAT, {"self_join": "reply_to"})
    assert found == {
        "at://r2": ("at://r1", 7),
        "at://r3": ("at://r1", 3),
        "at://r4": ("at://r2", 1),
    }
    assert rows["tweet"].tolist()[0] == "Coffee before or after the meeting?"
    assert rows["tweet_author"].tolist() == ["ann", "ann", "bob"]
    assert rows["thread_id"].unique().tolist() == ["at://r1"]  # a conversation stays in one split
    assert aside == [(5, "no_parent"), (6, "no_replies")] and bad.empty


def test_self_join_reaches_into_nested_exports():
    link = "referenced_tweets.type=replied_to.id"
    columns = {
        "id": "reply_id",
        link: "tweet_id",
        "parent.text": "tweet",
        "text": "reply",
        "public_metrics.like_count": "reply_likes",
        "parent.public_metrics.like_count": "tweet_likes",
    }
    found, aside, rows, _ = load("self_join_nested.jsonl", columns, {"self_join": link})
    assert found == {"1700000000000000002": ("1700000000000000001", 11)}
    assert rows["tweet_likes"].tolist() == [40] and aside == [(3, "no_replies")]


def test_self_join_where_the_link_itself_is_called_parent(tmp_path):
    rows = [json.loads(line) for line in (CASES / "self_join_flat.jsonl").open()]
    path = jsonl(tmp_path / "a.jsonl", [r | {"parent": r.pop("reply_to")} for r in rows])
    columns = {k: v for k, v in FLAT.items() if k != "reply_to"}
    found, _, made, _ = load(path, columns, {"self_join": "parent"})
    assert found["at://r4"] == ("at://r2", 1) and made["tweet"].tolist()[2].startswith("Before")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"tweet": "reply"}, "parent.text: tweet"),
        ({"parent.text": "tweet", "tweet_id": "reply_id"}, "map reply_to to tweet_id"),
        ({"parent.text": "tweet", "parent": "tweet_id"}, "leave `parent` out"),
    ],
)
def test_a_self_join_never_takes_a_row_for_its_own_parent(columns, says):
    with pytest.raises(UserError, match=says):
        adapters.adapt(iter([]), columns, {"self_join": "reply_to"})


def test_self_join_names_twice_used_and_missing_ids_and_survives_circles(tmp_path):
    row = {"did": "x", "like_count": 1}
    lines = [row | {"uri": "a", "text": "first words", "reply_to": None}]
    lines += [row | {"uri": f"r{k}", "text": f"reply {k}", "reply_to": "a"} for k in range(60)]
    lines += [row | {"uri": "r0", "text": "other", "reply_to": "a"}]  # an id again
    lines += [row | {"uri": None, "text": "no id", "reply_to": "a"}]
    lines += [row | {"uri": "a", "text": "a second first post", "reply_to": None}]
    lines += [row | {"uri": "b", "text": "b", "reply_to": "c"}]
    lines += [row | {"uri": "c", "text": "c", "reply_to": "b"}]
    found, _, _, bad = load(jsonl(tmp_path / "a.jsonl", lines), FLAT, {"self_join": "reply_to"})
    assert len(found) == 62 and bad["row"].tolist() == [62, 63, 64]
    assert "already used in row 2" in bad["problem"][0] and "no id" in bad["problem"][1]
    assert "a was already used in row 1" in bad["problem"][2]


def test_a_self_join_that_joins_nothing_is_one_line():
    columns = FLAT | {"uri": "source", "did": "reply_id"}
    with pytest.raises(UserError, match="no row has the id that reply_to names.*at://r1") as caught:
        load("self_join_flat.jsonl", columns, {"self_join": "reply_to"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["explode_object_of_lists", "unpivot_two_scores", "self_join_flat"]
)
def test_every_raw_row_is_a_reply_a_parent_aside_or_malformed(name):
    adapter = {
        "e": {"explode": "answers"},
        "u": {"unpivot": ["A", "B"]},
        "s": {"self_join": "reply_to"},
    }
    columns = {"e": ELI5, "u": SHP, "s": FLAT}[name[0]]
    aside, lines = [], [json.loads(line) for line in (CASES / f"{name}.jsonl").open()]
    made = list(adapters.adapt(enumerate(lines, 1), columns, adapter[name[0]], aside))
    used = {number for number, _ in made} | {number for number, _, _ in aside}
    if name[0] == "s":
        used |= {number for number, line in enumerate(lines, 1) if line["uri"] == "at://r1"}
    assert used == set(range(1, len(lines) + 1))
    assert all(reason in adapters.REASONS for _, reason, _ in aside)


@pytest.mark.parametrize(
    "adapter",
    [
        {"explod": "answers"},
        {"explode": ["answers"]},
        {"explode": ""},
        {"self_join": ["a", "b"]},
        {"explode": "a", "unpivot": ["A", "B"]},
        {"unpivot": "A"},
        {"unpivot": ["A"]},
        {"unpivot": ["A", "A"]},
        {"unpivot": []},
    ],
)
def test_an_adapter_that_cannot_be_is_one_line(adapter):
    with pytest.raises(UserError, match="data.adapter") as caught:
        adapters.adapt(iter([]), SHP, adapter)
    assert "\n" not in str(caught.value)


def test_unpivot_without_a_star_says_how():
    with pytest.raises(UserError, match=r"score_\*: reply_likes"):
        adapters.adapt(iter([]), {"score_A": "reply_likes"}, {"unpivot": ["A", "B"]})


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.b", 1),
        ("a.b.c", adapters._ABSENT),  # a number has nothing inside
        ("a.x", adapters._ABSENT),
        ("n.b", None),
        ("l.1.t", "two"),
        ("l.-1.t", "two"),
        ("l.5.t", None),
        ("l.-5.t", None),
        ("l.k=v.t", "two"),
        ("l.k=w.t", None),
        ("l.²", adapters._ABSENT),
        ("with.dots", 3),
        ("with.dots.t", adapters._ABSENT),
        ("j.0.t", "json"),
        ("bad.t", adapters._ABSENT),
    ],
)
def test_dotted_names(path, found):
    record = {"a": {"b": 1}, "n": None, "l": [{"t": "one"}, {"t": "two", "k": "v"}], "with.dots": 3}
    record |= {"j": '[{"t": "json"}]', "bad": "[not json"}
    assert adapters.value(record, path) == found


def test_a_clean_file_without_adapter_passes_untouched():
    records = iter([(1, {"a": 1})])
    assert adapters.adapt(records, {"a": "reply"}) is records


def test_a_dotted_name_that_leads_nowhere_is_refused_like_any_column(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"m": {"likes": 1}}])
    with pytest.raises(UserError, match="data.columns names 'm.like'; the file has"):
        read.load(path, {"m.like": "reply_likes"})[:2]


def test_parquet_of_nested_rows_reads_like_jsonl(tmp_path):
    lines = [json.loads(line) for line in (CASES / "explode_object_of_lists.jsonl").open()]
    pd.DataFrame(lines).to_parquet(tmp_path / "a.parquet")
    expected = load("explode_object_of_lists.jsonl", ELI5, {"explode": "answers"})
    found = load(tmp_path / "a.parquet", ELI5, {"explode": "answers"})
    assert found[:2] == expected[:2]


def test_what_goes_aside_is_counted_among_the_rejects(tmp_path):
    lines = [
        {"id": r["tweet_id"], "post": r["tweet"], "all": [], "lang": "en"}
        for r in threads(30, replies=1)
    ]
    for r in threads(29):
        lines[int(r["tweet_id"][1:])]["all"].append({"t": r["reply"], "n": r["reply_likes"]})
    columns = {"id": "tweet_id", "post": "tweet", "all.t": "reply", "all.n": "reply_likes"}
    settings = types.SimpleNamespace(data=data(columns=columns, adapter={"explode": "all"}))
    paths = Paths("study", tmp_path)
    made = prepare.prepare(settings, jsonl(tmp_path / "a.jsonl", lines), paths)
    assert made.manifest["rejects"] == {"no_replies": 1}
    assert made.manifest["read"] == 29 * 4 + 1 == made.manifest["kept"] + 1
    assert "p29" in (paths.results("data") / "rejects.csv").read_text()
    nested = [{"replies" if k == "all" else k: v for k, v in r.items()} for r in lines]
    renamed = {k.replace("all.", "replies."): v for k, v in columns.items()}
    settings.data = data(columns=renamed, adapter={"explode": "replies"})
    again = prepare.prepare(settings, jsonl(tmp_path / "b.jsonl", nested), paths)
    assert again.manifest["engagement"] == "observed"  # a list named replies is not the corpus


def test_every_preset_in_the_guide_loads_and_fits_its_case(tmp_path):
    """The guide's blocks are presets as they stand; read with the case of their shape, each finds replies."""
    cases = (
        "explode_object_of_lists",
        "unpivot_two_scores",
        "unpivot_chosen_rejected",
        "self_join_flat",
        "self_join_nested",
    )
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "own_data.md").read_text(), re.S)
    for block, case in zip(blocks, cases, strict=True):
        (tmp_path / "mine.yaml").write_text(block)
        cfg = config.load(str(tmp_path / "mine.yaml"), ROOT).data
        rows, bad = read.load(CASES / f"{case}.jsonl", cfg.columns, cfg.adapter)[:2]
        assert len(rows) and bad.empty, case
