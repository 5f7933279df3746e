"""Raw rows of a file with their numbers: CSV, JSON lines, JSON arrays and Parquet, text also as .gz.

A bad row (a byte that is not UTF-8, an open quote, a wrong number of fields) is a `Broken` in its place; the
rows around it are read. A file whose columns or encoding could mean two things is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from polylib.data import text as texts
from polylib.run import UserError

FORMATS = ".jsonl, .ndjson, .json, .csv, .tsv (each also as .gz) or .parquet"
MAX_MALFORMED = 0.05
MAX_SPAN = 1000  # lines of one CSV record: a quote still open after so many is a stray one
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# what `surrogateescape` makes of a byte that is not UTF-8
_BAD_BYTE = re.compile("[\udc80-\udcff]")


class Broken(NamedTuple):
    """A record that does not parse."""

    problem: str
    example: str


def records(path: Path, notes: list[str]) -> Iterator[tuple[int, dict | Broken]]:
    """(number, record) pairs: the line a record begins on in CSV and JSON lines, else its number, from 1.

    Appends to `notes` what was found out about the file: a delimiter other than the comma, an encoding other
    than UTF-8. UserError if the file as a whole cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give {FORMATS}, or hub:owner/name@revision")
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        raw = path.read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
        match suffix:
            case ".parquet" | ".pq":
                yield from enumerate(_parquet(raw), 1)
            case ".csv" | ".tsv":
                yield from _csv(_decoded(raw, notes), notes)
            case ".jsonl" | ".ndjson" | ".json":
                yield from _json(_decoded(raw, notes, any_bytes=True))
            case _:
                raise UserError(f"{path}: unknown format {suffix!r}; use {FORMATS}")
    except (
        OSError,
        EOFError,
        csv.Error,
        ValueError,
        RecursionError,
        zlib.error,
        pa.ArrowException,
    ) as e:
        why = texts.normalise((str(e).splitlines() or [type(e).__name__])[0])
        raise UserError(f"{path}: cannot be read ({why}); is it complete, and UTF-8?") from e


def example(record: object) -> str:
    """A record's first 200 characters, fit for a table or a terminal."""
    text = isinstance(record, str)
    plain = record if text else json.dumps(record, ensure_ascii=False, default=str)
    return texts.normalise(plain[:200])


def _decoded(raw: bytes, notes: list[str], any_bytes: bool = False) -> str:
    """Text of a file; bytes that are not UTF-8 stay as surrogates where they are few, or all where `any_bytes`."""
    zeros = [raw[k:2000:2].count(0) for k in (0, 1)]
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif max(zeros) > min(len(raw), 2000) // 8:  # no mark, but every other byte is 0
        encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    else:
        text = raw.decode("utf-8-sig", "surrogateescape")
        lines = [] if any_bytes else text.splitlines()
        bad = [not line.isascii() and bool(_BAD_BYTE.search(line)) for line in lines]
        if sum(bad) <= MAX_MALFORMED * len(bad):
            return text
        # cp1252 knows 128 signs besides ASCII, in western texts every tenth letter at most
        often = 10 * len(_BAD_BYTE.findall(text)) > len(text)
        if often or re.search("[^\\x00-\\x7f\udc80-\udcff]", text):
            raise ValueError(f"line {bad.index(True) + 1} is not UTF-8: save it as UTF-8")
        encoding = "cp1252"
    notes.append(f"the file is not UTF-8 and was read as {encoding}")
    return raw.decode(encoding, "surrogatepass" if "16" in encoding else "strict")


def _csv(text: str, notes: list[str]) -> Iterator[tuple[int, dict | Broken]]:
    """Records by the rules of RFC 4180, quotes taken strictly. A record that spans lines is doubted if its
    lines look like records themselves; then its first line is broken and reading goes on with the second."""
    lines = list(io.StringIO(text, newline=""))
    at = next((k for k, line in enumerate(lines) if line.strip()), None)
    if at is None:
        return
    declared = re.fullmatch(r'"?sep=(.)"?', lines[at].rstrip("\r\n"))
    at += bool(declared and at + 1 < len(lines))
    delimiter = declared[1] if declared else _delimiter(lines[at])
    if delimiter != ",":
        notes.append(f"columns are divided by {_DELIMITERS.get(delimiter, repr(delimiter))}")
    dialect = {"delimiter": delimiter, "skipinitialspace": True, "strict": True}
    header = [name.strip() for name in next(csv.reader([lines[at]], **dialect))]
    _unique(header)
    at += 1

    def ahead(start: int) -> Iterator[str]:
        """Lines from one on, as many as one record may span: where it is longer, its quote is stray."""
        for k in range(start, len(lines)):
            if k - at >= MAX_SPAN:
                return
            yield lines[k]

    reader, first, damaged = None, at, bool(_BAD_BYTE.search(text))
    while at < len(lines):
        if reader is None:
            reader, first = csv.reader(ahead(at), **dialect), at
        try:
            fields, wrong = next(reader), ""
        except csv.Error as error:
            fields, wrong = [], str(error)
        span = lines[at : first + reader.line_num]
        if wrong or len(span) > 1 and _doubtful(span, len(fields), header, delimiter):
            yield at + 1, _torn(span[0], wrong)
            reader, at = None, at + 1
            continue
        if any(fields):
            yield at + 1, _row(header, fields, damaged)
        at += len(span)


def _delimiter(header: str) -> str:
    """The sign that divides the header into most names; two that divide it alike are not guessed between."""
    count = {d: len(next(csv.reader([header], delimiter=d))) for d in _DELIMITERS}
    best, second = sorted(count, key=count.get, reverse=True)[:2]
    if count[best] == count[second] > 1:
        raise ValueError(
            f"{_DELIMITERS[best]} or {_DELIMITERS[second]} divide the columns: put a line "
            "sep=, before the header"
        )
    return best


def _unique(header: Iterable[str]) -> None:
    names = [name for name in header if name]
    for twice in [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name {twice!r} occurs twice: rename or remove one")


def _doubtful(span: list[str], fields: int, header: list[str], delimiter: str) -> bool:
    """Is this record of several lines rather several records between two stray quotes?"""
    whole = sum(line.count(delimiter) >= len(header) - 1 for line in span)
    return fields != len(header) or (whole > 1 and 2 * whole >= len(span))


def _torn(line: str, wrong: str) -> Broken:
    hint = 'written \\"' if '\\"' in line else "left alone"
    problem = f'has a quote that does not close where its field ends: inside a text it is doubled (""), not {hint}'
    if "field limit" in wrong:
        problem = f"has a field of more than {csv.field_size_limit()} characters"
    return Broken(problem, example(line))


def _row(header: list[str], fields: list[str], damaged: bool) -> dict | Broken:
    if len(fields) != len(header) or (not header[-1] and fields[-1].strip()):
        named = len(header) - (not header[-1])
        return Broken(f"has not the {named} fields of the header", example(fields))
    record = dict(zip(header, fields, strict=True))
    record.pop("", None)  # a column without a name, such as an index
    return _entry(record, "".join(fields)) if damaged else record


def _json(text: str) -> Iterator[tuple[int, dict | Broken]]:
    """An array, or a record a line."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # else lines, of which the first is a list
                raise
        else:
            bad = _BAD_BYTE.search(text)
            written = (json.dumps(row, ensure_ascii=False) if bad else "" for row in rows)
            yield from enumerate(map(_entry, rows, written), 1)
            return
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                found = _entry(decode(line.removeprefix("\ufeff")), line)
            except (ValueError, RecursionError) as error:
                found = Broken(f"not JSON: {error}", example(line))
            yield number, found


def _object(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        _unique(name for name, _ in pairs)
    return record


def _entry(record: object, written: str) -> dict | Broken:
    """The record, if it is one and no bad byte stands where it was written."""
    if not isinstance(record, dict):
        return Broken("not a JSON object", example(record))
    if not written.isascii() and _BAD_BYTE.search(written):
        return Broken("has bytes that are not UTF-8", example(record))
    return record


def _parquet(raw: bytes) -> Iterator[dict]:
    """Texts are taken as bytes and decoded one by one, so that one that is not UTF-8 costs its row only."""
    table = pq.read_table(pa.BufferReader(raw))
    _unique(table.schema.names)
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(pa.large_binary()))
    for record in table.to_pylist():  # bytes stay: refused or unknown where the schema wants a text
        yield {name: texts.decoded(value, value) for name, value in record.items()}
