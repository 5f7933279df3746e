"""The whole study on one page that needs nothing but a browser: no network, no server, no other file.

    report.write(results, {"Main table": tables.main(results), "Costs": table}, guide, paths.results("report"))

Posts and replies are hostile: in tables they are escaped by the template, in the browser of replies they are JSON in
which no tag can end or begin, and are put on the page as text. The page's own policy (CSP) forbids every script but
the one written here, and every connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from polylib.analysis import decision, replies
from polylib.analysis.results import Results
from polylib.evaluation import failures
from polylib.figures.plain_tables import DASH, Table
from polylib.figures.style import METHOD_STYLE
from polylib.run import atomic_write

HERE = Path(__file__).parent
LIMIT = 8 * 2**20  # bytes of embedded replies; posts beyond are left out, and the page says so
FIGURES = {  # title and what is to be seen, for who cannot see it; these first, the others by name
    "quality_diversity": (
        "Judge score against diversity",
        "Scatter plot: judge score (up) against semantic diversity (right), a mark a method with 95 % error bars, a "
        "line through its temperatures, a star for people.",
    ),
    "pass_at_k": (
        "At least one good reply among k",
        "Curves: the chance that one of k replies is at least as good as a human one, rising with k, a line and a 95 % "
        "band a method, a panel for each level of quality.",
    ),
    "win_rates": (
        "Who wins, by the judge",
        "Dots with 95 % intervals: the share of pairs of replies that each method wins against SFT (left) and against "
        "people (right), with a line at one half.",
    ),
    "training_dynamics": (
        "What training did",
        "Curves over training steps on held-out posts, a panel for each of reward, judge score, diversity, KL and "
        "others, a line a method.",
    ),
    "ablation": (
        "What the weights of the loss do",
        "Heat maps of judge score, diversity and the detector's verdict over two weights of the loss.",
    ),
}
MEDIA = {".pdf": "application/pdf", ".csv": "text/csv"}
KNOWN = {style["label"]: name for name, style in METHOD_STYLE.items()} | {
    name: name for name in METHOD_STYLE
}
LONG = 24  # characters from which on a column of words is set as text that may wrap
NUMBER = re.compile(r"^[-+−]?[\d,]*\.?\d+(?:e[-+]?\d+)?(?=$|\s|%|\[|±|\()")


def write(
    results: Results,
    tables: dict[str, pd.DataFrame | Table],
    guide: pd.DataFrame | None,
    folder: Path,
    limit: int = LIMIT,
    frame: pd.DataFrame | None = None,
) -> Path:
    """`folder`/index.html of a study, byte-stable; returns its path.

    On top `finding` and the first figure. tables: {heading: table}; the first stands above the other figures, the
    others below. guide: the decision guide, or None. The caption of a `Table` stands below it; a frame whose attrs say
    "collapsed" is folded. Figures are the .png of `results.paths.figures`, so write them first. limit: bytes of
    replies. frame: what `replies.load` gave, if at hand. UserError as there."""
    parts = [_part(name, table) for name, table in tables.items()]
    folded = [] if guide is None else [_part("What to use", guide) | {"collapsed": True}]
    figures = _figures(results.paths.figures)
    frame = replies.load(results) if frame is None else frame
    embedded, kept = _embedded(frame, results, limit)
    style, script = _own("report.css") + _colours(), _own("report.js")
    cfg = results.cfg
    sections = [
        ("finding", "Finding"),
        *((part["id"], part["name"]) for part in folded + parts[:1]),
        *([("figures", "Figures")] if figures[1:] else []),
        *((part["id"], part["name"]) for part in parts[1:]),
        ("browse", "Replies"),
    ]
    per_post = results.frames[cfg.methods[0], cfg.seeds[0], cfg.sampling.temperature][
        "n_samples"
    ].iloc[0]
    facts = [
        ("posts", f"{len(results.people)} × {per_post:g} replies"),
        ("seeds", ", ".join(map(str, cfg.seeds))),
        ("preset", cfg.preset),
        ("temperature", f"{cfg.sampling.temperature:g}"),
        ("engagement", results.engagement),
        (
            "judge",
            f"right on {results.judge['pair_accuracy']:.0%} of {results.judge['pairs']} human pairs",
        ),
        ("code", results.commit),
    ]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _own("report.html")
    )
    text = page.render(
        title=f"Study {results.paths.study}",
        facts=facts,
        simulated=results.engagement == "simulated",
        finding=[] if guide is None else finding(guide, len(cfg.seeds)),
        before=folded + parts[:1],
        after=parts[1:],
        sections=sections,
        figures=figures,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        replies=embedded,
        kept=kept,
        left_out=frame["post_id"].nunique() - kept,
        note=results.note,
    )
    file = Path(folder) / "index.html"
    atomic_write(file, text + "\n")
    return file


def finding(guide: pd.DataFrame, runs: int) -> list[str]:
    """What a study of so many runs a method establishes, a sentence each, from `decision.guide`: every gain that is
    established, then for how many purposes there is none, then who is out for a hacked reward."""
    missed = guide["because"].str.startswith(decision.NOTHING)
    said = [
        f"{METHOD_STYLE[row.choose]['label']}'s gain is established for {row.want}: "
        + "; ".join(filter(None, (row.because.removeprefix(f"{row.want} "), row.versus)))
        for row in guide[~missed].itertuples()
    ]
    if missed.any():
        said.append(
            f"No gain over SFT is established for {missed.sum()} of {len(guide)} purposes, among them "
            f"{guide.loc[missed, 'want'].iloc[0]}; {runs} run{'s' * (runs > 1)} a method"
        )
    out = sorted(set(guide["excluded"]) - {""})
    return [
        f"{text}." for text in (*said, *(f"Out, as it games its reward: {name}" for name in out))
    ]


def safe_json(value: object) -> str:
    """JSON for a <script> element: pure ASCII, and no <, > or &, so that no text of a user can end the element, open a
    comment or break a line (U+2028). The parsed value is the same."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _embedded(frame: pd.DataFrame, results: Results, limit: int) -> tuple[str, int]:
    """(JSON, number of posts in it). Posts in the order of their id; a reply is [text, judge, reward, relevance,
    tokens, failures by number]."""
    number = {name: i for i, name in enumerate(failures.RULES)}
    posts, size = [], 0
    for post_id, part in frame.groupby("post_id", sort=True):
        by_method: dict[str, dict[str, list]] = {}
        for row in part.itertuples():
            seed = "" if row.seed is None else str(row.seed)
            by_method.setdefault(row.method, {}).setdefault(seed, []).append(
                [
                    str(row.reply),
                    *(
                        None if pd.isna(value) else round(float(value), 3)
                        for value in (row.judge, row.reward, row.relevance)
                    ),
                    None if pd.isna(row.tokens) else int(row.tokens),
                    [number[name] for name in row.flags],
                ]
            )
        post = {"id": post_id, "text": str(part["post"].iloc[0]), "replies": by_method}
        size += len(safe_json(post)) + 1
        if posts and size > limit:
            break
        posts.append(post)
    methods = [{"name": name, "label": METHOD_STYLE[name]["label"]} for name in results.methods]
    rules = [[name.replace("_", " "), rule] for name, rule in failures.RULES.items()]
    return safe_json(
        {
            "posts": posts,
            "methods": methods,
            "seeds": [str(seed) for seed in results.cfg.seeds],
            "flags": rules,
        }
    ), len(posts)


def _part(name: str, table: pd.DataFrame | Table) -> dict:
    """One table of the page: id, name, heads (text, is it a column of numbers, method), rows of cells, caption,
    collapsed."""
    table = table if isinstance(table, Table) else Table("", table, table, "")
    frame, caption = table.shown, table.caption
    bold = np.zeros(frame.shape, dtype=bool) if table.bold is None else table.bold.to_numpy()
    columns = [_column(frame.iloc[:, i], bold[:, i]) for i in range(frame.shape[1])]
    heads = [
        (_plain(str(head)), any(c["kind"] == "number" for c in column), KNOWN.get(str(head)))
        for head, column in zip(frame.columns, columns, strict=True)
    ]
    return {
        "id": "table-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "name": name,
        "heads": heads,
        "rows": list(zip(*columns, strict=True)),
        "caption": _plain(caption),
        "collapsed": bool(frame.attrs.get("collapsed")),
    }


def _column(values: pd.Series, bold: np.ndarray) -> list[dict]:
    """Cells: text as shown; number: what it sorts by, None for words; method: whose colour stands before it; kind;
    bold."""
    texts, numbers = [_shown(value) for value in values], [_number(value) for value in values]
    numeric = sum(n is not None for n in numbers) * 2 > sum(t not in (DASH, "") for t in texts)
    kind = "number" if numeric else "text" if max(map(len, texts), default=0) > LONG else "word"
    return [
        {
            "text": METHOD_STYLE[text]["label"] if text in METHOD_STYLE else text,
            "number": number if numeric else None,
            "method": KNOWN.get(text.split(", T=")[0]),
            "kind": kind,
            "bold": strong,
        }
        for text, number, strong in zip(texts, numbers, bold, strict=True)
    ]


def _shown(value: object) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return DASH
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return _plain(str(value))


def _number(value: object) -> str | None:
    """What a cell sorts by: a number, or the one that a text begins with ("0.41 ± 0.02", "3.1 % [1, 5]")."""
    if isinstance(value, (int, float, np.integer, np.floating)):
        return repr(float(value)) if math.isfinite(value) else None
    found = NUMBER.match(str(value))
    return repr(float(found[0].replace(",", "").replace("−", "-"))) if found else None


def _plain(text: str) -> str:
    """Text that UTF-8 and HTML can hold: half surrogates and control characters become U+FFFD, line ends stay."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n")
    )


def _figures(folder: Path) -> list[dict]:
    """Every .png of the folder with its size, title, alternative text, and (name, data URI) of what lies beside it
    (pdf, csv): a page that is downloaded alone has no folder to link to."""
    names = {file.stem for file in folder.glob("*.png")}
    found = []
    for name in [*(known for known in FIGURES if known in names), *sorted(names - set(FIGURES))]:
        content = (folder / f"{name}.png").read_bytes()
        title, alt = FIGURES.get(name, (name.replace("_", " ").capitalize(), ""))
        beside = [other for end in MEDIA if (other := folder / f"{name}{end}").is_file()]
        found.append(
            {
                "name": name,
                "label": title,
                "alt": f"{title}. {alt}".strip(),
                "links": [
                    (other.name, f"data:{MEDIA[other.suffix]};base64,{_base64(other.read_bytes())}")
                    for other in beside
                ],
                "width": int.from_bytes(content[16:20], "big"),
                "height": int.from_bytes(content[20:24], "big"),
                "data": _base64(content),
            }
        )
    return found


def _colours() -> str:
    """One rule a method; people are black on white and white on black."""
    light = "".join(
        f".m-{name} {{ --method: {style['color']}; }}\n" for name, style in METHOD_STYLE.items()
    )
    return f"\n{light}@media (prefers-color-scheme: dark) {{ .m-human {{ --method: #ffffff; }} }}\n"


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode("utf-8")).digest())
