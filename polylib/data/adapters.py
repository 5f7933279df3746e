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
from collections.abc import Iterator

from polylib.data.files import Broken, example
from polylib.run import UserError

REASONS = {
    "no_replies": "a post that nobody in the data answered",
    "no_parent": "a reply to a row that is not in the data",
    "repeated": "the same reply with the same fields as in an earlier pair",
}
_ABSENT = object()


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
    make, given = _chosen(columns, adapter or {})
    if make:
        records = make(records, columns, given, [] if aside is None else aside)
    nested = [name for name in columns if "." in name]
    return _flat(records, nested) if nested else records


def _chosen(columns: dict[str, str], adapter: dict) -> tuple:
    """The function of an adapter and its argument."""
    for kind, given in adapter.items():
        names = given if isinstance(given, list) else [given]
        texts_only = all(isinstance(name, str) and name for name in names)
        one = kind in _MAKE and len(adapter) == 1 and texts_only
        if not one or isinstance(given, list) != (kind == "unpivot"):
            break
        if kind == "unpivot" and (len(set(names)) < 2 or not any("*" in name for name in columns)):
            raise UserError(
                f"data.adapter unpivot: {names} needs two names or more, and names in data.columns with "
                '* in their place, e.g. {score_*: reply_likes, "*": reply}'
            )
        if kind == "self_join":
            _joinable(columns, given)
        return _MAKE[kind], given
    if adapter:
        raise UserError(
            f"data.adapter must be one of {{explode: a list's column}}, {{unpivot: [A, B]}} and "
            f"{{self_join: the column with the parent's id}}, found {adapter}"
        )
    return None, None


def _joinable(columns: dict[str, str], name: str) -> None:
    """What would quietly take a row's own text or id for its parent's."""
    targets = columns.values()
    wrong = {
        "map the text of the row above to tweet, e.g. {parent.text: tweet}": "tweet" not in targets,
        f"map {name} to tweet_id, for tweet_id itself is mapped elsewhere": "tweet_id" in columns
        and "tweet_id" not in targets,
        "leave `parent` out: it becomes the row above, and tweet_id its id": "parent" in columns,
    }
    for what, holds in wrong.items():
        if holds:
            raise UserError(f"data.columns for self_join: {what}")


def value(record: dict, path: str) -> object:
    """What a dotted path leads to: None where something on the way is unknown, _ABSENT where there is no such name.

    A key may itself hold dots. In lists a number counts (-1 is the last) and key=value looks for an object.
    Text that is JSON, as in a CSV cell, is looked into."""
    parts = path.split(".")
    head = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in record), 0)
    if not head:
        return _ABSENT
    found = record[".".join(parts[:head])]
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
    if isinstance(found, str) and found.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(found)
        except (ValueError, RecursionError):
            return found
    return found


def _flat(records, names: list[str]) -> Iterator[tuple[int, dict | Broken]]:
    for number, record in records:
        if isinstance(record, dict):
            found = {name: value(record, name) for name in names}
            record = record | {k: v for k, v in found.items() if v is not _ABSENT}
        yield number, record


def _explode(records, columns, name, aside) -> Iterator[tuple[int, dict | Broken]]:
    for number, record in records:
        if not isinstance(record, dict):
            yield number, record
            continue
        items = _parsed(value(record, name))
        lists = isinstance(items, dict) and all(isinstance(v, list) for v in items.values())
        if lists and len({len(values) for values in items.values()}) < 2:
            items = [dict(zip(items, row)) for row in zip(*items.values())]
        if items is None or items == []:
            aside.append((number, "no_replies", example(record)))
        elif not isinstance(items, list):
            what = (
                "no column"
                if items is _ABSENT
                else "no list, and no object of equally long lists, in"
            )
            yield number, Broken(f"has {what} {name} to explode", example(record))
        else:
            for k, item in enumerate(items):
                made = _with_post(record | {name: item}, columns)
                if _missing(made, columns, "reply_id"):
                    made["reply_id"] = f"{_own(made, columns, 'tweet_id')}.{k}"
                yield number, made


def _unpivot(records, columns, sides, aside) -> Iterator[tuple[int, dict | Broken]]:
    starred, seen = [name for name in columns if "*" in name], {}
    for number, record in records:
        if not isinstance(record, dict):
            yield number, record
            continue
        for side in sides:
            found = {name: value(record, name.replace("*", side)) for name in starred}
            found = {name: v for name, v in found.items() if v is not _ABSENT}
            made = _with_post(record | found, columns)
            if _missing(made, columns, "reply_id"):  # of its text: one reply stands in many pairs
                made["reply_id"] = _hash(
                    _own(made, columns, "tweet_id"), _own(made, columns, "reply")
                )
            key = str(_own(made, columns, "reply_id"))
            fields = repr([value(made, name) for name in (*columns, *_KEPT)])
            if seen.get(key) == fields:
                aside.append((number, "repeated", example(found)))
            else:  # another text or score under a known id is a contradiction, which `read` names
                seen.setdefault(key, fields)
                yield number, made


def _self_join(records, columns, name, aside) -> Iterator[tuple[int, dict | Broken]]:
    table, rows, above = list(records), {}, {}
    for number, record in table:
        if isinstance(record, dict):
            key, to = _own(record, columns, "reply_id"), value(record, name)
            if not _empty(key):
                rows.setdefault(str(key), (number, record))
                if not _empty(to):
                    above.setdefault(str(key), str(to))
    answered = set(above.values())
    if above and not answered & rows.keys():
        raise UserError(
            f"data.adapter self_join: no row has the id that {name} names in another, for instance "
            f"{example(next(iter(above.values())))}; map the rows' own id to reply_id in data.columns"
        )
    for number, record in table:
        if not isinstance(record, dict):
            yield number, record
            continue
        key = _own(record, columns, "reply_id")
        first, _ = rows.get(str(key), (number, record))
        if _empty(key):
            yield number, Broken("has no id of its own (reply_id)", example(record))
        elif first != number:
            problem = f"reply_id {key} was already used in row {first}"
            yield number, Broken(problem, example(record))
        elif str(key) not in above:
            if str(key) not in answered:
                aside.append((number, "no_replies", example(record)))
        elif above[str(key)] not in rows:
            aside.append((number, "no_parent", example(record)))
        else:
            made = record | {"parent": rows[above[str(key)]][1]}
            if "tweet_id" not in columns.values():
                made["tweet_id"] = above[str(key)]
            if _missing(made, columns, "thread_id"):
                made["thread_id"] = _top(above[str(key)], above)
            yield number, made


def _top(key: str, above: dict[str, str]) -> str:
    """The first post of a thread: upwards until no row says what it answers (or a circle closes)."""
    seen = set()
    while key in above and key not in seen:
        seen.add(key)
        key = above[key]
    return key


_KEPT = ("tweet_id", "tweet", "reply_id", "reply", "reply_likes")
_MAKE = {"explode": _explode, "unpivot": _unpivot, "self_join": _self_join}


def _own(record: dict, columns: dict[str, str], field: str) -> object:
    """What stands for a field of the schema: the column mapped to it, else the one of its name; None if unknown."""
    name = next((name for name, target in columns.items() if target == field), field)
    found = record[name] if name in record else value(record, name)
    return None if found is _ABSENT else found


def _missing(record: dict, columns: dict[str, str], field: str) -> bool:
    """No column gives this field: neither mapped nor there (a mapped one that is empty is a fault of its row)."""
    return field not in columns.values() and field not in record


def _with_post(record: dict, columns: dict[str, str]) -> dict:
    """The record, with a tweet_id out of the post's text where no column gives one."""
    if _missing(record, columns, "tweet_id"):
        record["tweet_id"] = _hash(_own(record, columns, "tweet"))
    return record


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def _empty(found: object) -> bool:
    return found is None or found is _ABSENT or found == "" or found != found  # NaN
