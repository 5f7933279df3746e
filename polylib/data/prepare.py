"""The whole way of the data: read or simulate, clean, split, pair, write; and back in for later stages.

prepared = prepare.prepare(cfg, "polylib/data/corpus.jsonl", Paths("laptop"))
rows = prepare.load_rows(paths)
posts = prepare.posts(rows, "train", phase="sft")
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from polylib.config import Config, DataConfig
from polylib.data import clean, pairs, profile, read, simulate, split
from polylib.data import text as texts
from polylib.run import Paths, UserError, atomic_write, check, seal, write_json

TRUTH = ("reply_id", "style", "latent")


@dataclass(frozen=True)
class Post:
    """One parent post. gold: its best human replies, all: replies; both by falling controlled engagement.
    engagement: mean signed_log(likes) of its replies, raw (the controlled kind is 0 on average within every post)."""

    id: str
    text: str
    gold: tuple[str, ...]
    replies: tuple[str, ...]
    engagement: float = float("nan")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made. truth is None for observed data; rejects has reason, count, examples."""

    rows: pd.DataFrame
    truth: pd.DataFrame | None
    preferences: pd.DataFrame
    rejects: pd.DataFrame
    manifest: dict


class Made(NamedTuple):
    """Everything of a study's data before it is written. raw: the well-formed rows as read; read: all rows; notes and
    counts: what reading them took (`read.Loaded`), and what their unknown fields switch off."""

    raw: pd.DataFrame
    rows: pd.DataFrame
    truth: pd.DataFrame | None
    preferences: pd.DataFrame
    rejects: pd.DataFrame
    read: int
    notes: list[str]
    counts: dict[str, int]


def make(data: DataConfig, source: str | Path) -> Made:
    """Read or simulate, clean, split and pair; nothing is written. UserError for every fault of the input."""
    simulated, aside = not data.adapter and read.is_corpus(source), []
    if simulated:
        raw, truth = simulate.simulate(source, data.simulator_seed)
        malformed, notes, counts = pd.DataFrame(columns=list(read.MALFORMED)), [], {}
    else:
        raw, malformed, notes, counts = read.load(source, data.columns, data.adapter, aside)
        truth, notes = None, notes + _unknown(raw)
    rows, rejects = clean.clean(raw, data)
    rejects = _with_malformed(_with_aside(rejects, aside), malformed)
    rows = split.assign(rows, data)
    split.assert_disjoint(rows, data.near_duplicate)
    preferences = pairs.preference_pairs(rows, data)
    _learnable(source, rows)
    if simulated:
        truth = truth[truth["reply_id"].isin(rows["reply_id"])].reset_index(drop=True)
    read_in = len(raw) + len(malformed) + len(aside)
    return Made(raw, rows, truth, preferences, rejects, read_in, notes, counts)


def look(cfg: Config, source: str | Path) -> str:
    """A profile of `source` for people to read (`profile.describe`); UserError for what `prepare` would refuse, and for
    settings that ask for more posts than a split holds."""
    made = make(cfg.data, source)
    _enough(cfg, source, made.rows)
    kind = "observed" if made.truth is None else "simulated"
    lines = profile.describe(made.raw, made.rows, made.rejects, made.preferences, kind)
    return "\n".join([*made.notes, *lines])


def _learnable(source: str | Path, rows: pd.DataFrame) -> None:
    """The reward, its stopping and the judge each need posts whose replies differ in likes."""
    differ = rows.groupby("tweet_id")["reply_likes"].transform("nunique").gt(1)
    needed = ("train", "validation", "judge")
    without = [name for name in needed if not differ[rows["split"] == name].any()]
    if without:
        raise UserError(
            f"{source}: in split {', '.join(without)} no post has replies that differ in likes, so nothing can be "
            "learned there of what people like; use more data, or loosen the thresholds under data: in params"
        )


def _enough(cfg: Config, source: str | Path, rows: pd.DataFrame) -> None:
    """No setting asks for more posts than its split holds: a study would be smaller than its preset says."""
    asked = [("test", "evaluation.prompts", cfg.evaluation.prompts)]
    asked += [("test", "evaluation.likelihood_prompts", cfg.evaluation.likelihood_prompts)]
    asked += [("test", "llm_judge.compare_posts", cfg.llm_judge.compare_posts)]
    if "grpo" in cfg.methods:
        asked += [("validation", "reward_model.preflight_posts", cfg.reward_model.preflight_posts)]
    for name in cfg.methods:
        section = "polychromic" if name == "lambda0" else name
        asked += [("validation", f"{section}.eval_prompts", vars(cfg)[section].eval_prompts)]
    if cfg.ablation.grid:
        asked += [(part, "ablation.posts", cfg.ablation.posts) for part in ("validation", "test")]
    for part, key, number in asked:
        held = rows.loc[rows["split"] == part, "tweet_id"].nunique()
        if number > held:
            raise UserError(
                f"{source}: split {part} holds {held} posts and {key} asks for {number}; set it to {held} or less in "
                f"params/{cfg.preset}.yaml, or use more data"
            )


def prepare(cfg: Config, source: str | Path, paths: Paths) -> Prepared:
    """Make a study's data from `source` (a file or hub:owner/name@revision) and write it.

    Writes paths.data/{rows,truth,preferences}.parquet, their checksums, and paths.results("data")/{manifest.json,
    metrics.json,rejects.csv}. A file of posts with nested replies and no engagement (the bundled corpus) goes through
    the simulator; anything else holds observed engagement and its truth.parquet is empty. Nothing is written before
    all is checked. Raises UserError for every fault of the input, with the file, the row and the remedy."""
    raw, rows, truth, preferences, rejects, total, notes, counts = make(cfg.data, source)
    simulated = truth is not None
    tables = {
        "rows": rows,
        "preferences": preferences,
        "truth": truth if simulated else _no_truth(),
    }
    content = {name: _parquet(table) for name, table in tables.items()}
    manifest = {
        "engagement": "simulated" if simulated else "observed",
        "source": _name(source, paths.root),
        "read": total,
        "kept": len(rows),
        "addressing_cut": int((raw["reply"].map(clean.strip_addressing) != raw["reply"]).sum()),
        "input": counts,  # what reading changed or could not read; notes: the same in sentences
        "notes": notes,
        "counts": _counts(rows, preferences),
        "limits": profile.limits(rows, preferences),
        "cut_to_zero": int((rows["reply_likes"] < 0).sum()),  # scores below 0, in shares of likes
        "rejects": dict(zip(rejects["reason"], rejects["count"].tolist(), strict=True)),
        "sha256": {"source": _source_hash(source)}
        | {f"{n}.parquet": _sha(c) for n, c in content.items()},
        "simulator": {"seed": cfg.data.simulator_seed} | simulate.parameters() if simulated else {},
        "thresholds": dataclasses.asdict(cfg.data),
    }
    for name, blob in content.items():
        atomic_write(paths.data / f"{name}.parquet", blob)
    seal(paths.data)
    results = paths.results("data")
    table = rejects.assign(examples=[_cell(e) for e in rejects["examples"]])
    atomic_write(results / "rejects.csv", table.to_csv(index=False, lineterminator="\n"))
    write_json(results / "manifest.json", manifest)
    write_json(results / "metrics.json", _metrics(manifest))
    return Prepared(rows, truth, preferences, rejects, manifest)


def load_rows(paths: Paths) -> pd.DataFrame:
    """The clean, split rows of a study; UserError if its files are not there or not what was written."""
    return _load(paths.data / "rows.parquet")


def load_preferences(paths: Paths) -> pd.DataFrame:
    """The preference pairs of a study."""
    return _load(paths.data / "preferences.parquet")


def load_truth(paths: Paths) -> pd.DataFrame:
    """The simulator's secret, columns TRUTH, to validate rewards and judges with; empty for observed data."""
    return _load(paths.data / "truth.parquet")


def posts(
    rows: pd.DataFrame, split: str, phase: str | None = None, gold_per_post: int = 3, limit: int = 0
) -> list[Post]:
    """The posts of a split (train | validation | test | judge) and, in train, of a phase (sft | rl; None or
    "all": both), in an order by hash of their id, so that the first `limit` (0 = all) are a fair sample and
    stay the same. gold: the gold_per_post replies of highest controlled engagement. UserError if there are
    none, or fewer than `limit`."""
    chosen = rows[rows["split"] == split]
    if phase not in (None, "all"):
        chosen = chosen[chosen["phase"] == phase]
    if chosen.empty:
        raise UserError(
            f"no posts in split {split!r}{f', phase {phase!r}' if phase else ''}; splits are "
            f"{', '.join(sorted(rows['split'].unique()))}"
        )
    chosen = chosen.sort_values(["engagement", "reply_id"], ascending=[False, True])
    found = []
    for name, post in chosen.groupby("tweet_id", sort=True):
        replies = tuple(post["reply"])
        found.append(
            Post(
                str(name),
                post["tweet"].iloc[0],
                replies[:gold_per_post],
                replies,
                float(pairs.signed_log(post["reply_likes"]).mean()),
            )
        )
    if limit > len(found):
        raise UserError(
            f"split {split!r} holds {len(found)} posts and {limit} are asked for; set the number to {len(found)} or "
            "less in the preset (0 = all)"
        )
    order = np.argsort(texts.seeded_hash([p.id for p in found], 0), kind="stable")
    return [found[k] for k in order[: limit or None]]


def _load(path: Path) -> pd.DataFrame:
    check(path.parent, "run notebook 01_data or `dvc repro` again")
    if not path.is_file():
        raise UserError(f"{path}: not there yet; run notebook 01_data or `dvc repro` first")
    return pd.read_parquet(path)


UNKNOWN = {  # field: what goes without it
    "reply_author_followers": "engagement is not controlled for the reach of its author",
    "reply_time_diff_seconds": "engagement is not controlled for how early it came, and its pairs have timing unknown",
    "reply_author": "the rules self_reply and repeating_author (bots) cannot see it",
    "tweet_author": "the rule self_reply cannot see it",
    "lang": "its language is guessed from script and stop words",
}


def _unknown(rows: pd.DataFrame) -> list[str]:
    """What unknown fields switch off, a sentence each."""
    missing = {name: int(rows[name].isna().sum()) for name in UNKNOWN}
    return [
        f"{name} is unknown for {n if n < len(rows) else 'all'} of {len(rows)} replies: {UNKNOWN[name]}"
        for name, n in missing.items()
        if n
    ]


def _cell(examples: list[str]) -> str:
    """Hostile text in a table that people open: a list as JSON stays in one cell, quotes and line ends included.
    Where a spreadsheet divides cells by ; or | as well, none begins like a formula: the sign is an escape."""
    text = json.dumps(examples, ensure_ascii=False)
    return re.sub("(?<=[;|])[=+@-]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _with_aside(rejects: pd.DataFrame, aside: list) -> pd.DataFrame:
    """What an adapter found to be no reply, above what cleaning rejected."""
    table = pd.DataFrame(aside, columns=["row", "reason", "example"])
    counted = [
        (reason, len(part), list(part["example"][: clean.EXAMPLES]))
        for reason, part in table.groupby("reason", sort=True)
    ]
    first = pd.DataFrame(counted, columns=["reason", "count", "examples"])
    return pd.concat([first, rejects], ignore_index=True) if counted else rejects


def _with_malformed(rejects: pd.DataFrame, malformed: pd.DataFrame) -> pd.DataFrame:
    if malformed.empty:
        return rejects
    examples = [
        f"row {m.row}: {f'{m.field} {m.problem}'.strip()}" for m in malformed[:3].itertuples()
    ]
    first = pd.DataFrame(
        {"reason": ["malformed"], "count": [len(malformed)], "examples": [examples]}
    )
    return pd.concat([first, rejects], ignore_index=True)


def _counts(rows: pd.DataFrame, preferences: pd.DataFrame) -> dict:
    """Posts, threads, replies and pairs of every split, and of both phases of train."""
    parts = {name: ("split", name) for name in split.SPLITS}
    parts |= {f"train_{name}": ("phase", name) for name in ("sft", "rl")}
    counts = {}
    for name, (column, value) in parts.items():
        part = rows[rows[column] == value]
        counts[name] = {
            "posts": part["tweet_id"].nunique(),
            "threads": part["thread_id"].nunique(),
            "replies": len(part),
            "pairs": int((preferences[column] == value).sum()),
        }
    return counts


def _metrics(manifest: dict) -> dict:
    counts = manifest["counts"]
    total = {
        what: sum(counts[name][what] for name in split.SPLITS)
        for what in ("posts", "replies", "pairs")
    }
    return {
        "read": manifest["read"],
        "rejected": manifest["rejects"],
        "cut_to_zero": manifest["cut_to_zero"],
        "limits": len(manifest["limits"]),
        **total,
        **counts,
    }


def _no_truth() -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series(dtype="float64" if name == "latent" else "str") for name in TRUTH}
    )


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _source_hash(source: str | Path) -> str:
    # a hub source is fixed by the revision in its name
    return "" if str(source).startswith("hub:") else _sha(Path(source).read_bytes())


def _name(source: str | Path, base: Path) -> str:
    """The source without this machine's folders: relative inside the project, else the file's name."""
    path = Path(source)
    if str(source).startswith("hub:"):
        return str(source)
    inside = path.resolve().is_relative_to(base.resolve())
    return path.resolve().relative_to(base.resolve()).as_posix() if inside else path.name
