"""Rows of a hub data set, one after the other, so that a set of any size can be cut short:

hub:owner/name@revision[,config=posts][,split=train][,data_dir=data/one][,rows=100000]

`rows` takes that many from the start. `hub:owner/name@revision:split` is the older way to name a split.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from polylib.data import text as texts
from polylib.run import UserError

OPTIONS = ("config", "split", "data_dir", "rows")
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+?)(?::(?P<split>[\w.-]+))?"
    r"(?P<options>(?:,[^,]*)*)"
)


def hub_rows(source: str) -> Iterator[dict]:
    """The rows of `source` as they come over the network; UserError if it is misspelled or out of reach."""
    name, revision, options = _parse(source)
    import datasets  # only here: it is slow to import and no other source needs it

    try:
        loaded = datasets.load_dataset(
            name,
            options.get("config"),
            data_dir=options.get("data_dir"),
            split=options["split"],
            revision=revision,
            streaming=True,
        )
        for row in itertools.islice(loaded, int(options["rows"]) if "rows" in options else None):
            yield {key: texts.decoded(value, None) for key, value in row.items()}  # None: a picture
    except Exception as error:  # of a dozen unrelated types; all mean that there are no data
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{source}: not reachable ({why}); check name, revision, config, split and network, or "
            "download it yourself and pass DATA=path/to/file"
        ) from error


def _parse(source: str) -> tuple[str, str, dict[str, str]]:
    """Name, revision and options; split is "train" where none is given."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(
            f"{source}: write hub:owner/name@revision, and behind it what you need of "
            + "".join(f",{key}=..." for key in OPTIONS)
        )
    given = [part.partition("=")[::2] for part in match["options"].split(",")[1:]]
    options = {"split": match["split"] or "train"} | dict(given)
    for key, value in given:
        if key not in OPTIONS or not value or [k for k, _ in given].count(key) > 1:
            raise UserError(
                f"{source}: {key}={value} is not understood; once each and with a value: "
                f"{', '.join(OPTIONS)}"
            )
    if not re.fullmatch(r"[1-9][0-9]*", options.get("rows", "1")):
        raise UserError(f"{source}: rows={options['rows']} must be a whole number of at least 1")
    return match["name"], match["revision"], options
