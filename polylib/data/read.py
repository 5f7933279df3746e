"""Rows in: records of a file (see `files`) or a hub data set, checked field by field, into one schema.

A file that cannot be understood stops with one line. A single bad row does not: it is kept aside with its
number and its fault, and only if more than MAX_MALFORMED of all rows are bad the file as a whole is refused.
A row is bad for what training needs (REFUSING); any other field that cannot be read is unknown, and counted.
"""

from __future__ import annotations

import difflib
import html
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from polylib.data import files
from polylib.data import text as texts
from polylib.data.adapters import adapt
from polylib.data.files import MAX_MALFORMED, Broken, example
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
REFUSING = (*REQUIRED, "thread_id")  # without its thread a post could stand in two splits
IDS = ("tweet_id", "reply_id", "thread_id", "tweet_author", "reply_author")
AUTHORS = ("tweet_author", "reply_author")
TIMES = ("tweet_created_at", "reply_created_at", "collected_at")
MAX_TEXT = 2**17  # characters of one field; the csv module's own limit
MALFORMED = ("row", "field", "problem", "example")


# what spreadsheets and floats make of a long id: 1.70000E+18, 1.7000000000000003e+18, 1700000000000000000.0
_FLOAT_ID = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?[eE]\+\d+|\d{16,}\.0*)")
_ZONE = re.compile(r"^\d{9,}|(?:Z|UTC|GMT|[+-]\d\d:?\d\d(?: \d{4})?)$")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_PLACEHOLDERS = frozenset(
    "anonymous deleted n/a na nan nil none null removed suspended unknown - ?".split()
)


class Loaded(NamedTuple):
    """What `load` returns. rows: one line a reply, columns COLUMNS; text and ids are strings (NaN where unknown),
    reply_likes int64, the other numbers float64 with NaN where unknown, reply_time_diff_seconds in seconds. malformed:
    row (line of a JSONL or CSV file, else record number; from 1), field, problem, example. notes: sentences on how the
    file was understood. counts: `unescaped` texts with HTML entities, `computed_delays`, `incomparable_times`,
    `unknown_<field>`."""

    rows: pd.DataFrame
    malformed: pd.DataFrame
    notes: list[str]
    counts: dict[str, int]


def load(
    path: str | Path,
    columns: dict[str, str] | None = None,
    adapter: dict | None = None,
    aside: list | None = None,
) -> Loaded:
    """Read a file or a hub data set (`hub.hub_rows`). `columns` maps the user's names to the schema's, `adapter`
    makes one record a reply of rows of another shape, and what is no reply is added to `aside` (`adapters.adapt`).

    Raises UserError for a missing or unreadable file, a missing required column, a wrong column map, or more than
    MAX_MALFORMED malformed rows (naming the first)."""
    columns = columns or {}
    _check_map(columns)
    good, numbers, bad, notes, seen, earlier = [], [], [], [], set(), {}
    counts, unreadable = Counter(), {}
    for number, record in adapt(records(path, notes), columns, adapter, aside):
        if isinstance(record, Broken):
            bad.append((number, "", record.problem, record.example))
            continue
        seen |= record.keys()
        row, faults = _check(_rename(record, columns) if columns else record, counts)
        fatal = next((fault for fault in faults if fault[0] in REFUSING), None)
        if not fatal:
            for field, problem in faults:
                counts[f"unknown_{field}"] += 1
                unreadable.setdefault(field, f"row {number} {problem}")
            fatal = _conflict(number, row, earlier)
        if fatal:
            bad.append((number, *fatal, example(record)))
        else:
            good.append(row)
            numbers.append(number)
    _refuse(path, len(good) + len(bad), seen, columns, sorted(bad))
    notes += [
        f"column {name!r} of the file is not used: data.columns maps {source!r} to it"
        for source, name in columns.items()
        if name in seen and name not in columns
    ]
    rows = typed(pd.DataFrame(good, columns=list(COLUMNS)))
    rows = _with_times(rows, numbers, counts, unreadable)
    notes += _said(counts, unreadable)
    return Loaded(rows, pd.DataFrame(sorted(bad), columns=list(MALFORMED)), notes, dict(+counts))


def first_record(path: str | Path) -> dict:
    """The first record of a file that parses, to tell its format; {} when there is none."""
    return next((record for _, record in records(path) if not isinstance(record, Broken)), {})


def is_corpus(path: str | Path) -> bool:
    """Does the file hold posts with a list of replies each, as the bundled corpus does? A number of replies beside
    the likes is no such list. UserError for a file that is both: rows of replies, with a list under replies."""
    record = first_record(path)
    if not isinstance(record.get("replies"), list):
        return False
    if all(name in record for name in REQUIRED):
        raise UserError(
            f"{path}: is it rows of replies or posts with a list of replies? It has reply_id, reply and "
            "reply_likes, and a list under replies: remove one of the two"
        )
    return True


def records(
    path: str | Path, notes: list[str] | None = None
) -> Iterator[tuple[int, dict | Broken]]:
    """(number, record) pairs as they stand in the source, unchecked; UserError if it cannot be opened.
    `notes` gathers what was found out about the file."""
    if str(path).startswith("hub:"):
        yield from enumerate(hub_rows(str(path)), 1)
    else:
        yield from files.records(Path(path), [] if notes is None else notes)


def _check_map(columns: dict[str, str]) -> None:
    for name, times_mapped in Counter(columns.values()).items():
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1, 0)[0]
            raise UserError(
                f"data.columns maps to {name!r}, no field of the schema; did you mean {near!r}?"
            )
        if times_mapped > 1:
            first, second, *_ = (source for source in columns if columns[source] == name)
            raise UserError(f"data.columns maps {first!r} and {second!r} to {name!r}: remove one")


def _rename(record: dict, columns: dict[str, str]) -> dict:
    kept = {name: value for name, value in record.items() if name not in columns.values()}
    return kept | {target: record[name] for name, target in columns.items() if name in record}


def _check(record: dict, counts: Counter) -> tuple[dict, list[tuple[str, str]]]:
    """(row with None where unknown, its faults as (field, problem))."""
    row, faults = dict.fromkeys(COLUMNS), []
    for name, value in record.items():
        if name not in row or value is None or value == "" or value != value:
            continue
        if name in NUMBERS:
            row[name], problem = _number(value, whole=name in COUNTS, signed=name in SIGNED)
        else:
            row[name], problem = _text(name, value, counts)
        if problem:
            faults.append((name, problem))
    named = {name for name, _ in faults}
    faults += [(n, "is missing or empty") for n in REQUIRED if row[n] is None and n not in named]
    row["thread_id"] = row["thread_id"] or row["tweet_id"]
    return row, faults


def _text(name: str, value: object, counts: Counter) -> tuple[str | None, str]:
    if isinstance(value, bytes):
        return None, "is binary and not UTF-8"
    if isinstance(value, float | bool | dict | list):
        hint = " (large ids lose digits as floats: quote them)" * isinstance(value, float)
        return None, f"is a {type(value).__name__}, not text{hint}"
    value = str(value)
    if len(value) > MAX_TEXT:
        return None, f"has {len(value)} characters, more than {MAX_TEXT}"
    if name in ("tweet", "reply") and "&" in value:
        written = value
        value = _ENTITY.sub(
            lambda entity: html.unescape(entity[0]), value
        )  # once: &amp;lt; is &lt;
        counts["unescaped"] += value != written
    value = texts.normalise(value)
    if name in IDS and not value.isalnum() and _FLOAT_ID.fullmatch(value):
        return None, f"is {value[:40]!r} (large ids lose digits as floats: export them as text)"
    if name in AUTHORS and value.strip("[]()<>@ ").lower() in _PLACEHOLDERS:
        return None, f"is {value[:40]!r}, no author"
    return value or None, ""


def _number(value: object, whole: bool, signed: bool) -> tuple[float | None, str]:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= 2**53:
        comma = isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+,[\d.,]*\d", value.strip())
        hint = "; write 1234.5, without a comma" if comma else ""
        return None, f"is {str(value)[:40]!r}, not a number{hint}"
    if number < 0 and not signed:
        return None, f"is {number:g}, but cannot be negative"
    if whole and number != int(number):
        return None, f"is {number:g}, but must be a whole number"
    return number, ""


def _conflict(number: int, row: dict, earlier: dict) -> tuple[str, str] | None:
    """(field, problem) where a row contradicts an earlier one: an id twice, or one post with two texts or threads.
    earlier: the row number of each reply, and the number, text and thread of each post."""
    reply, post = ("reply", row["reply_id"]), ("post", row["tweet_id"])
    first, *said = earlier.setdefault(post, (number, row["tweet"], row["thread_id"]))
    if reply in earlier:
        return "reply_id", f"{row['reply_id']} was already used in row {earlier[reply]}"
    for field, text in zip(("tweet", "thread_id"), said):
        if row[field] != text:
            return field, f"differs from row {first}, which has the same tweet_id"
    earlier[reply] = number
    return None


def _refuse(path, total: int, seen: set[str], columns: dict[str, str], bad: list) -> None:
    """UserError for a file that cannot be understood, in the order in which its user would repair it."""
    if not total:
        raise UserError(f"{path}: holds no rows; nothing to train on")
    has = texts.normalise(", ".join(sorted(map(str, seen))[:20]))
    own = [name for name in COLUMNS if name not in columns.values()]
    for name in [name for name in (*own, *columns) if name in seen]:
        alike = sorted(n for n in seen if str(n).strip().casefold() == name.strip().casefold())
        if len(alike) > 1:
            raise UserError(
                f"{path}: columns {alike[0]!r} and {alike[1]!r} could both be {name}: rename or remove one"
            )
    for name in [name for name in columns if seen and name not in seen]:
        raise UserError(f"{path}: data.columns names {name!r}; the file has {has}")
    missing = [name for name in REQUIRED if name in own and name not in seen]
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


def _with_times(
    rows: pd.DataFrame, numbers: list[int], counts: Counter, unreadable: dict[str, str]
) -> pd.DataFrame:
    """Timestamps in ISO 8601, unknown where they cannot be read. Where only the delay is unknown it is the time
    between the two, if that is not negative, both hold a time of day, and both or neither a time zone."""
    points = {name: times(rows[name]) for name in TIMES}
    zoned = {name: rows[name].str.contains(_ZONE, na=False) for name in TIMES}
    for name, point in points.items():
        written = rows[name]
        lost = written.notna() & point.isna()
        if lost.any():
            first = lost.idxmax()
            counts[f"unknown_{name}"] += int(lost.sum())
            problem = f"is {written[first][:40]!r}, no time of a known form"
            unreadable[name] = f"row {numbers[first]} {problem}"
        foreign = point.notna() & ~written.str.match(r"\d{4}-", na=False)
        iso = point.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        rows[name] = written.mask(lost).mask(foreign, iso)
    begin, end = TIMES[:2]
    at = rows["reply_time_diff_seconds"].isna() & points[begin].notna() & points[end].notna()
    delay = (points[end] - points[begin]).dt.total_seconds()[at]
    clock = rows[begin].str.contains(":", na=False) & rows[end].str.contains(":", na=False)
    delay = delay.where(clock & (zoned[begin] == zoned[end]) & (delay >= 0))
    counts["computed_delays"] = int(delay.notna().sum())
    counts["incomparable_times"] = int(delay.isna().sum())
    rows.loc[at, "reply_time_diff_seconds"] = delay
    return rows


def times(stamps: pd.Series) -> pd.Series:
    """Points of time (UTC) from ISO 8601, Twitter's own format, or seconds or milliseconds since 1970; else NaT."""
    number = stamps.str.fullmatch(r"\d{9,10}(?:\.\d+)?|\d{12,13}", na=False)
    seconds = pd.to_numeric(stamps.where(number)).astype("float64")
    seconds = seconds.where(seconds < 1e11, seconds / 1000)
    found = pd.to_datetime(seconds, unit="s", utc=True)
    for form in ("ISO8601", "%a %b %d %H:%M:%S %z %Y"):
        left = stamps[found.isna() & stamps.notna()]
        read = pd.to_datetime(left, format=form, utc=True, errors="coerce")
        found = found.fillna(read.astype(found.dtype))
    return found


def _said(counts: Counter, unreadable: dict[str, str]) -> list[str]:
    said = {
        f"{field}: {counts[f'unknown_{field}']} could not be read and count as unknown (first: {where})": True
        for field, where in sorted(unreadable.items())
    } | {
        f"HTML entities such as &amp; were unescaped in {counts['unescaped']} texts": counts[
            "unescaped"
        ],
        f"{counts['computed_delays']} delays were computed from the two timestamps": counts[
            "computed_delays"
        ],
        f"{counts['incomparable_times']} delays stay unknown: the reply is dated before its post, or only one of "
        "the two has a time zone": counts["incomparable_times"],
    }
    return [sentence for sentence, holds in said.items() if holds]


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The schema's columns in order and in their types (see `Loaded`)."""
    types = {name: "float64" if name in NUMBERS else "str" for name in COLUMNS}
    return frame[list(COLUMNS)].astype(types).astype({"reply_likes": "int64"})
