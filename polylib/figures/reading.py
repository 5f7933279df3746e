"""Tables for reading in a notebook: settings, and replies side by side. All text is hostile and escaped.

reading.settings(preset, sampling=cfg.sampling, grpo=cfg.grpo)
reading.samples(paths.results("grpo", 42) / "samples.json")
"""

from __future__ import annotations

import dataclasses
import html
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from polylib import config
from polylib.config import TrainConfig, UserError

LONGEST = 280  # characters shown of one text
CELL = (
    "text-align:left;vertical-align:top;padding:6px 10px;white-space:normal;overflow-wrap:anywhere"
)
RULE = "border-top:1px solid #ddd"


@dataclass(frozen=True)
class Reading:
    """Rich in a notebook, plain lines in a log."""

    html: str
    plain: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.plain


def settings(preset: str, **sections) -> Reading:
    """Sections of a preset (dataclasses), one row each: `name  key value · key value`. Of a method's section only what
    departs from the preset's common `training` values, which stand in one row of their own."""
    common, rows, lines = config.training(preset), [], []
    for name, section in sections.items():
        values = dataclasses.asdict(section)
        method = isinstance(section, TrainConfig)
        pairs = {
            key: _value(value)
            for key, value in values.items()
            if not method or key not in common or common[key] != value
        }
        rest = "all else as `training` in the preset" if method else ""
        spans = [
            f"<span style='white-space:nowrap'>{html.escape(k)}&nbsp;<b>{html.escape(v)}</b></span>"
            for k, v in pairs.items()
        ] + ([f"<i>{html.escape(rest)}</i>"] if method else [])
        rows.append(
            f"<tr><th style='{CELL};white-space:nowrap;overflow-wrap:normal'>{html.escape(name)}</th>"
            f"<td style='{CELL}'>{' · '.join(spans)}</td></tr>"
        )
        lines.append(
            f"{name}: " + ", ".join([f"{k} {v}" for k, v in pairs.items()] + [rest] * method)
        )
    return Reading(f"<table>{''.join(rows)}</table>", "\n".join(lines))


def samples(file: Path, posts: int = 4, replies: int = 3) -> Reading:
    """People, the model before and after training, on the same validation posts and random numbers: the
    samples.json of a training run. UserError if it is not there or holds no samples (eval_samples 0)."""
    if not Path(file).is_file():
        raise UserError(f"{file}: missing; run the training cell first")
    entries = json.loads(Path(file).read_text(encoding="utf-8"))[:posts]
    if not entries:
        raise UserError(f"{file}: no samples were kept; set eval_samples above 0")
    columns = ("human", "before", "after")
    rows = [[[e["post"]], *(e[name][:replies] for name in columns)] for e in entries]
    return table(["post", "people", "before", "after"], rows)


def side_by_side(
    generations: pd.DataFrame, posts: list, shown: int = 4, replies: int = 3
) -> Reading:
    """People's replies beside sampled ones, a column for each temperature of `generations`."""
    temperatures = sorted(generations["temperature"].dropna().unique())
    rows = []
    for post in posts[:shown]:
        mine = generations[generations["post_id"].eq(post.id)]
        sampled = [
            mine.loc[mine["temperature"].eq(t), "reply"].head(replies).tolist()
            for t in temperatures
        ]
        rows.append([[post.text], list(post.replies[:replies]), *sampled])
    return table(["post", "people", *(f"T = {t:g}" for t in temperatures)], rows)


def table(head: list[str], rows: list[list[list[str]]], widths: list[str] | None = None) -> Reading:
    """A table whose cells are lists of texts, the first column in grey. widths: CSS, "auto" shares the rest."""
    top = "".join(
        f"<th style='{CELL};width:{width}'>{html.escape(name)}</th>"
        for name, width in zip(head, widths or ["auto"] * len(head), strict=True)
    )
    body = "".join(
        f"<tr style='background:none;{RULE}'>"
        + "".join(
            f"<td style='{CELL}{';color:#666' if i == 0 else ''}'>{_stack(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    lines = [
        f"{name}: {' | '.join(map(_one_line, cell))}"
        for row in rows
        for name, cell in zip(head, row)
    ]
    page = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return Reading(f"<table style='table-layout:fixed;width:100%'>{page}</table>", "\n".join(lines))


def _stack(texts: list[str]) -> str:
    """One text under the other; <bdi> keeps right-to-left marks of one from turning its neighbours round."""
    return "".join(
        f"<div style='margin-bottom:5px'><bdi>{html.escape(_one_line(t)) or '<i>(empty)</i>'}</bdi></div>"
        for t in texts
    )


def _one_line(text: str) -> str:
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 1] + "…"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and value:
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, (dict, list, tuple)):
        return ", ".join(map(_value, value)) or "–"
    return str(value)
