"""Small tables of replies for the data tests, with words that share nothing unless a test makes them."""

from __future__ import annotations

import dataclasses
import json
import random
import string

import pandas as pd

from polylib.config import DataConfig
from polylib.data import read

DATA = DataConfig(
    max_posts=0,
    min_replies=2,
    min_chars=3,
    max_chars=280,
    language="en",
    max_links=1,
    max_hashtags=2,
    max_emoji=3,
    spam_words=["ser", "gm", "click here"],
    near_duplicate=0.9,
    bot_repetition=3,
    split_seed=7,
    train=0.5,
    validation=0.1,
    test=0.2,
    judge=0.2,
    simulator_seed=11,
    pairs_per_post=4,
    pair_min_ratio=2.0,
    columns={},
    adapter={},
)


def data(**changes) -> DataConfig:
    return dataclasses.replace(DATA, **changes)


def words(seed: object, count: int = 9) -> str:
    """A sentence of random letters: two seeds never give near copies."""
    draw = random.Random(str(seed))
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(count))


def record(post: object = 0, number: object = 0, /, **changes) -> dict:
    """One row with every required field, as a JSONL line would hold it."""
    row = {
        "tweet_id": f"p{post}",
        "tweet": words(f"post {post}"),
        "reply_id": f"p{post}-{number}",
        "reply": words(f"{post} {number}"),
        "reply_likes": 1,
        "lang": "en",
    }
    return row | changes


def frame(records: list[dict]) -> pd.DataFrame:
    """Records as `read` would return them."""
    full = pd.DataFrame(
        [
            dict.fromkeys(read.COLUMNS) | r | {"thread_id": r.get("thread_id") or r["tweet_id"]}
            for r in records
        ]
    )
    return read.typed(full)


def threads(posts: int, replies: int = 4) -> list[dict]:
    """Threads with followers, delays and likes that differ from row to row."""
    draw = random.Random(0)
    return [
        record(
            p,
            r,
            reply_likes=draw.randrange(40),
            reply_author_followers=draw.randrange(1, 5000),
            reply_time_diff_seconds=draw.randrange(1, 90000),
        )
        for p in range(posts)
        for r in range(replies)
    ]


def jsonl(path, records: list) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
