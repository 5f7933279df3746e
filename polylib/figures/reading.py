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
    departs from the preset's common `training` values."""
    common, rows = config.training(preset), []
    for name, section in sections.items():
        shared = common.items() if isinstance(section, TrainConfig) else ()
        pairs = [
            f"{key} {f'{value:g}' if isinstance(value, float) else value}"
            for key, value in dataclasses.asdict(section).items()
            if (key, value) not in shared
        ]
        rest = ["all else as `training` in the preset"] if shared else []
        rows.append([[name], [" · ".join(pairs + rest)]])
    return table(["section", "settings"], rows, ["10em", "auto"], longest=10_000)


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


def table(
    head: list[str],
    rows: list[list[list[str]]],
    widths: list[str] | None = None,
    longest: int = LONGEST,
) -> Reading:
    """A table whose cells are lists of texts, one under the other, the first column in grey. widths: CSS, "auto" shares
    the rest. <bdi> keeps right-to-left marks of one text from turning its neighbours round."""
    top = "".join(
        f"<th style='{CELL};width:{width}'>{html.escape(name)}</th>"
        for name, width in zip(head, widths or ["auto"] * len(head), strict=True)
    )
    body, lines = "", []
    for row in rows:
        body += f"<tr style='background:none;{RULE}'>"
        for i, (name, cell) in enumerate(zip(head, row, strict=True)):
            texts = [_one_line(text, longest) for text in cell]
            lines.append(f"{name}: {' | '.join(texts)}")
            shown = [html.escape(text) or "<i>(empty)</i>" for text in texts]
            stack = "".join(f"<div style='margin-bottom:5px'><bdi>{t}</bdi></div>" for t in shown)
            body += f"<td style='{CELL}{'' if i else ';color:#666'}'>{stack}</td>"
        body += "</tr>"
    page = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return Reading(f"<table style='table-layout:fixed;width:100%'>{page}</table>", "\n".join(lines))


def _one_line(text: str, longest: int) -> str:
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
