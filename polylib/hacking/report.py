"""What the hacking detector says of one set of replies: as a value, as one line, as a table in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd

LEVELS = ("ok", "shifted", "suspicious", "hacked")
COLORS = ("#009E73", "#7F7F7F", "#E69F00", "#D55E00")
WORDS = {
    "length": "typical length",
    "length_sd": "spread of lengths",
    "short": "very short replies",
    "duplicates": "repeated replies",
    "top_reply": "commonest reply",
    "top_4gram": "commonest phrase",
    "top_opener": "commonest opening",
    "copy3": "copied from the post",
    "question": "question marks",
    "exclamation": "exclamation marks",
    "emoji": "emoji",
    "gzip": "compressibility",
    "relevance": "nearness to the post",
}


@dataclass(frozen=True)
class Report:
    """level 0 to 3; z = max |z| against people, of `feature`; threshold: the 99 % quantile of that maximum over
    people's sets of `design` (posts, replies a post).

    table: feature, value, people, sd, z, beyond_start. reasons: practical margins passed. gains: {proxy, judge,
    gap: (mean, low, high)} in sd before training, or {}. worst: (post, reply), those that drive `feature`."""

    level: int
    z: float
    feature: str
    threshold: float
    design: tuple[int, int]
    table: pd.DataFrame
    reasons: list[str]
    gains: dict[str, tuple[float, float, float]]
    worst: list[tuple[str, str]]
    truncated: float | None = None

    @property
    def label(self) -> str:
        return LEVELS[self.level]

    def line(self) -> str:
        """One line for a log; holds no text of replies."""
        row = self.table.set_index("feature").loc[self.feature]
        parts = [
            f"{self.label}: {WORDS[self.feature]} {row['value']:.2f}, people {row['people']:.2f} "
            f"(|z| {self.z:.1f}, alarm above {self.threshold:.1f})"
        ]
        parts += [f"beyond people's margin: {', '.join(self.reasons)}"] if self.reasons else []
        parts += [
            f"{name} {mean:+.2f} [{low:+.2f}, {high:+.2f}] sd"
            for name, (mean, low, high) in self.gains.items()
            if name != "gap"
        ]
        return "; ".join(parts)

    def summary(self) -> dict[str, object]:
        """Plain values for a JSON file, without texts."""
        known = self.table.set_index("feature")
        return {
            "level": self.level,
            "label": self.label,
            "z": self.z,
            "feature": self.feature,
            "threshold": self.threshold,
            "posts": self.design[0],
            "replies": self.design[1],
            "reasons": self.reasons,
            "values": known["value"].to_dict(),
            "people": known["people"].to_dict(),
            "sd": known["sd"].to_dict(),
            "truncated": {"value": None, "reason": "people have no token limit"}
            if self.truncated is None
            else self.truncated,
        }

    def _repr_html_(self) -> str:
        cells = []
        for row in self.table.sort_values("z", key=abs, ascending=False).itertuples():
            loud = abs(row.z) > self.threshold
            style = f" style='color:{COLORS[max(self.level, 1)]};font-weight:bold'" if loud else ""
            cells.append(
                f"<tr{style}><td style='text-align:left'>{WORDS[row.feature]}</td><td>{row.value:.2f}</td>"
                f"<td>{row.people:.2f}</td><td>{row.z:+.1f}</td></tr>"
            )
        shown = "".join(
            f"<tr><td style='text-align:left'>{html.escape(post)}</td>"
            f"<td style='text-align:left'>{html.escape(reply)}</td></tr>"
            for post, reply in self.worst
        )
        rest = html.escape(self.line().removeprefix(self.label))
        return (
            f"<p><b style='color:{COLORS[self.level]}'>{self.label}</b>{rest}</p><table>"
            f"<tr><th></th><th>here</th><th>people</th><th>z</th></tr>{''.join(cells)}</table>"
            f"<table><tr><th>post</th><th>replies that drive it</th></tr>{shown}</table>"
        )
