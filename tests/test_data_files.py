"""Files as people's programs write them: every dialect gives the same rows, a fault costs its row and is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_rows import record

from polylib.data import files, read
from polylib.run import UserError

ROWS = [
    record(p, r, reply_author=f"a{p}", reply_likes=r, reply_author_followers=10 * r)
    for p in range(30)
    for r in range(4)
]
HEADER = list(ROWS[0])


def lines(rows=ROWS, **dialect) -> list[str]:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", **dialect)
    writer.writerows([HEADER, *(row.values() for row in rows)])
    return out.getvalue().splitlines(keepends=True)


def load(tmp_path, content: str | bytes | list[str], name="a.csv") -> read.Loaded:
    content = "".join(content) if isinstance(content, list) else content
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read.load(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    loaded = load(tmp_path_factory.mktemp("plain"), lines())
    assert loaded.notes == [] and len(loaded.rows) == len(ROWS)
    return loaded.rows


def stray(text: list[str], at: int, before: int = 3) -> None:
    """A quote in front of a field of line `at` (from 1)."""
    fields = text[at - 1].split(",")
    fields[before] = '"' + fields[before]
    text[at - 1] = ",".join(fields)


@pytest.mark.parametrize("at", [[60], [20, 100], [20, 21], [121], [2, 3, 4], [50, 51, 52, 110]])
def test_a_stray_quote_costs_its_own_row(tmp_path, plain, at):
    text = lines()
    for line in at:
        stray(text, line)
    rows, bad, *_ = load(tmp_path, text)
    assert bad["row"].tolist() == at and bad["problem"].str.contains("quote").all()
    pd.testing.assert_frame_equal(rows, plain.drop([k - 2 for k in at]).reset_index(drop=True))


def test_strays_that_close_each_other_like_a_text_of_many_lines(tmp_path, plain):
    text = lines()
    stray(text, 40)
    fields = text[109].split(",")
    text[109] = ",".join([*fields[:3], fields[3] + '"', *fields[4:]])  # as a right quote would
    rows, bad, *_ = load(tmp_path, text)
    assert bad["row"].tolist() == [40]
    assert len(rows) == len(ROWS) - 1 and rows["reply"].str.contains('"').sum() == 1


def test_texts_of_many_lines_are_one_row(tmp_path):
    texts = ["one\ntwo, three", 'a "quoted"\n\nword', "x,\n" * 30 + "end", "last"]
    rows = [row | {"reply": texts[k % 4]} for k, row in enumerate(ROWS)]
    loaded = load(tmp_path, lines(rows))
    assert loaded.rows["reply"].tolist() == [row["reply"] for row in rows]
    assert not len(loaded.malformed)


def test_a_quote_among_texts_of_many_lines(tmp_path):
    rows = [row | {"reply": "one\ntwo"} for row in ROWS]
    text = lines(rows)
    text[2] = text[2].replace('"', "")  # the first row's text never ends
    rows, bad, *_ = load(tmp_path, text)
    assert len(rows) == len(ROWS) - 1 and bad["row"].tolist() == [2, 3]


def test_random_quotes_never_lose_another_row(tmp_path):
    draw = random.Random(5)
    path = tmp_path / "a.csv"
    whole = [{name: str(value) for name, value in row.items()} for row in ROWS]
    for _ in range(100):
        text = lines()
        hit = draw.sample(range(2, len(text) + 1), draw.randrange(1, 6))
        for line in hit:
            place = draw.randrange(len(text[line - 1]))
            text[line - 1] = text[line - 1][:place] + '"' + text[line - 1][place:]
        path.write_text("".join(text))
        found = dict(files.records(path, []))
        assert list(found) == list(range(2, len(ROWS) + 2))
        assert all(found[k] == row for k, row in enumerate(whole, 2) if k not in hit)


def test_backslashes_for_quotes_are_refused_with_the_remedy(tmp_path):
    rows = [row | {"reply": f'he said "{row["reply"]}", twice'} for row in ROWS]
    text = lines(rows, doublequote=False, escapechar="\\")
    with pytest.raises(
        UserError, match=r'a\.csv, row 2: .* doubled \(""\), not written \\"; 120 of'
    ):
        load(tmp_path, text)


def test_a_record_of_too_many_lines_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SPAN", 10)
    rows = [dict(row) for row in ROWS]
    rows[3]["reply"], rows[4]["reply"] = "x\n" * 9 + "fits", "x\n" * 10 + "does not"
    path = tmp_path / "a.csv"
    path.write_text("".join(lines(rows)))
    found = [record for _, record in files.records(path, [])]
    assert found[3]["reply"] == rows[3]["reply"] and isinstance(found[4], files.Broken)
    assert found[-1]["reply"] == rows[-1]["reply"] and len(found) == len(ROWS) + 10


TAB = lines(delimiter="\t")


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (lines(delimiter=";"), "divided by semicolons"),
        (TAB, "divided by tabs"),
        (lines(delimiter="|"), "divided by bars"),
        (["sep=,\n", *lines()], ""),
        (["sep=;\r\n", *lines(delimiter=";")], "divided by semicolons"),
        (["sep=\t\n", *TAB], "divided by tabs"),
        ([line.replace("\n", "\r") for line in lines()], ""),
        ([line.replace("\n", "\r\n") for line in lines()], ""),
        ([line.replace("\n", ",\n") for line in lines()], ""),
        ([f"{k},{line}" if k else f",{line}" for k, line in enumerate(lines())], ""),
        ([line.replace(",", ", ") for line in lines()], ""),
        ([", ".join(f'"{x.strip()}"' for x in line.split(",")) + "\n" for line in lines()], ""),
        ([line + ",,,,,,,\n\n" for line in lines()], ""),
        (lines(quoting=csv.QUOTE_ALL), ""),
        ("\ufeff" + "".join(lines()), ""),
        ("\n\n" + "".join(lines()), ""),
        ("".join(TAB).encode("utf-16"), "read as utf-16"),
        ("".join(lines()).encode("utf-16-le"), "read as utf-16-le"),
        ("".join(lines()).encode("utf-16-be"), "read as utf-16-be"),
    ],
)
def test_a_dialect_is_read_and_said(tmp_path, plain, content, note):
    loaded = load(tmp_path, content)
    pd.testing.assert_frame_equal(loaded.rows, plain)
    assert not len(loaded.malformed) and note in " ".join(loaded.notes)
    assert bool(note) == bool(loaded.notes)


def test_windows_text_is_read_and_said_and_another_code_page_is_refused(tmp_path):
    french = [row | {"reply": row["reply"] + " déjà “vu”"} for row in ROWS]
    loaded = load(tmp_path, "".join(lines(french)).encode("cp1252"))
    assert loaded.rows["reply"].tolist() == [row["reply"] for row in french]
    assert loaded.notes == ["the file is not UTF-8 and was read as cp1252"]
    russian = [
        row | {"reply": "совсем другой язык", "tweet": "это не по-английски"} for row in ROWS
    ]
    with pytest.raises(UserError, match="line 2 is not UTF-8: save it as UTF-8"):
        load(tmp_path, "".join(lines(russian)).encode("cp1251"))


def test_a_comma_in_a_number_is_not_guessed(tmp_path):
    rows = [row | {"reply_likes": "1,234"} for row in ROWS]
    with pytest.raises(UserError, match="'1,234', not a number; write 1234.5, without a comma"):
        load(tmp_path, lines(rows, delimiter=";"))
    rows = [row | {"reply_author_followers": "1,5"} for row in ROWS]
    loaded = load(tmp_path, lines(rows, delimiter=";"))
    assert loaded.counts == {"unknown_reply_author_followers": len(ROWS)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tweet_id,tweet,reply_id;reply;reply_likes\n1\n", "commas or semicolons divide"),
        ("tweet_id,tweet,reply_id,reply,reply,reply_likes\n1\n", "'reply' occurs twice"),
        ('tweet_id,"tweet,reply_id\n1,2,3\n', "cannot be read"),
    ],
)
def test_a_header_that_means_two_things_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_shifted_row_does_not_pass_under_a_nameless_last_column(tmp_path):
    text = [line.replace("\n", ",\n") for line in lines()]
    text[7] = text[7].replace(" ", ", ", 1).replace(",\n", "\n")  # a comma in the text, unquoted
    (tmp_path / "a.csv").write_text("".join(text))
    found = dict(files.records(tmp_path / "a.csv", []))
    assert [number for number, record in found.items() if isinstance(record, files.Broken)] == [8]


def parquet(rows: list[dict], **columns) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, out)
    return out.getvalue()


def with_bad_byte(name: str) -> bytes:
    rows = [dict(row) for row in ROWS]
    rows[7]["reply"] = "café ~bad~"
    rows[8]["reply"] = "café crème"
    if name == "a.parquet":
        values = [row["reply"].encode().replace(b"~bad~", b"\xff") for row in rows]
        binary = pa.array(values, pa.binary())
        return parquet(rows, reply=pa.Array.from_buffers(pa.string(), len(rows), binary.buffers()))
    text = {
        "a.csv": "".join(lines(rows)),
        "a.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "a.json": json.dumps(rows, ensure_ascii=False),
    }[name]
    return text.encode().replace(b"~bad~", b"\xff")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_one_bad_byte_costs_its_row_in_every_format(tmp_path, name):
    rows, bad, *_ = load(tmp_path, with_bad_byte(name), name)
    assert len(rows) == len(ROWS) - 1 and "UTF-8" in bad["problem"][0].upper()
    assert rows["reply"][7] == "café crème"
    assert bad["row"].tolist() == [8 + (name == "a.csv")]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_one_huge_field_costs_its_row_in_every_format(tmp_path, name):
    rows = [dict(row) for row in ROWS]
    rows[7]["reply"] = "x" * (read.MAX_TEXT + 1)
    content = {
        "a.csv": "".join(lines(rows)),
        "a.jsonl": "\n".join(json.dumps(row) for row in rows),
        "a.json": json.dumps(rows, indent=1),
        "a.parquet": parquet(rows),
    }[name]
    rows, bad, *_ = load(tmp_path, content, name)
    assert len(rows) == len(ROWS) - 1 and "characters" in bad["problem"][0]


def test_binary_text_in_parquet_is_decoded(tmp_path, plain):
    binary = pa.array([row["reply"].encode() for row in ROWS], pa.binary())
    rows = load(tmp_path, parquet(ROWS, reply=binary), "a.parquet").rows
    pd.testing.assert_frame_equal(rows, plain)


@pytest.mark.parametrize(
    "name",
    "a.CSV a.csv.gz a.tsv A.TSV.GZ a.jsonl A.JSONL a.ndjson a.ndjson.gz a.json a.json.gz array.jsonl "
    "one.json a.pq A.Parquet utf16.jsonl".split(),
)
def test_every_suffix(tmp_path, plain, name):
    low = name.lower()
    if ".csv" in low or ".tsv" in low:
        content = "".join(lines(delimiter="\t" if ".tsv" in low else ",")).encode()
    elif low.endswith(("pq", "parquet")):
        content = parquet(ROWS)
    elif "array" in low or ".json." in low or low == "a.json":
        content = json.dumps(ROWS, indent=1 if ".json" in low else None).encode()
    else:
        content = "\n".join(map(json.dumps, ROWS)).encode("utf-16" if "utf16" in low else "utf-8")
    content = gzip.compress(content) if low.endswith(".gz") else content
    pd.testing.assert_frame_equal(load(tmp_path, content, name).rows, plain)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_flipped_byte_in_a_packed_file_is_one_line(tmp_path, name):
    text = "".join(lines()) if "csv" in name else "\n".join(map(json.dumps, ROWS))
    packed = gzip.compress(text.encode(), mtime=0)
    for at in range(10, len(packed), len(packed) // 20):
        broken = packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :]
        with pytest.raises(UserError, match=r"cannot be read|malformed|holds no rows") as caught:
            load(tmp_path, broken, name)
        assert "\n" not in str(caught.value)


def test_a_name_twice_in_one_object_is_a_bad_row(tmp_path):
    text = [json.dumps(row) for row in ROWS]
    text[3] = text[3][:-1] + ', "reply": "another"}'
    bad = load(tmp_path, "\n".join(text), "a.jsonl").malformed
    assert bad["row"].tolist() == [4] and "'reply' occurs twice" in bad["problem"][0]


def test_a_broken_array_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Unterminated"):
        load(tmp_path, json.dumps(ROWS)[:-40], "a.json")


def test_escape_sequences_of_a_terminal_reach_no_message(tmp_path):
    red = "\x1b[31mred\x9b"
    contents = {
        "a.csv": f"{red},{red}\n1,2\n",
        "b.csv": f"tweet_id,{red},{red}x\n",
        "c.jsonl": json.dumps({red: 1}) + "\n",
        "d.jsonl": json.dumps(record(0, 0, reply_likes=red)) + "\n",
        "e.csv": "".join(lines()) + f'p9,"{red}\n' * 20,
        "f.json": f"[{red}]",
        "g.jsonl": json.dumps(record(0, 0, tweet_created_at=red, reply_likes="\x1f-1")) + "\n",
    }
    for name, content in contents.items():
        with pytest.raises(UserError) as caught:
            load(tmp_path, content, name)
        assert str(caught.value).isprintable(), name
    bad = load(tmp_path, [*lines(), f"p9,{red}\n", f'p9,"{red}\n']).malformed
    assert len(bad) == 2 and all(text.isprintable() for text in bad["example"] + bad["problem"])
