"""Do the rewards rank people's replies as people did? One tidy table, before any policy trains on them.

Columns: dataset, model, metric, value, lo, hi, n. Pairs and rank correlations stay within one post, and every post
counts the same; intervals are 95 % bootstraps over whole threads (`ranking`). `engagement` is likes controlled for
post, followers and delay; `latent` is the simulator's secret quality, known only for simulated data."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pandas as pd

from polylib.config import RewardModelConfig
from polylib.reward_checks.ranking import Ranking
from polylib.rewards import calibration, conditional, learned
from polylib.rewards.learned import EngagementReward

COLUMNS = ["dataset", "model", "metric", "value", "lo", "hi", "n"]
# A published heuristic reward gives this one sentence .80-.89 of 1 under every post.
CONSTANT = "Honestly such a fair point. What made you see it this way? Curious to hear more."
CONTROLS = ("human", "shuffled_post", "shuffled_words", "constant")
EVENTS = range(2, 13)  # so many values of `source` are taken for events to be left out one by one


def table(
    rows: pd.DataFrame,
    rewards: list,
    encoder,
    truth: pd.DataFrame | None = None,
    dataset: str = "test",
    seed: int = 0,
    split: str = "test",
) -> pd.DataFrame:
    """The validation table of `rewards` (each with .name) and five baselines on the threads of one split.

    Against `engagement`, raw `likes` (where followers and delay still count) and, if truth[reply_id, latent] has
    rows, `latent`: the metrics of Ranking.compare. Against engagement also those of Ranking.bins, top_decile and,
    with a temperature fitted on the pairs of split validation, calibrated (raw: rewards only, as the units of a
    baseline are no log-odds); against likes, Ranking.balanced. For engagement and likes only pairs whose likes
    differ count. Controls, in the reward's own units: mean_human, mean_shuffled_post, mean_shuffled_words,
    mean_constant, and win_* = share of human replies that score above the control. Prints replies per second."""
    part = {
        name: rows[rows["split"] == name].reset_index(drop=True)
        for name in ("train", "validation", split)
    }
    train, tuned, held = part["train"], part["validation"], part[split]
    likes = held["reply_likes"].to_numpy(float)
    targets = {
        "engagement": held["engagement"].to_numpy(float),
        "likes": np.sign(likes) * np.log1p(np.abs(likes)),
    }
    if truth is not None and len(truth):
        targets["latent"] = (
            held["reply_id"].map(truth.set_index("reply_id")["latent"]).to_numpy(float)
        )
    posts, replies = list(held["tweet"]), list(held["reply"])
    encoder.encode(
        posts + replies
    )  # before the clock: embeddings are computed once for all rewards
    scores = baselines(train, pd.concat([held, tuned], ignore_index=True), encoder, seed)
    for reward in rewards:
        start = time.perf_counter()
        own = reward(posts, replies)
        print(
            f"{reward.name}: {len(held) / (time.perf_counter() - start):,.0f} replies/s with known embeddings"
        )
        scores[reward.name] = np.concatenate(
            [own, reward(list(tuned["tweet"]), list(tuned["reply"]))]
        )
    ranking, names, lines = _ranking(train, held), {reward.name for reward in rewards}, []
    for model, both in scores.items():
        score, found = both[: len(held)], []
        for name, target in targets.items():
            found += ranking.compare(score, target, name, seed)
        found += ranking.balanced(score, seed) + ranking.bins(score, targets["engagement"], seed)
        found.append(ranking.top_decile(score, targets["engagement"], seed))
        margin, weight = _margins(both[len(held) :], tuned)
        if len(margin):
            errors = ranking.calibrated(
                score, targets["engagement"], calibration.temperature(margin, weight)
            )
            found += errors if model in names else errors[:1]
        lines += [{"model": model} | line for line in found]
    for reward in rewards:
        human = scores[reward.name][: len(held)]
        lines += [
            {"model": reward.name} | line for line in _controls(reward, human, held, ranking, seed)
        ]
    return pd.DataFrame(lines).assign(dataset=dataset)[COLUMNS]


def variants(
    rows: pd.DataFrame, encoder, cfg: RewardModelConfig, seed: int
) -> list[EngagementReward]:
    """The engagement model fitted to the other objectives, as labelled baselines: learned_pairs, learned_nmse, ...
    nmse is left out where likes of the posts are unknown."""
    train, validation = (rows[rows["split"] == name] for name in ("train", "validation"))
    known = "tweet_likes" in rows and rows["tweet_likes"].notna().all()
    fitted = []
    for objective in ("conditional", "pairs", "nmse"):
        if objective == cfg.objective or (objective == "nmse" and not known):
            continue
        reward = learned.fit(
            train, validation, encoder, dataclasses.replace(cfg, objective=objective), seed
        )
        reward.name = f"learned_{objective}"
        fitted.append(reward)
    return fitted


def left_out(
    rows: pd.DataFrame, encoder, cfg: RewardModelConfig, dataset: str, seed: int, members: int = 2
) -> pd.DataFrame:
    """Does the learned reward carry over to an event it never saw? One line for each of 2 to 12 values of `source`,
    metric pair_accuracy_left_out_<event>: fitted without the event's threads, ranked on all of them (engagement),
    with an ensemble of `members` to keep it short. No lines with one source, or where an event has no pair."""
    lines, events = [], sorted(rows["source"].dropna().unique())
    for event in events if len(events) in EVENTS else []:
        out = rows["source"].eq(event)
        held, others = rows[out].reset_index(drop=True), rows[~out]
        train, validation = (others[others["split"] == name] for name in ("train", "validation"))
        small = dataclasses.replace(cfg, members=min(members, cfg.members))
        reward = learned.fit(train, validation, encoder, small, seed)
        score = reward(list(held["tweet"]), list(held["reply"]))
        line = Ranking(held).compare(score, held["engagement"].to_numpy(float), "engagement", seed)[
            0
        ]
        if line["n"]:
            name = (
                event.partition("/")[2].replace("/", "_") or event
            )  # pheme/ferguson, stackexchange/alcohol/answer
            lines.append(line | {"model": "learned", "metric": f"pair_accuracy_left_out_{name}"})
    return pd.DataFrame(lines, columns=COLUMNS).assign(dataset=dataset)


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


def _controls(
    reward, human: np.ndarray, held: pd.DataFrame, ranking: Ranking, seed: int
) -> list[dict]:
    posts, replies = list(held["tweet"]), list(held["reply"])
    texts = {
        "shuffled_post": other_posts(held, seed),
        "shuffled_words": shuffled_words(replies, seed),
        "constant": [CONSTANT] * len(held),
    }
    scores = {"human": human, **{name: reward(posts, text) for name, text in texts.items()}}
    lines = [{"metric": f"mean_{name}", **ranking.mean(scores[name], seed)} for name in CONTROLS]
    return lines + [
        {
            "metric": f"win_{name}",
            **ranking.mean((human > scores[name]) + 0.5 * (human == scores[name]), seed),
        }
        for name in CONTROLS[1:]
    ]


def _ranking(train: pd.DataFrame, held: pd.DataFrame) -> Ranking:
    """With reach from training threads, and what it is worth there in pairs that differ in likes."""
    likes = train["reply_likes"].to_numpy(float)
    margin, weight = calibration.margins(
        conditional.offsets(train), likes, likes, train["tweet_id"]
    )
    return Ranking(held, conditional.offsets(held, train), calibration.curve(margin, weight))


def _margins(score: np.ndarray, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    likes, target = rows["reply_likes"].to_numpy(float), rows["engagement"].to_numpy(float)
    return calibration.margins(score, target, likes, rows["tweet_id"])
