"""Raw rows of other shapes, made into one record a reply before their columns are checked.

`data.adapter` in params names at most one:

explode: answers      a row is a post with a list of replies (objects, texts, or an object of equally long
                      lists): one record an element, which stands in the list's place
unpivot: [A, B]       a row holds replies side by side: one record for A and one for B; in `columns`, * stands
                      for either (score_*: reply_likes), and chosen/rejected is "*": reply
self_join: reply_to   a flat table of posts and replies: one record a reply, with the row that reply_to names as
                      `parent` (parent.text: tweet), its id as tweet_id, and the thread's first post as thread_id

With or without one, names in `data.columns` reach into objects and lists: public_metrics.like_count,
chosen.-1.content, referenced_tweets.type=replied_to.id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from polylib.data.files import Broken, example
from polylib.run import UserError

REASONS = {
    "no_replies": "a post that nobody in the data answered",
    "no_parent": "a reply to a row that is not in the data",
    "repeated": "the same reply with the same fields as in an earlier pair",
}
_ABSENT = object()
_KEPT = ("tweet_id", "tweet", "reply_id", "reply", "reply_likes")


def adapt(
    records: Iterator,
    columns: dict[str, str],
    adapter: dict | None = None,
    aside: list | None = None,
) -> Iterator[tuple[int, dict | Broken]]:
    """(number, record) pairs, one a reply, out of (number, raw record) pairs; nested names of `columns` become keys.

    What is no reply and no fault goes to `aside` as (number, one of REASONS, example), so that every raw row
    is accounted for: the only rows that are neither are posts of a self-join, which are their replies' parents.
    UserError for an adapter that cannot be used with `columns`."""
    aside = [] if aside is None else aside
    match list((adapter or {}).items()):
        case []:
            pass
        case [("explode", str(name))] if name:
            records = _each(records, partial(_explode, columns, name, aside))
        case [("unpivot", list(sides))]:
            if len(set(sides)) < 2 or not any("*" in name for name in columns):
                raise UserError(
                    f"data.adapter unpivot: {sides} needs two names or more, and names in data.columns with "
                    '* in their place, e.g. {score_*: reply_likes, "*": reply}'
                )
            records = _each(records, partial(_unpivot, columns, sides, aside, {}))
        case [("self_join", str(name))] if name:
            _joinable(columns, name)
            records = _self_join(records, columns, name, aside)
        case _:
            raise UserError(
                f"data.adapter must be one of {{explode: a list's column}}, {{unpivot: [A, B]}} and "
                f"{{self_join: the column with the parent's id}}, found {adapter}"
            )
    nested = {name: name for name in columns if "." in name}
    return _each(records, lambda _, row: [row | _found(row, nested)]) if nested else records


def _each(records: Iterable, make: Callable) -> Iterator[tuple[int, dict | Broken]]:
    """What `make` makes of the number and the record of each that parses; the others as they are."""
    for number, record in records:
        made = make(number, record) if isinstance(record, dict) else [record]
        yield from ((number, one) for one in made)


def _joinable(columns: dict[str, str], name: str) -> None:
    """What would quietly take a row's own text or id for its parent's."""
    targets = columns.values()
    wrong = {
        "map the text of the row above to tweet, e.g. {parent.text: tweet}": "tweet" not in targets,
        f"map {name} to tweet_id, for tweet_id itself is mapped elsewhere": "tweet_id" in columns
        and "tweet_id" not in targets,
        "leave `parent` out: it becomes the row above, and tweet_id its id": "parent" in columns,
    }
    for what in [what for what, holds in wrong.items() if holds]:
        raise UserError(f"data.columns for self_join: {what}")


def value(record: dict, path: str) -> object:
    """What a dotted path leads to: None where something on the way is unknown, _ABSENT where there is no such name.

    A key may itself hold dots. In lists a number counts (-1 is the last) and key=value looks for an object.
    Text that is JSON, as in a CSV cell, is looked into."""
    parts = path.split(".")
    heads = (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in record)
    head = next(heads, len(parts))
    found = record.get(".".join(parts[:head]), _ABSENT)
    for part in parts[head:]:
        found = _parsed(found)
        if isinstance(found, dict):
            found = found.get(part, _ABSENT)
        elif isinstance(found, list):
            found = _element(found, part)
        elif found is not None:
            return _ABSENT
    return found


def _element(items: list, part: str) -> object:
    key, equals, wanted = part.partition("=")
    if equals:
        return next((e for e in items if isinstance(e, dict) and str(e.get(key)) == wanted), None)
    if not re.fullmatch(r"-?[0-9]{1,9}", part):
        return _ABSENT
    return items[int(part)] if -len(items) <= int(part) < len(items) else None


def _parsed(found: object) -> object:
    with suppress(ValueError, RecursionError):  # what only begins like JSON stays text
        if isinstance(found, str) and found.lstrip()[:1] in ("[", "{"):
            return json.loads(found)
    return found


def _found(record: dict, paths: dict[str, str]) -> dict:
    """name: what its path leads to, where it leads anywhere."""
    found = {name: value(record, path) for name, path in paths.items()}
    return {name: v for name, v in found.items() if v is not _ABSENT}


def _explode(columns, name, aside, number, record) -> Iterator[dict | Broken]:
    items = _parsed(value(record, name))
    lists = isinstance(items, dict) and all(isinstance(v, list) for v in items.values())
    if lists and len({len(values) for values in items.values()}) < 2:
        items = [dict(zip(items, row)) for row in zip(*items.values())]
    if items is None or items == []:
        aside.append((number, "no_replies", example(record)))
    elif not isinstance(items, list):
        no = "column" if items is _ABSENT else "list, and no object of equally long lists, in"
        yield Broken(f"has no {no} {name} to explode", example(record))
    else:
        for k, item in enumerate(items):
            made = record | {name: item}
            _give(made, columns, "tweet_id", _hash(_own(made, columns, "tweet")))
            _give(made, columns, "reply_id", f"{_own(made, columns, 'tweet_id')}.{k}")
            yield made


def _unpivot(columns, sides, aside, seen, number, record) -> Iterator[dict]:
    for side in sides:
        found = _found(record, {n: n.replace("*", side) for n in columns if "*" in n})
        made = record | found
        _give(made, columns, "tweet_id", _hash(_own(made, columns, "tweet")))
        # an id out of its text: one reply stands in many pairs
        post, text = (_own(made, columns, field) for field in ("tweet_id", "reply"))
        _give(made, columns, "reply_id", _hash(post, text))
        key = str(_own(made, columns, "reply_id"))
        fields = repr([value(made, name) for name in (*columns, *_KEPT)])
        if seen.get(key) == fields:
            aside.append((number, "repeated", example(found)))
        else:  # another text or score under a known id is a contradiction, which `read` names
            seen.setdefault(key, fields)
            yield made


def _self_join(records, columns, name, aside) -> Iterator[tuple[int, dict | Broken]]:
    table, rows, above = list(records), {}, {}
    for number, record in table:
        if isinstance(record, dict):
            key, to = _id(_own(record, columns, "reply_id")), _id(value(record, name))
            rows.setdefault(key, (number, record))
            if key and to:
                above.setdefault(key, to)
    if above and not set(above.values()) & rows.keys():
        raise UserError(
            f"data.adapter self_join: no row has the id that {name} names in another, for instance "
            f"{example(next(iter(above.values())))}; map the rows' own id to reply_id in data.columns"
        )
    return _each(table, partial(_child, columns, aside, rows, above, set(above.values())))


def _child(columns, aside, rows, above, answered, number, record) -> Iterator[dict | Broken]:
    """A row of a self-join with the row above it; rows: an id's number and record, above: the id that it answers."""
    key = _id(_own(record, columns, "reply_id"))
    if not key:
        yield Broken("has no id of its own (reply_id)", example(record))
    elif rows[key][0] != number:
        yield Broken(f"reply_id {key} was already used in row {rows[key][0]}", example(record))
    elif above.get(key) in rows:
        made = record | {"parent": rows[above[key]][1]}
        if "tweet_id" not in columns.values():
            made["tweet_id"] = above[key]
        _give(made, columns, "thread_id", _top(above[key], above))
        yield made
    elif key in above or key not in answered:
        aside.append((number, "no_parent" if key in above else "no_replies", example(record)))


def _top(key: str, above: dict[str, str]) -> str:
    """The first post of a thread: upwards until no row says what it answers (or a circle closes)."""
    seen = set()
    while key in above and key not in seen:
        seen.add(key)
        key = above[key]
    return key


def _own(record: dict, columns: dict[str, str], field: str) -> object:
    """What stands for a field of the schema: the column mapped to it, else the one of its name; None if unknown."""
    name = next((name for name, target in columns.items() if target == field), field)
    return _found(record, {field: name}).get(field)


def _give(record: dict, columns: dict[str, str], field: str, made: str) -> None:
    """Set a field that no column gives: neither mapped nor there (a mapped one that is empty is a fault of its row)."""
    if field not in columns.values():
        record.setdefault(field, made)


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def _id(found: object) -> str:
    """An id as text; empty where there is none: unknown, no such name, or NaN."""
    return "" if found is None or found is _ABSENT or found != found else str(found)
