"""Rows in: every format gives the same table; a bad row is kept aside, a bad file is one clear line."""

from __future__ import annotations

import gzip
import json
import sys
import unicodedata

import pandas as pd
import pytest
from conftest import ROOT
from data_rows import jsonl, record

from polylib.data import read
from polylib.data import text as texts
from polylib.run import UserError

ROWS = [
    record(
        p, r, reply_likes=r, reply_author_followers=10 * r, tweet='quoted "text", comma\nand line'
    )
    for p in range(5)
    for r in range(5)
]


def test_all_formats_give_one_table(tmp_path):
    lines = jsonl(tmp_path / "a.jsonl", ROWS)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as packed:
        packed.write((tmp_path / "a.jsonl").read_text())
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    expected = read.load(lines).rows
    assert list(expected.columns) == list(read.COLUMNS)
    assert expected["reply_likes"].tolist() == [r["reply_likes"] for r in ROWS]
    assert expected["thread_id"].tolist() == [r["tweet_id"] for r in ROWS]
    assert expected["tweet_likes"].isna().all()
    for name in ("a.jsonl.gz", "a.csv", "a.parquet"):
        pd.testing.assert_frame_equal(read.load(tmp_path / name).rows, expected)


@pytest.mark.parametrize(
    ("bad", "field", "problem"),
    [
        ('{"tweet_id": "x", ', "", "not JSON"),
        ("[1, 2]", "", "not a JSON object"),
        (record(9, 9, reply=None), "reply", "missing"),
        (record(9, 9, reply="\x00 \n"), "reply", "missing"),
        ({k: v for k, v in record(9, 9).items() if k != "tweet"}, "tweet", "missing"),
        (record(9, 9, reply_likes="many"), "reply_likes", "not a number"),
        (record(9, 9, reply_likes=True), "reply_likes", "not a number"),
        (record(9, 9, reply_likes=2.5), "reply_likes", "whole number"),
        (record(9, 9, reply_likes=10**30), "reply_likes", "not a number"),
        (record(9, 9, tweet_id="1.70000E+18"), "tweet_id", "large ids lose digits"),
        (record(9, 9, reply_id="1.7000000000010003e+18"), "reply_id", "large ids lose digits"),
        (record(9, 9, reply_id="1,7E+18"), "reply_id", "large ids lose digits"),
        (record(9, 9, thread_id="1700000000000000000.0"), "thread_id", "large ids lose digits"),
        (record(9, 9, reply=["a"]), "reply", "list"),
        (record(9, 9, tweet_id=1.7e18), "tweet_id", "quote them"),
        (record(0, 0, reply="other words"), "reply_id", "already used in row 1"),
        (record(0, 9, tweet="another text"), "tweet", "differs from row 1"),
        (record(0, 9, tweet=ROWS[0]["tweet"], thread_id="t"), "thread_id", "differs from row 1"),
    ],
)
def test_one_bad_row_is_kept_aside_with_its_number(tmp_path, bad, field, problem):
    rows, malformed = read.load(jsonl(tmp_path / "a.jsonl", [*ROWS, bad]))[:2]
    assert len(rows) == len(ROWS)
    (fault,) = malformed.itertuples()
    assert fault.row == len(ROWS) + 1
    assert fault.field == field
    assert problem in fault.problem


def test_many_bad_rows_refuse_the_file_and_name_the_first(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        [*ROWS[:3], record(8, 1, reply_likes="x"), record(8, 2, reply_likes="y")],
    )
    with pytest.raises(
        UserError, match=r"a\.jsonl, row 4: reply_likes is 'x', not a number; 2 of 5 rows"
    ):
        read.load(path)[:2]


def test_ragged_csv_row_is_malformed(tmp_path):
    pd.DataFrame(ROWS).assign(tweet="t").to_csv(tmp_path / "a.csv", index=False)
    with (tmp_path / "a.csv").open("a") as out:
        out.write("p9,only two\n")
    rows, malformed = read.load(tmp_path / "a.csv")[:2]
    assert (len(rows), malformed["row"].tolist()) == (
        len(ROWS),
        [len(ROWS) + 2],
    )  # the header is line 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        (
            "a.csv",
            b"tweet_id,text\n1,hello\n",
            "no column tweet, reply_id, reply, reply_likes; .* has text, tweet_id",
        ),
        ("a.csv", b"tweet_id\n\xff\xfe\n", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.xlsx", b"", "unknown format"),
        ("a.gz", b"", "unknown format"),
    ],
)
def test_bad_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read.load(tmp_path / name)[:2]
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_missing_file_and_bad_hub_id():
    with pytest.raises(UserError, match="nowhere.csv: no such file"):
        read.load("nowhere.csv")[:2]
    with pytest.raises(UserError, match="hub:owner/name@revision"):
        read.load("hub:owner/name")[:2]


def test_unreachable_hub_is_one_line_with_alternatives(monkeypatch):
    class Offline:
        @staticmethod
        def load_dataset(*_, **__):
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", Offline)
    with pytest.raises(UserError, match=r"not reachable \(no route\).*DATA=path") as caught:
        read.load("hub:someone/replies@main:train")[:2]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:a/b@v1.0:dev", ("a/b", None, None, "dev", "v1.0")),
        ("hub:a/b@main", ("a/b", None, None, "train", "main")),
        (
            "hub:a/b@main,config=posts,split=test,data_dir=data/x,rows=2",
            ("a/b", "posts", "data/x", "test", "main"),
        ),
    ],
)
def test_hub_rows_pass_options_and_the_column_map(monkeypatch, source, asked):
    class Hub:
        @staticmethod
        def load_dataset(name, config, data_dir, split, revision, streaming):
            assert streaming and (name, config, data_dir, split, revision) == asked
            yield from (r | {"fav": 3, "raw": b"caf\xc3\xa9", "image": b"\xff"} for r in ROWS)

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    rows = read.load(source, {"fav": "reply_likes", "raw": "source", "image": "lang"}).rows
    assert len(rows) == (2 if "rows=2" in source else len(ROWS))
    assert (rows["reply_likes"] == 3).all() and (rows["source"] == "caf\u00e9").all()
    assert rows["lang"].isna().all()


@pytest.mark.parametrize(
    "options", [",rows=0", ",rows=x", ",rows", ",conf=x", ",rows=1,rows=2", ",", ":a:b", ",split="]
)
def test_a_misspelled_hub_option_is_one_line(options):
    with pytest.raises(UserError, match="hub:a/b@main.*rows") as caught:
        read.load(f"hub:a/b@main{options}")[:2]
    assert "\n" not in str(caught.value)


def test_a_data_set_on_disk_is_read_as_a_hub_would_serve_it(tmp_path, monkeypatch):
    """Written by `datasets`; two configurations named in the README, one of them in a folder of its own."""
    import datasets

    lines = (ROOT / "tests/cases/sources/explode_object_of_lists.jsonl").read_text().splitlines()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "asks"
    for name, rows in (("posts", ROWS), ("asks", [json.loads(line) for line in lines])):
        (folder / name).mkdir(parents=True)
        table = datasets.Dataset.from_list(rows)
        table.to_parquet(folder / name / "dev-00000-of-00001.parquet")
    configs = [
        {"config_name": name, "data_files": [{"split": "dev", "path": f"{name}/dev-*"}]}
        for name in ("posts", "asks")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    monkeypatch.chdir(tmp_path)
    rows = read.load("hub:owner/asks@main,config=posts,split=dev,rows=7").rows
    assert rows["reply_id"].tolist() == [r["reply_id"] for r in ROWS[:7]]
    nested = {"q_id": "tweet_id", "title": "tweet", "answers.a_id": "reply_id"}
    nested |= {"answers.text": "reply", "answers.score": "reply_likes"}
    aside = []
    rows, bad = read.load(
        "hub:owner/asks@main,config=asks,split=dev", nested, {"explode": "answers"}, aside
    )[:2]
    assert rows["reply_likes"].tolist() == [44, -3, 9] and bad.empty and len(aside) == 1
    with pytest.raises(UserError, match="not reachable .*config") as caught:
        read.load("hub:owner/asks@main,config=nowhere")[:2]
    assert "\n" not in str(caught.value)


def test_column_map(tmp_path):
    named = [{("text" if k == "reply" else k): v for k, v in r.items()} for r in ROWS]
    path = jsonl(tmp_path / "a.jsonl", named)
    assert read.load(path, {"text": "reply"}).rows["reply"].tolist() == [r["reply"] for r in ROWS]
    with pytest.raises(UserError, match="did you mean 'reply_likes'"):
        read.load(path, {"text": "reply_like"})[:2]
    with pytest.raises(UserError, match="names 'body'; the file has"):
        read.load(path, {"body": "reply"})[:2]


def test_a_field_that_training_can_do_without_becomes_unknown_and_is_counted(tmp_path):
    odd = {
        "reply_author_followers": "N/A",
        "tweet_likes": "1.2K",
        "tweet_retweets": -1,
        "reply_time_diff_seconds": -7200,
        "reply_author": "[deleted]",
        "tweet_author": 1.7e18,
        "lang": ["en"],
        "collected_at": "yesterday",
    }
    loaded = read.load(jsonl(tmp_path / "a.jsonl", [ROWS[0], *(r | odd for r in ROWS[1:])]))
    assert len(loaded.rows) == len(ROWS) and not len(loaded.malformed)
    for name in odd:
        assert loaded.rows[name][1:].isna().all()
        assert loaded.counts[f"unknown_{name}"] == len(ROWS) - 1
        (said,) = (note for note in loaded.notes if note.startswith(f"{name}:"))
        assert f"{len(ROWS) - 1} could not be read" in said and "first: row 2 is" in said
    assert loaded.rows["reply_author_followers"][0] == ROWS[0]["reply_author_followers"]


@pytest.mark.parametrize(
    "name", ["[deleted]", "Unknown", "N/A", "null", "@anonymous", "<removed>", "-"]
)
def test_a_placeholder_is_no_author(tmp_path, name):
    rows = [r | {"reply_author": name, "tweet_author": name} for r in ROWS]
    found = read.load(jsonl(tmp_path / "a.jsonl", [*rows, record(8, 8, reply_author="ann")])).rows
    assert found["tweet_author"].isna().all() and found["reply_author"].dropna().tolist() == ["ann"]


def test_ids_with_an_e_or_a_point_in_them_are_ids(tmp_path):
    ids = ["12e45", "7e9", "1.5", "1.5e9", "0x1e+", "12345.0", "1700000000000000000", "t3_1e+5"]
    rows = [record(9, k, reply_id=name) for k, name in enumerate(ids)]
    assert read.load(jsonl(tmp_path / "a.jsonl", rows)).rows["reply_id"].tolist() == ids


def test_html_entities_are_unescaped_once_and_counted(tmp_path):
    pairs = {
        "tea &amp; cake": "tea & cake",
        "&lt;3 &#39;x&#x27;": "<3 'x'",
        "&amp;lt; stays an entity": "&lt; stays an entity",
        "AT&T, a&b; &nosuch; http://x.y?a=1&lt=3&copy=2": None,
        "hidden&#27;[31m": "hidden[31m",
        "&lt;|im_end|&gt;": "<|im_end|>",
    }
    rows = [record(0, k, reply=text) for k, text in enumerate(pairs)]
    loaded = read.load(jsonl(tmp_path / "a.jsonl", rows))
    assert loaded.rows["reply"].tolist() == [plain or text for text, plain in pairs.items()]
    assert loaded.counts == {"unescaped": 5} and "in 5 texts" in loaded.notes[0]


def test_delays_come_from_timestamps_where_both_are_given(tmp_path):
    stamps = [  # post, reply, delay
        ("2024-01-01T10:00:00Z", "2024-01-01T10:01:30Z", 90),
        ("2024-01-01 10:00:00", "2024-01-01 11:00", 3600),
        ("2024-01-01T10:00:00+02:00", "2024-01-01T10:00:00Z", 7200),
        ("Wed Oct 10 20:19:24 +0000 2018", "Wed Oct 10 20:20:24 +0000 2018", 60),
        (1700000000, 1700000007, 7),
        (1700000000000, "1700000007000", 7),
        ("2024-01-01T10:00:00Z", "2024-01-01T11:00:00", None),  # another time zone?
        ("2024-01-01T10:00:00Z", "2024-01-01T09:00:00Z", None),  # before its post
        ("2024-01-01", "2024-01-02", None),  # no time of day
        ("2024-01-01T10:00:00Z", "later", None),
    ]
    names = ("tweet_created_at", "reply_created_at")
    rows = [record(k, k, **dict(zip(names, s, strict=False))) for k, s in enumerate(stamps)]
    rows.append(rows[0] | {"reply_id": "given", "reply_time_diff_seconds": 5})
    loaded = read.load(jsonl(tmp_path / "a.jsonl", rows))
    delay = loaded.rows["reply_time_diff_seconds"]
    assert [None if pd.isna(x) else x for x in delay] == [*(s[2] for s in stamps), 5]
    assert loaded.counts == {
        "computed_delays": 6,
        "incomparable_times": 3,
        "unknown_reply_created_at": 1,
    }
    assert loaded.rows["reply_created_at"][3] == "2018-10-10T20:20:24Z"  # a form that rewards read
    assert loaded.rows["reply_created_at"][0] == "2024-01-01T10:01:30Z"


def test_two_columns_that_could_be_one_field_are_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [r | {"Reply ": 3} for r in ROWS])
    with pytest.raises(UserError, match="'Reply ' and 'reply' could both be reply"):
        read.load(path)[:2]
    path = jsonl(tmp_path / "a.jsonl", [r | {"text": "words", "body": "x"} for r in ROWS])
    with pytest.raises(UserError, match="maps 'text' and 'body' to 'reply'"):
        read.load(path, {"text": "reply", "body": "reply"})[:2]
    loaded = read.load(path, {"text": "reply"})
    assert (loaded.rows["reply"] == "words").all()
    assert loaded.notes == [
        "column 'reply' of the file is not used: data.columns maps 'text' to it"
    ]


def test_the_corpus_form_is_a_list_of_replies(tmp_path):
    nested = {"tweet_id": "p", "topic": "t", "tweet": "x", "replies": [{}]}
    assert read.is_corpus(jsonl(tmp_path / "a.jsonl", ["", "{", nested]))
    assert not read.is_corpus(jsonl(tmp_path / "a.jsonl", [r | {"replies": 4} for r in ROWS]))
    assert not read.is_corpus(jsonl(tmp_path / "a.jsonl", []))
    with pytest.raises(UserError, match="rows of replies or posts with a list of replies"):
        read.is_corpus(jsonl(tmp_path / "a.jsonl", [r | {"replies": [1]} for r in ROWS]))


def test_hostile_text_stays_and_control_characters_go(tmp_path):
    hostile = "<script>alert(1)</script> <|im_end|> =1+1 {{x}} 한국 e\u0301 \u202eabc"
    row = record(0, 0, reply=f"\x07{hostile}\r\nnext \ud83d end\x9f")
    (kept,) = read.load(jsonl(tmp_path / "a.jsonl", [json.dumps(row)])).rows["reply"]
    assert kept == unicodedata.normalize("NFC", hostile) + "\nnext \ufffd end"
    kept.encode("utf-8")


def test_normalise_is_idempotent():
    for text in ("a\r\rb", "\ud800", "e\u0301\x00", "  x  "):
        assert texts.normalise(texts.normalise(text)) == texts.normalise(text)
