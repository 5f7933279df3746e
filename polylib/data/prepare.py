"""The whole way of the data: read or simulate, clean, split, pair, write; and back in for later stages.

prepared = prepare.prepare(cfg, "polylib/data/corpus.jsonl", Paths("laptop"))
rows = prepare.load_rows(paths)
posts = prepare.posts(rows, "train", phase="sft")
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from hashlib import sha256
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


class Prepared(NamedTuple):
    """Everything of a study's data. raw: the well-formed rows as read; truth: None for observed data; rejects: reason,
    count, examples; read: all rows; notes and counts: what reading them took (`read.Loaded`), and what their unknown
    fields switch off; manifest: what is written about all this, once it is (`prepare`)."""

    raw: pd.DataFrame
    rows: pd.DataFrame
    truth: pd.DataFrame | None
    preferences: pd.DataFrame
    rejects: pd.DataFrame
    read: int
    notes: list[str]
    counts: dict[str, int]
    manifest: dict | None = None


def make(data: DataConfig, source: str | Path) -> Prepared:
    """Read or simulate, clean, split and pair; nothing is written. UserError for every fault of the input."""
    simulated, aside, truth = not data.adapter and read.is_corpus(source), [], None
    if simulated:
        raw, truth = simulate.simulate(source, data.simulator_seed)
        malformed, notes, counts = pd.DataFrame(columns=list(read.MALFORMED)), [], {}
    else:
        raw, malformed, notes, counts = read.load(source, data.columns, data.adapter, aside)
        notes = notes + _unknown(raw)
    rows, rejects = clean.clean(raw, data)
    rejects = _with_others(rejects, malformed, aside)
    rows = split.assign(rows, data)
    split.assert_disjoint(rows, data.near_duplicate)
    preferences = pairs.preference_pairs(rows, data)
    _learnable(source, rows)
    if simulated:
        truth = truth[truth["reply_id"].isin(rows["reply_id"])].reset_index(drop=True)
    read_in = len(raw) + len(malformed) + len(aside)
    return Prepared(raw, rows, truth, preferences, rejects, read_in, notes, counts)


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
    held = rows.groupby("split")["tweet_id"].nunique()
    short = [
        f"{key} {number} (split {part} holds {held.get(part, 0)})"
        for part, key, number in asked
        if number > held.get(part, 0)
    ]
    if short:
        raise UserError(
            f"{source}: fewer posts than params/{cfg.preset}.yaml asks for: {', '.join(short)}; lower these settings "
            "(in a preset of your own: extends), or use more data"
        )


def prepare(cfg: Config, source: str | Path, paths: Paths) -> Prepared:
    """Make a study's data from `source` (a file or hub:owner/name@revision) and write it.

    Writes paths.data/{rows,truth,preferences}.parquet, their checksums, and paths.results("data")/{manifest.json,
    metrics.json,rejects.csv}. A file of posts with nested replies and no engagement (the bundled corpus) goes through
    the simulator; anything else holds observed engagement and its truth.parquet is empty. Nothing is written before
    all is checked. Raises UserError for every fault of the input, with the file, the row and the remedy."""
    made = make(cfg.data, source)
    rows, rejects, simulated = made.rows, made.rejects, made.truth is not None
    empty = pd.DataFrame(columns=TRUTH, dtype="str").astype({"latent": "float64"})
    tables = {
        "rows": rows,
        "preferences": made.preferences,
        "truth": made.truth if simulated else empty,
    }
    content = {name: table.to_parquet(index=False) for name, table in tables.items()}
    hub = str(source).startswith("hub:")  # fixed by the revision in its name
    manifest = {
        "engagement": "simulated" if simulated else "observed",
        "source": str(source) if hub else _name(Path(source), paths.root.resolve()),
        "read": made.read,
        "kept": len(rows),
        "addressing_cut": int(
            (made.raw["reply"].map(clean.strip_addressing) != made.raw["reply"]).sum()
        ),
        "input": made.counts,  # what reading changed or could not read; notes: the same in sentences
        "notes": made.notes,
        "counts": _counts(rows, made.preferences),
        "limits": profile.limits(rows, made.preferences),
        "cut_to_zero": int((rows["reply_likes"] < 0).sum()),  # scores below 0, in shares of likes
        "rejects": dict(zip(rejects["reason"], rejects["count"].tolist(), strict=True)),
        "sha256": {"source": "" if hub else sha256(Path(source).read_bytes()).hexdigest()}
        | {f"{name}.parquet": sha256(blob).hexdigest() for name, blob in content.items()},
        "simulator": {"seed": cfg.data.simulator_seed} | dataclasses.asdict(simulate.Simulator())
        if simulated
        else {},
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
    return made._replace(manifest=manifest)


def load(paths: Paths, table: str) -> pd.DataFrame:
    """A table of a study: rows, clean and split; preferences; or truth, the simulator's secret, columns TRUTH, to
    validate rewards and judges with, empty for observed data. UserError if its file is not there or not what was
    written."""
    check(paths.data, "run notebook 01_data or `dvc repro` again")
    path = paths.data / f"{table}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: not there yet; run notebook 01_data or `dvc repro` first")
    return pd.read_parquet(path)


def load_rows(paths: Paths) -> pd.DataFrame:
    """The clean, split rows of a study."""
    return load(paths, "rows")


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
    found = [
        Post(
            str(name),
            post["tweet"].iloc[0],
            tuple(post["reply"][:gold_per_post]),
            tuple(post["reply"]),
            float(pairs.signed_log(post["reply_likes"]).mean()),
        )
        for name, post in chosen.groupby("tweet_id", sort=True)
    ]
    if limit > len(found):
        raise UserError(
            f"split {split!r} holds {len(found)} posts and {limit} are asked for; set the number to {len(found)} or "
            "less in the preset (0 = all)"
        )
    order = np.argsort(texts.seeded_hash([p.id for p in found], 0), kind="stable")
    return [found[k] for k in order[: limit or None]]


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


def _with_others(rejects: pd.DataFrame, malformed: pd.DataFrame, aside: list) -> pd.DataFrame:
    """Above what cleaning rejected: malformed rows, and what an adapter found to be no reply."""
    said = {
        "malformed": [
            f"row {m.row}: {f'{m.field} {m.problem}'.strip()}" for m in malformed.itertuples()
        ]
    }
    for _, reason, example in sorted(aside, key=lambda one: one[1]):
        said.setdefault(reason, []).append(example)
    counted = [(name, len(all_), all_[: clean.EXAMPLES]) for name, all_ in said.items() if all_]
    return pd.DataFrame([*counted, *rejects.itertuples(index=False)], columns=rejects.columns)


def _counts(rows: pd.DataFrame, preferences: pd.DataFrame) -> dict:
    """Posts, threads, replies and pairs of every split, and of both phases of train."""
    parts = {name: ("split", name) for name in split.SPLITS}
    parts |= {f"train_{name}": ("phase", name) for name in ("sft", "rl")}
    kept = {name: rows[rows[column] == value] for name, (column, value) in parts.items()}
    paired = {name: int((preferences[by] == value).sum()) for name, (by, value) in parts.items()}
    return {
        name: {
            "posts": part["tweet_id"].nunique(),
            "threads": part["thread_id"].nunique(),
            "replies": len(part),
            "pairs": paired[name],
        }
        for name, part in kept.items()
    }


def _metrics(manifest: dict) -> dict:
    counts = manifest["counts"]
    return {
        "read": manifest["read"],
        "rejected": manifest["rejects"],
        "cut_to_zero": manifest["cut_to_zero"],
        "limits": len(manifest["limits"]),
        **{
            what: sum(counts[name][what] for name in split.SPLITS)
            for what in ("posts", "replies", "pairs")
        },
        **counts,
    }


def _name(source: Path, base: Path) -> str:
    """The source without this machine's folders: relative inside the project, else the file's name."""
    path = source.resolve()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else source.name
