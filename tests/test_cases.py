"""Files that went wrong once, each with what becomes of it now: docs/what_was_thrown_at_it.md says which test without
these files holds the same. They are not part of this project: $POLYLIB_CASES or ../shared/cases is their folder."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from polylib import config, study
from polylib.data import read
from polylib.run import UserError

CASES = Path(os.environ.get("POLYLIB_CASES", ROOT.parent / "shared" / "cases"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")
LARGE = "large ids lose digits as floats: export them as text"
READ = {  # (rows, malformed, what was counted), or the line that refuses it
    "01_replies_column/tweets.csv": (300, 0, {}),
    "01_replies_column/tweets.jsonl": (300, 0, {}),
    "02_html_entities/tweets.csv": (300, 0, {"unescaped": 150}),
    "03_csv_unbalanced_quote/tweets.csv": (299, 1, {}),
    "03_csv_unbalanced_quote/tweets_two.csv": (298, 2, {}),
    "03_csv_unbalanced_quote/backslash.csv": r'row 2: .* not written \\"; 100 of 300 rows',
    "03_csv_unbalanced_quote/backslash_nocomma.csv": r'row 2: .* not written \\"; 100 of 300 rows',
    **{
        f"05_excel_scientific_ids/{name}.csv": LARGE
        for name in (
            "few_collisions",
            "only_reply_id_unique",
            "pandas_float_dense",
            "pandas_float_ids",
            "tweets",
        )
    },
    "07_gz_corrupt_body/flip.jsonl.gz": "cannot be read",
    **{
        f"08_suffixes/{name}": (300, 0, {})
        for name in (
            *("TWEETS.JSONL", "array.jsonl", "pretty.jsonl", "t.csv.gz", "t.json", "t.ndjson.gz"),
            "tweets.CSV",
        )
    },
    "08_suffixes/t.pq": "cannot be read",  # a file of one byte
    "08_suffixes/t.tsv": "holds no rows",  # a file of one byte
    "11_optional_field_unknown/delay_negative.csv": (
        300,
        0,
        {"unknown_reply_time_diff_seconds": 30},
    ),
    "11_optional_field_unknown/followers_na.csv": (300, 0, {"unknown_reply_author_followers": 30}),
    "12_parquet_bytes_text/d.parquet": (300, 0, {}),
    **{
        f"23_lang/{name}.csv": (300, 0, {})
        for name in ("EN", "English", "en-us", "eng", "und", "und_third")
    },
    **{
        f"50_csv_dialects/{name}.csv": (300, 0, {})
        for name in (
            *("blank_rows", "cr_only", "index_col", "nul", "sep_line", "space_after_comma"),
            "trailing_comma",
        )
    },
    "50_csv_dialects/upper_header.csv": "no column tweet_id, .*rename it, or map yours",
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_or_refused_in_one_line(name):
    if isinstance(READ[name], str):
        with pytest.raises(UserError, match=READ[name]) as caught:
            read.load(CASES / name)
        assert str(caught.value).isprintable()
        return
    loaded = read.load(CASES / name)
    assert (len(loaded.rows), len(loaded.malformed), loaded.counts) == READ[name]
    assert not loaded.rows["reply"].str.contains("&amp;|^b'", regex=True).any()


def test_every_file_has_its_verdict():
    groups = {name.split("/")[0] for name in READ}
    files = {
        path.relative_to(CASES).as_posix()
        for group in groups
        for path in (CASES / group).iterdir()
        if path.name != "README.md"
    }
    assert files == set(READ)
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == groups | {
        "30_study_name_collision",
        "32_presets",
        "33_chat_templates",  # test_models.py
        "40_resume_damaged_state",  # test_resume.py
        "60_judge_endpoint",  # test_rewards_llm.py
    }


def test_no_flipped_byte_of_a_packed_file_escapes(tmp_path):
    whole = (CASES / "08_suffixes/t.ndjson.gz").read_bytes()
    assert len(gzip.decompress(whole)) > len(whole)
    for at in range(10, len(whole), len(whole) // 40):
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"cannot be read|malformed|no column"):
            read.load(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("first", "second"),
    [("a/tweets", "b/tweets"), ("2024.01", "2024.02"), ("ответы", "推文")],
)
def test_two_files_are_two_studies(tmp_path, first, second):
    folder = CASES / "30_study_name_collision"
    (tmp_path / "params").symlink_to(ROOT / "params")
    names = [study.select("smoke", str(folder / f"{first}.csv"), tmp_path)["study"]]
    if "/" in first:
        with pytest.raises(UserError, match="is of other data"):
            study.select("smoke", str(folder / f"{second}.csv"), tmp_path)
    else:
        names.append(study.select("smoke", str(folder / f"{second}.csv"), tmp_path)["study"])
        assert len(set(names)) == 2 and "smoke-data" not in names


@pytest.mark.parametrize("name", ["it's.csv", "50%.csv", "tweets (1).csv"])
def test_a_name_that_a_shell_would_read_is_refused(tmp_path, name):
    (tmp_path / "params").symlink_to(ROOT / "params")
    with pytest.raises(UserError, match="rename it"):
        study.select("smoke", str(CASES / "30_study_name_collision" / name), tmp_path)


@pytest.mark.parametrize(
    ("file", "section", "key"),
    [
        ("big_seed", None, "seeds"),
        ("negative_seed", None, "seeds"),
        ("max_posts_neg", "data", "max_posts"),
        ("ndup", "data", "near_duplicate"),
        ("rank0", "model", "lora_rank"),
        ("tok0", "sampling", "max_new_tokens"),
    ],
)
def test_a_preset_is_refused_by_its_key(file, section, key):
    """Its one wrong value, in today's smoke preset: the files hold a setting that is gone."""
    wrong = yaml.safe_load((CASES / "32_presets" / f"{file}.yaml").read_text())
    values = config.resolved("smoke", ROOT)
    (values[section] if section else values)[key] = (wrong[section] if section else wrong)[key]
    with pytest.raises(UserError, match=f"{file}.yaml: {section + '.' if section else ''}{key}"):
        config._build({"preset": file, **values}, Path(f"{file}.yaml"))
