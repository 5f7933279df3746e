"""The whole way of the data, on the bundled corpus, a user's file, and real threads where they lie near."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import json
import math
import shutil
import types

import pandas as pd
import pytest
from conftest import ROOT
from data_rows import data, jsonl, record, threads

from polylib.data import prepare, read, simulate, split
from polylib.run import Paths, UserError

CORPUS = ROOT / "polylib" / "data" / "corpus.jsonl"
SHARED = ROOT.parent / "shared" / "data"


def config(**changes):
    return types.SimpleNamespace(data=data(**changes))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    paths = Paths("study", tmp_path_factory.mktemp("project"))
    return prepare.prepare(config(), CORPUS, paths), paths


def test_corpus_is_simulated_and_written(corpus):
    made, paths = corpus
    manifest = json.loads((paths.results("data") / "manifest.json").read_text())
    assert manifest["engagement"] == "simulated"
    assert manifest["simulator"] == {"seed": 11} | dataclasses.asdict(simulate.Simulator())
    assert manifest["thresholds"]["near_duplicate"] == 0.9
    for name, digest in manifest["sha256"].items():
        path = CORPUS if name == "source" else paths.data / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert manifest["read"] == 3671 == manifest["kept"] + sum(manifest["rejects"].values())
    pd.testing.assert_frame_equal(prepare.load_rows(paths), made.rows)
    pd.testing.assert_frame_equal(prepare.load(paths, "preferences"), made.preferences)
    pd.testing.assert_frame_equal(prepare.load(paths, "truth"), made.truth)
    assert set(made.truth["reply_id"]) == set(made.rows["reply_id"])


def test_secret_stays_in_truth(corpus):
    made, paths = corpus
    for name in ("rows.parquet", "preferences.parquet"):
        assert not {"style", "latent", "topic"} & set(pd.read_parquet(paths.data / name).columns)
    assert set(made.rows.columns) == {*read.COLUMNS, "split", "phase", "engagement", "quartile"}


def test_metrics_are_numbers_that_add_up(corpus):
    made, paths = corpus
    metrics = json.loads((paths.results("data") / "metrics.json").read_text())

    def leaves(value):
        return (
            [x for v in value.values() for x in leaves(v)] if isinstance(value, dict) else [value]
        )

    assert all(isinstance(x, int) for x in leaves(metrics))
    assert (
        metrics["replies"]
        == len(made.rows)
        == sum(metrics[name]["replies"] for name in split.SPLITS)
    )
    assert metrics["train"]["posts"] == metrics["train_sft"]["posts"] + metrics["train_rl"]["posts"]
    assert metrics["pairs"] == len(made.preferences)


def test_reject_table_survives_hostile_text(tmp_path):
    hostile = 'gm "quoted", =cmd|\'\nline'
    paths = Paths("x", tmp_path)
    rows = [*threads(60), record(0, 99, reply=hostile), record(1, 99, reply_likes="x")]
    prepare.prepare(config(), jsonl(tmp_path / "mine.jsonl", rows), paths)
    with (paths.results("data") / "rejects.csv").open(newline="", encoding="utf-8") as lines:
        table = {
            row["reason"]: (row["count"], json.loads(row["examples"]))
            for row in csv.DictReader(lines)
        }
    assert table == {
        "spam_words": ("1", [hostile]),
        "malformed": ("1", ["row 242: reply_likes is 'x', not a number"]),
    }


def test_no_cell_of_the_reject_table_is_a_formula(tmp_path):
    starts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a;=1+1|@x", "wink ;-)"]
    rows = [*threads(60), *(record(k, 99, reply=f"{s} gm") for k, s in enumerate(starts[-3:]))]
    rows += [record(k, 98, reply_likes=s) for k, s in enumerate(starts[2:5])]
    rows += [record(k, 97, reply_likes=1, reply_id=s, tweet="other") for k, s in enumerate(starts)]
    paths = Paths("x", tmp_path)
    made = prepare.prepare(config(), jsonl(tmp_path / "mine.jsonl", rows), paths)
    text = (paths.results("data") / "rejects.csv").read_text()
    for sign in ",;|\t":  # whatever a spreadsheet takes for the end of a cell
        cells = [cell for row in csv.reader(text.splitlines(), delimiter=sign) for cell in row]
        assert not [c for c in cells if c.lstrip('"').startswith(tuple("=+-@\t\r"))]
    shown = [json.loads(row["examples"]) for row in csv.DictReader(text.splitlines())]
    assert shown == made.rejects["examples"].tolist()
    assert any("a;=1+1|@x gm" in e for e in shown)


def test_the_manifest_says_how_the_file_was_understood_and_what_is_switched_off(tmp_path):
    rows = [row | {"reply_author_followers": "N/A", "lang": None} for row in threads(60)]
    path = tmp_path / "mine.csv"
    path.write_text(pd.DataFrame(rows).to_csv(index=False, sep=";"))
    made = prepare.prepare(config(language="any"), path, Paths("x", tmp_path))
    manifest = made.manifest
    assert manifest["input"] == {"unknown_reply_author_followers": 240}
    said = dict(note.split(" ", 1) for note in manifest["notes"])
    assert "semicolons" in said["columns"] and "row 2 is 'N/A'" in said["reply_author_followers:"]
    assert "all of 240 replies: engagement is not controlled" in said["reply_author_followers"]
    assert "bots" in said["reply_author"] and "guessed" in said["lang"]
    assert "reply_time_diff_seconds" not in said


def test_a_number_of_replies_beside_the_likes_is_no_corpus(tmp_path):
    rows = [row | {"replies": 3} for row in threads(60)]
    made = prepare.prepare(config(), jsonl(tmp_path / "mine.jsonl", rows), Paths("x", tmp_path))
    assert made.manifest["engagement"] == "observed" and made.manifest["kept"] == 240


def test_observed_data_has_an_empty_truth(tmp_path):
    paths = Paths("x", tmp_path)
    made = prepare.prepare(config(), jsonl(tmp_path / "mine.jsonl", threads(60)), paths)
    assert made.truth is None
    assert made.manifest["engagement"] == "observed" and made.manifest["simulator"] == {}
    empty = prepare.load(paths, "truth")
    assert empty.empty and list(empty.columns) == list(prepare.TRUTH)
    assert made.manifest["source"] == "mine.jsonl"


def test_same_input_same_bytes(tmp_path):
    written = []
    for name in ("a", "b"):
        paths = Paths(name, tmp_path)
        prepare.prepare(config(max_posts=60), CORPUS, paths)
        files = [*paths.data.iterdir(), *paths.results("data").iterdir()]
        written.append({f.name: f.read_bytes() for f in files})
    assert written[0] == written[1] and len(written[0]) == 7


def test_failure_writes_nothing(tmp_path):
    paths = Paths("x", tmp_path / "project")
    with pytest.raises(UserError):
        prepare.prepare(config(min_chars=250), CORPUS, paths)
    assert not (tmp_path / "project").exists()
    with pytest.raises(UserError, match="run notebook 01_data"):
        prepare.load_rows(paths)


def test_posts(corpus):
    rows = corpus[0].rows
    every = prepare.posts(rows, "train", gold_per_post=2)
    assert len(every) == rows.loc[rows["split"] == "train", "tweet_id"].nunique()
    halves = [{p.id for p in prepare.posts(rows, "train", phase)} for phase in ("sft", "rl")]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == {p.id for p in every}
    assert prepare.posts(rows, "train", "all", gold_per_post=2, limit=7) == every[:7]
    post = every[0]
    mine = rows[rows["tweet_id"] == post.id].set_index("reply")
    assert set(post.replies) == set(mine.index) and post.text == mine["tweet"].iloc[0]
    engagement = mine.loc[list(post.replies), "engagement"].tolist()
    assert engagement == sorted(engagement, reverse=True) and post.gold == post.replies[:2]
    assert post.engagement == pytest.approx(
        sum(math.log(1 + n) for n in mine["reply_likes"]) / len(mine)
    )
    assert [p.id for p in every] != sorted(p.id for p in every)
    with pytest.raises(UserError, match="no posts in split 'exam'"):
        prepare.posts(rows, "exam")
    assert len(prepare.posts(rows, "train", limit=len(every))) == len(every)
    with pytest.raises(UserError, match=f"'train' holds {len(every)} posts and {len(every) + 1} "):
        prepare.posts(rows, "train", limit=len(every) + 1)


@pytest.mark.parametrize("name", ["rows", "preferences", "truth"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        *(
            lambda content, at=at: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
            for at in (0, 40, 400, -40, -1)
        ),
        None,
    ],
    ids=range(9),
)
def test_a_damaged_data_file_is_set_aside_and_named(corpus, tmp_path, name, damage, capsys):
    paths = Paths("copy", tmp_path)
    shutil.copytree(corpus[1].data, paths.data)
    file = paths.data / f"{name}.parquet"
    file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
    with pytest.raises(UserError, match=rf"{name}\.parquet (was damaged|is missing)") as caught:
        prepare.load_rows(paths)
    assert "run notebook 01_data or `dvc repro`" in str(caught.value) and not file.exists()
    assert ("set aside as" in capsys.readouterr().out) == bool(damage)
    shutil.copy(corpus[1].data / file.name, file)
    pd.testing.assert_frame_equal(prepare.load_rows(paths), corpus[0].rows)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pheme_root_en.jsonl.gz", {"max_posts": 0}),
        ("stackexchange_small.jsonl.gz", {"max_chars": 600}),
    ],
)
def test_real_threads(tmp_path, name, changes):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not beside this checkout; it may not be copied into the project")
    source = tmp_path / name  # the first lines are enough here
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as real:
        lines = real.readlines()[:1500]
    with gzip.open(source, "wt", encoding="utf-8") as out:
        out.writelines(lines)
    made = prepare.prepare(config(**changes), source, Paths("real", tmp_path))
    assert made.manifest["engagement"] == "observed"
    assert made.manifest["read"] == 1500 == len(made.rows) + made.rejects["count"].sum()
    assert set(made.rows["split"]) == set(split.SPLITS) and len(made.preferences) > 50
    split.assert_disjoint(made.rows)
    assert all(p.gold for p in prepare.posts(made.rows, "test"))
