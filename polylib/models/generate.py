"""Replies to test posts, from a trained model or from people, as one table: what `score` reads.

model = models.load_model(cfg.model, models.adapter_chain(paths.models("grpo", 42), paths.root))
table = generate.replies(model, tokenizer, posts, {0.7: 10, 1.0: 5}, cfg.sampling, seed=2024)
rated = score.rate(table, posts, reward, judge, encoder, people)
generate.save(rated, paths.evaluation("grpo", 42))         # generations.jsonl
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from polylib import run
from polylib.config import SamplingConfig, UserError
from polylib.models import sampling

COLUMNS = ["post_id", "post", "sample", "temperature", "reply", "tokens", "truncated", "logprob"]
RATED = ["judge", "reward", "relevance", "bertscore", "flags"]  # what score.rate adds
DIGITS = {"logprob": 4, **dict.fromkeys(["judge", "reward", "relevance", "bertscore"], 6)}
ROWS = 240  # completions decoded together: enough to fill the processor, small enough for 2 GB


def replies(
    model, tokenizer, posts: list, samples: Mapping[float, int], settings: SamplingConfig, seed: int
) -> pd.DataFrame:
    """{temperature: number} of replies to every post, columns COLUMNS and ids (the sampled tokens, which `save` leaves
    out: a text does not always give them back); same seed, same replies.

    tokens counts EOS, truncated means that none came within `settings.max_new_tokens`, logprob is the sum over
    the reply's tokens at the sampling temperature, in nats. The random numbers of a post depend on its place
    alone, so that methods (and temperatures with equally many replies) are compared on common draws. UserError without
    posts."""
    if not posts:
        raise UserError("evaluation: no test posts; raise data.test or data.max_posts")
    todo = [
        (temperature, n, start)
        for temperature, n in samples.items()
        for start in range(0, len(posts), max(1, ROWS // n))
    ]
    rows = []
    for temperature, n, start in run.progress(todo, len(todo), "batches sampled"):
        part = posts[start : start + max(1, ROWS // n)]
        at = dataclasses.replace(settings, temperature=temperature)
        drawn = sampling.sample(model, tokenizer, [post.text for post in part], n, at, seed + start)
        tokens, cut = drawn.lengths.tolist(), drawn.truncated.tolist()
        logprob = drawn.logprobs.sum(-1).tolist()
        ids = drawn.completion_ids.tolist()
        rows += [
            (
                post.id,
                post.text,
                i,
                temperature,
                drawn.texts[b][i],
                tokens[b][i],
                cut[b][i],
                logprob[b][i],
                ids[b][i][: tokens[b][i]],
            )
            for b, post in enumerate(part)
            for i in range(n)
        ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "ids"])


def people(posts: list, count_tokens: Callable[[str], int] | None = None) -> pd.DataFrame:
    """All human replies in the same columns; what people do not have (temperature, token limit, log-probability) is
    NaN, and so are the tokens without `count_tokens`."""
    rows = [
        (
            post.id,
            post.text,
            i,
            np.nan,
            reply,
            count_tokens(reply) if count_tokens else np.nan,
            np.nan,
            np.nan,
        )
        for post in posts
        for i, reply in enumerate(post.replies)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def save(rated: pd.DataFrame, folder: Path) -> None:
    """generations.jsonl in `folder`: one reply a line, the columns COLUMNS and those of RATED that there are; what
    does not exist (the temperature of people, BERTScore of an empty reply) is null."""
    names = [*COLUMNS, *(name for name in RATED if name in rated)]
    records = rated[names].round(DIGITS).to_dict("records")
    lines = (
        json.dumps(
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in record.items()
            },
            ensure_ascii=False,
        )
        for record in records
    )
    run.atomic_write(Path(folder) / "generations.jsonl", "".join(f"{line}\n" for line in lines))
