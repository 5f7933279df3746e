"""Rows in: JSONL(.gz), CSV, Parquet or a hub data set, checked field by field, into one schema.

A file that cannot be understood stops with one line. A single bad row does not: it is kept aside with its
number and its fault, and only if more than MAX_MALFORMED of all rows are bad the file as a whole is refused.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from polylib.data import text as texts
from polylib.data.adapters import Broken, adapt
from polylib.data.hub import hub_rows
from polylib.run import UserError

SCHEMA = (
    "tweet_id",
    "tweet",
    "tweet_author",
    "tweet_likes",
    "tweet_retweets",
    "tweet_created_at",
    "reply_id",
    "reply",
    "reply_author",
    "reply_author_followers",
    "reply_likes",
    "reply_retweets",
    "reply_created_at",
    "reply_time_diff_seconds",
    "collected_at",
)
OPTIONAL = ("tweet_author_followers", "lang", "source", "thread_id")
COLUMNS = SCHEMA + OPTIONAL
REQUIRED = ("tweet_id", "tweet", "reply_id", "reply", "reply_likes")
COUNTS = (
    "tweet_likes",
    "tweet_retweets",
    "tweet_author_followers",
    "reply_likes",
    "reply_retweets",
    "reply_author_followers",
)
NUMBERS = (*COUNTS, "reply_time_diff_seconds")
SIGNED = ("tweet_likes", "reply_likes")  # scores of up- and downvotes go below 0
MAX_MALFORMED = 0.05
MALFORMED = ("row", "field", "problem", "example")


def read_rows(path: str | Path, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """The well-formed rows of a file in the schema COLUMNS; see `read` for the rest."""
    return read(path, columns)[0]


def read(
    path: str | Path,
    columns: dict[str, str] | None = None,
    adapter: dict | None = None,
    aside: list | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a file or a hub data set (`hub.hub_rows`). `columns` maps the user's names to the schema's, `adapter`
    makes one record a reply of rows of another shape, and what is no reply is added to `aside` (`adapters.adapt`).

    Returns (rows, malformed). rows: one line a reply, columns COLUMNS; text and ids are strings (NaN where
    unknown), reply_likes int64, the other numbers float64 with NaN where unknown, reply_time_diff_seconds in
    seconds. malformed: row (line of a JSONL or CSV file, else record number; from 1), field, problem,
    example. Raises UserError for a missing or unreadable file, a missing required column, a wrong column map,
    or more than MAX_MALFORMED malformed rows (naming the first).
    """
    columns = columns or {}
    for name in columns.values():
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1, 0)[0]
            raise UserError(
                f"data.columns maps to {name!r}, no field of the schema; did you mean {near!r}?"
            )
    good, bad, seen, total = [], [], set(), 0
    for number, record in adapt(records(path), columns, adapter, aside):
        total += 1
        if isinstance(record, Broken):
            bad.append((number, "", record.problem, record.example))
            continue
        seen |= record.keys()
        row, field, problem = _check(_rename(record, columns))
        if problem:
            bad.append((number, field, problem, _example(record)))
        else:
            good.append((number, row))
    good, conflicts = _conflicts(good)
    bad = sorted(bad + conflicts)
    _refuse(path, total, seen, columns, bad)
    rows = typed(pd.DataFrame([row for _, row in good], columns=list(COLUMNS)))
    return rows, pd.DataFrame(bad, columns=list(MALFORMED))


def first_record(path: str | Path) -> dict:
    """The first record of a file, to tell its format; {} when it has none that parses."""
    for _, record in records(path):
        return {} if isinstance(record, Broken) else record
    return {}


def records(path: str | Path) -> Iterator[tuple[int, dict | Broken]]:
    """(number, record) pairs as they stand in the source, unchecked; UserError if it cannot be opened."""
    if str(path).startswith("hub:"):
        yield from enumerate(hub_rows(str(path)), 1)
        return
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a .jsonl, .jsonl.gz, .csv or .parquet file, or "
            "hub:owner/name@revision"
        )
    try:
        if path.suffix == ".parquet":
            yield from enumerate(pq.read_table(path).to_pylist(), 1)
        elif path.suffix == ".csv":
            yield from _csv(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        elif path.name.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
                yield from _jsonl(lines)
        else:
            raise UserError(
                f"{path}: unknown format {path.suffix!r}; use .jsonl, .jsonl.gz, .csv, .parquet"
            )
    except (
        OSError,
        EOFError,
        csv.Error,
        ValueError,
    ) as error:  # pyarrow's and UTF-8 errors are ValueErrors
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read ({why}); is it complete, and UTF-8?") from error


def _jsonl(lines) -> Iterator[tuple[int, dict | Broken]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield number, Broken(f"not JSON: {error}", _example(line.decode(errors="replace")))
            continue
        yield (
            number,
            record if isinstance(record, dict) else Broken("not a JSON object", _example(record)),
        )


def _csv(lines) -> Iterator[tuple[int, dict | Broken]]:
    reader = csv.DictReader(lines)
    for record in reader:
        fits = None not in record and None not in record.values()
        yield (
            reader.line_num,
            record
            if fits
            else Broken(
                f"has not the {len(reader.fieldnames)} fields of the header",
                _example(list(record.values())),
            ),
        )


def _example(record: object) -> str:
    plain = (
        record if isinstance(record, str) else json.dumps(record, ensure_ascii=False, default=str)
    )
    return texts.normalise(plain[:200])


def _rename(record: dict, columns: dict[str, str]) -> dict:
    mapped = {target: record[name] for name, target in columns.items() if name in record}
    return {name: record.get(name) for name in COLUMNS if name not in columns.values()} | mapped


def _check(record: dict) -> tuple[dict, str, str]:
    """(row, "", "") or ({}, field, problem)."""
    row = {}
    for name in COLUMNS:
        value = record.get(name)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            value = None
        elif name in NUMBERS:
            value, problem = _number(value, whole=name in COUNTS, signed=name in SIGNED)
            if problem:
                return {}, name, problem
        else:
            if isinstance(value, float | bool | dict | list):
                return (
                    {},
                    name,
                    f"is a {type(value).__name__}, not text"
                    + (
                        " (large ids lose digits as floats: quote them)"
                        if isinstance(value, float)
                        else ""
                    ),
                )
            value = texts.normalise(str(value)) or None
        if value is None and name in REQUIRED:
            return {}, name, "is missing or empty"
        row[name] = value
    row["thread_id"] = row["thread_id"] or row["tweet_id"]
    return row, "", ""


def _number(value: object, whole: bool, signed: bool) -> tuple[float | None, str]:
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number) or abs(number) > 2**53:
        return None, f"is {str(value)[:40]!r}, not a number"
    if number < 0 and not signed:
        return None, f"is {str(value)[:40]}, but cannot be negative"
    if whole and number != int(number):
        return None, f"is {str(value)[:40]}, but must be a whole number"
    return number, ""


def _conflicts(good: list[tuple[int, dict]]) -> tuple[list, list]:
    """Rows that contradict an earlier one: an id twice, or one post with two texts or two threads."""
    kept, bad, replies, posts = [], [], {}, {}
    for number, row in good:
        first, tweet, thread = posts.setdefault(
            row["tweet_id"], (number, row["tweet"], row["thread_id"])
        )
        if row["reply_id"] in replies:
            problem = f"{row['reply_id']} was already used in row {replies[row['reply_id']]}"
            field = "reply_id"
        elif row["tweet"] != tweet:
            field, problem = "tweet", f"differs from row {first}, which has the same tweet_id"
        elif row["thread_id"] != thread:
            field, problem = "thread_id", f"differs from row {first}, which has the same tweet_id"
        else:
            replies[row["reply_id"]] = number
            kept.append((number, row))
            continue
        bad.append((number, field, problem, _example(row)))
    return kept, bad


def _refuse(path, total: int, seen: set[str], columns: dict[str, str], bad: list) -> None:
    if not total:
        raise UserError(f"{path}: holds no rows; nothing to train on")
    has = ", ".join(sorted(seen)[:20])
    for name in columns:
        if seen and name not in seen:
            raise UserError(f"{path}: data.columns names {name!r}; the file has {has}")
    missing = [name for name in REQUIRED if name not in seen and name not in columns.values()]
    if seen and missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; rename it, or map yours under data: "
            f"columns: in params (the file has {has})"
        )
    if len(bad) > MAX_MALFORMED * total:
        number, field, problem, _ = bad[0]
        raise UserError(
            f"{path}, row {number}: {f'{field} {problem}'.strip()}; {len(bad)} of {total} rows "
            f"are malformed (allowed {MAX_MALFORMED:.0%}): repair or remove them"
        )


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The schema's columns in order and in their types (see `read`)."""
    frame = frame[list(COLUMNS)].copy()
    for name in COLUMNS:
        frame[name] = frame[name].astype("float64" if name in NUMBERS else "str")
    return frame.astype({"reply_likes": "int64"})
