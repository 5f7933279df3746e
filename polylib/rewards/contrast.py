"""Replies that nobody wrote under the post: what a reward must not like although no reader ever judged it.

People's replies are all on topic and in order, so a reward fitted to them alone never learns that this is worth
anything. Replies of other posts and replies with their words shuffled are added to a post with no likes
(and none has more than the post's worst reply, where scores go below 0)."""

from __future__ import annotations

import numpy as np
import pandas as pd

SHUFFLED_WORDS = 3  # at least; the order of two words can be right by chance half of the time


def negatives(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """For every post of `rows`, up to n replies of other threads and up to n of its own with the words shuffled.

    Columns tweet_id, thread_id, tweet, reply, reply_likes = 0 (the post's lowest score
    if that is below) and kind (shuffled_post | shuffled_words); followers and delay are absent, so they neither help
    nor harm. Fewer than n where a post has fewer replies of three words, or there is no other thread."""
    rng, lines = np.random.default_rng(seed), []
    threads, replies = rows["thread_id"].to_numpy(), rows["reply"].to_numpy(dtype=object)
    likes = rows["reply_likes"].to_numpy()
    context = ["tweet_id", "thread_id", "tweet"]
    for own in rows.groupby("tweet_id", sort=True).indices.values():
        post = rows.iloc[own[0]][context].to_dict()
        drawn = rng.integers(len(rows), size=8 * n)
        foreign = [replies[k] for k in drawn if threads[k] != post["thread_id"]][:n]
        long = [k for k in own if len(set(replies[k].split())) >= SHUFFLED_WORDS]
        chosen = rng.choice(long, size=min(n, len(long)), replace=False) if long else []
        worst = min(0, int(likes[own].min()))
        mixed = [_shuffled(replies[k], rng) for k in chosen]
        for kind, texts in (("shuffled_post", foreign), ("shuffled_words", mixed)):
            lines += [post | {"reply": text, "reply_likes": worst, "kind": kind} for text in texts]
    return pd.DataFrame(lines, columns=[*context, "reply", "reply_likes", "kind"])


def _shuffled(reply: str, rng: np.random.Generator) -> str:
    """The words in another order than they came in."""
    words = reply.split()
    while (order := rng.permutation(words).tolist()) == words:
        pass
    return " ".join(order)
