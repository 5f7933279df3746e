"""Do the rewards rank people's replies as people did? One tidy table, before any policy trains on them.

Columns: dataset, model, metric, value, lo, hi, n. Pairs and rank correlations stay within one post, and every post
counts the same; intervals are 95 % bootstraps over whole threads (`ranking`). `engagement` is likes controlled for
post, followers and delay; `latent` is the simulator's secret quality, known only for simulated data."""

import numpy as np
import pandas as pd

from polylib.reward_checks.ranking import Ranking
from polylib.rewards import calibration, conditional

COLUMNS = ["dataset", "model", "metric", "value", "lo", "hi", "n"]
# A published heuristic reward gives this one sentence .80-.89 of 1 under every post.
CONSTANT = "Honestly such a fair point. What made you see it this way? Curious to hear more."


def table(
    rows: pd.DataFrame,
    rewards: list,
    encoder,
    truth: pd.DataFrame | None = None,
    dataset: str = "test",
    seed: int = 0,
) -> pd.DataFrame:
    """The validation table of `rewards` (each with .name) and five baselines on the threads of split test.

    Against `engagement`, raw `likes` (where followers and delay still count) and, if truth[reply_id, latent] has
    rows, `latent`: the metrics of Ranking.compare; against engagement also those of Ranking.bins, against likes
    Ranking.balanced. For engagement and likes only pairs whose likes differ count. Controls, in the reward's own units:
    mean_human, mean_shuffled_post, mean_shuffled_words, mean_constant, and win_* = share of human replies that score
    above the control."""
    train, held = (rows[rows["split"] == name].reset_index(drop=True) for name in ("train", "test"))
    likes = held["reply_likes"].to_numpy(float)
    targets = {
        "engagement": held["engagement"].to_numpy(float),
        "likes": np.sign(likes) * np.log1p(np.abs(likes)),
    }
    if truth is not None and len(truth):
        latent = held["reply_id"].map(truth.set_index("reply_id")["latent"])
        targets["latent"] = latent.to_numpy(float)
    posts, replies = list(held["tweet"]), list(held["reply"])
    scores = baselines(train, held, encoder, seed)
    scores |= {reward.name: reward(posts, replies) for reward in rewards}
    liked = train["reply_likes"].to_numpy(float)
    reach = calibration.margins(conditional.offsets(train), liked, liked, train["tweet_id"])
    worth = calibration.curve(*reach)
    ranking, lines = Ranking(held, seed, conditional.offsets(held, train), worth), []
    for model, score in scores.items():
        found = []
        for name, target in targets.items():
            found += ranking.compare(score, target, name)
        found += [ranking.balanced(score), *ranking.bins(score, targets["engagement"])]
        lines += [{"model": model} | line for line in found]
    texts = {
        "shuffled_post": other_posts(held, seed),
        "shuffled_words": shuffled_words(replies, seed),
        "constant": [CONSTANT] * len(held),
    }
    for reward in rewards:
        human = scores[reward.name]
        line = {"model": reward.name}
        lines.append(line | {"metric": "mean_human"} | ranking.mean(human))
        for name, text in texts.items():
            value = reward(posts, text)
            wins = (human > value) + 0.5 * (human == value)
            lines.append(line | {"metric": f"mean_{name}"} | ranking.mean(value))
            lines.append(line | {"metric": f"win_{name}"} | ranking.mean(wins))
    return pd.DataFrame(lines).assign(dataset=dataset)[COLUMNS]


def metrics(validation: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{model: {metric: value}} of one dataset's table for metrics.json, without intervals and without what is
    NaN."""
    known = validation.dropna(subset=["value"])
    return {
        model: dict(zip(part["metric"], part["value"].round(4)))
        for model, part in known.groupby("model")
    }


def baselines(train: pd.DataFrame, held: pd.DataFrame, encoder, seed: int) -> dict[str, np.ndarray]:
    """Scores (N,) that a reward has to beat, fitted (where there is anything to fit) on training threads.

    The ridge's target is controlled engagement, the same for a post's equally liked replies (calibration.tied): what
    followers and delay predict is not to be learned from words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    likes = train["reply_likes"].to_numpy(float)
    target = calibration.tied(train["engagement"].to_numpy(float), likes, train["tweet_id"])
    ridge = Ridge(alpha=10.0).fit(words.fit_transform(train["reply"]), target)
    cosine = (encoder.encode(list(held["tweet"])) * encoder.encode(list(held["reply"]))).sum(axis=1)
    return {
        "random": np.random.default_rng(seed).normal(size=len(held)),
        "length_only": held["reply"].str.len().to_numpy(float),
        "parent_echo": cosine.astype(float),
        "tfidf_ridge": ridge.predict(words.transform(held["reply"])),
        "followers_and_delay_only": conditional.offsets(held, train),
    }


def shuffled_words(replies: list[str], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.permutation(reply.split())) if reply.split() else reply for reply in replies
    ]


def other_posts(held: pd.DataFrame, seed: int) -> list[str]:
    """For every row a reply that was written under another post: a cyclic shift over posts in random order,
    so that every reply is used and none meets its own post. Raises ValueError if one post has more than half
    of the replies."""
    order = np.random.default_rng(seed).permutation(held["tweet_id"].unique())
    rank = held["tweet_id"].map({post: i for i, post in enumerate(order)}).to_numpy()
    rows = np.argsort(rank, kind="stable")
    shift = int(np.bincount(rank).max())
    moved = np.roll(rows, shift)
    if (rank[rows] == rank[moved]).any():
        raise ValueError("no derangement: one post has more than half of the replies")
    replies = held["reply"].to_numpy(dtype=object)
    out = np.empty(len(held), dtype=object)
    out[rows] = replies[moved]
    return out.tolist()
