"""Do the rewards rank people's replies as people did? One tidy table, before any policy trains on them.

Columns: dataset, model, metric, value, lo, hi, n. Pairs and rank correlations stay within one post; intervals
are 95 % bootstraps over whole threads, since replies of one thread are not independent. `engagement` is likes
controlled for post, followers and delay; `latent` is the simulator's secret quality, known only for simulated
data."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from polylib.rewards import conditional

BOOTSTRAP = 1000
# A published heuristic reward gives this one sentence .80-.89 of 1 under every post.
CONSTANT = "Honestly such a fair point. What made you see it this way? Curious to hear more."
CONTROLS = ("human", "shuffled_post", "shuffled_words", "constant")


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

    Metrics against `engagement`, raw `likes` (where followers and delay still count) and, if truth[reply_id,
    latent] has rows, `latent`: pair_accuracy_* (share of pairs within a post ranked alike, ties half),
    pair_accuracy_clear_* (pairs at least one sd of the target apart), spearman_* (mean over posts). For the
    first two only pairs whose likes differ count: which of two unliked replies has more controlled engagement
    is decided by the control, not by readers. Controls, in the reward's own units: mean_human,
    mean_shuffled_post, mean_shuffled_words, mean_constant, and win_* = share of human replies that score
    above the control. Prints replies scored per second."""
    held = rows[rows["split"] == split].reset_index(drop=True)
    targets = {
        "engagement": held["engagement"].to_numpy(float),
        "likes": np.log1p(held["reply_likes"].to_numpy(float)),
    }
    if truth is not None and len(truth):
        targets["latent"] = held["reply_id"].map(truth.set_index("reply_id")["latent"]).to_numpy(float)
    posts, replies = list(held["tweet"]), list(held["reply"])
    encoder.encode(posts + replies)  # before the clock: embeddings are computed once for all rewards
    threads, lines = _Threads(held), []
    scores = baselines(rows[rows["split"] == "train"], held, encoder, seed)
    for reward in rewards:
        start = time.perf_counter()
        scores[reward.name] = reward(posts, replies)
        print(f"{reward.name}: {len(held) / (time.perf_counter() - start):,.0f} replies/s with known embeddings")
    for model, score in scores.items():
        for name, target in targets.items():
            lines += [{"model": model, **line} for line in threads.compare(score, target, name, seed)]
    for reward in rewards:
        lines += [
            {"model": reward.name, **line} for line in _controls(reward, scores[reward.name], held, threads, seed)
        ]
    return pd.DataFrame(lines).assign(dataset=dataset)[["dataset", "model", "metric", "value", "lo", "hi", "n"]]


def metrics(validation: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{model: {metric: value}} of one dataset's table for metrics.json, without intervals and without what is
    NaN."""
    known = validation.dropna(subset=["value"])
    return {model: dict(zip(part["metric"], part["value"].round(4))) for model, part in known.groupby("model")}


def baselines(train: pd.DataFrame, held: pd.DataFrame, encoder, seed: int) -> dict[str, np.ndarray]:
    """Scores (N,) that a reward has to beat, fitted (where there is anything to fit) on training threads."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    ridge = Ridge(alpha=10.0).fit(words.fit_transform(train["reply"]), train["engagement"])
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
    return [" ".join(rng.permutation(reply.split())) if reply.split() else reply for reply in replies]


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


def _controls(reward, human: np.ndarray, held: pd.DataFrame, threads: _Threads, seed: int) -> list[dict]:
    posts, replies = list(held["tweet"]), list(held["reply"])
    texts = {
        "shuffled_post": other_posts(held, seed),
        "shuffled_words": shuffled_words(replies, seed),
        "constant": [CONSTANT] * len(held),
    }
    scores = {"human": human, **{name: reward(posts, text) for name, text in texts.items()}}
    lines = [{"metric": f"mean_{name}", **threads.mean(scores[name], seed)} for name in CONTROLS]
    return lines + [
        {
            "metric": f"win_{name}",
            **threads.mean((human > scores[name]) + 0.5 * (human == scores[name]), seed),
        }
        for name in CONTROLS[1:]
    ]


class _Threads:
    """Pairs within posts, and bootstrap weights over threads."""

    def __init__(self, held: pd.DataFrame):
        self.thread = pd.factorize(held["thread_id"])[0]
        self.likes = held["reply_likes"].to_numpy(float)
        self.members = [rows for rows in held.groupby("tweet_id").indices.values() if len(rows) > 1]
        pairs = [np.stack([rows[k] for k in np.triu_indices(len(rows), 1)]) for rows in self.members]
        self.i, self.j = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=int)
        self.group = np.repeat(np.arange(len(self.members)), [len(rows) for rows in self.members])
        self.rows = np.concatenate(self.members) if self.members else np.zeros(0, dtype=int)

    def compare(self, score: np.ndarray, target: np.ndarray, name: str, seed: int) -> list[dict]:
        gap = target[self.i] - target[self.j]
        right = 0.5 + 0.5 * np.sign(gap) * np.sign(score[self.i] - score[self.j])
        known = np.abs(gap) > 0
        if name != "latent":  # two unliked replies differ in controlled engagement by followers and delay alone
            known &= self.likes[self.i] != self.likes[self.j]
        clear = known & (np.abs(gap) >= np.nanstd(target))
        rho, first = self._spearman(score, target, name)
        return [
            {"metric": f"pair_accuracy_{name}", **self._boot(right[known], self.thread[self.i[known]], seed)},
            {
                "metric": f"pair_accuracy_clear_{name}",
                **self._boot(right[clear], self.thread[self.i[clear]], seed),
            },
            {"metric": f"spearman_{name}", **self._boot(rho, self.thread[first], seed)},
        ]

    def mean(self, values: np.ndarray, seed: int) -> dict:
        return self._boot(np.asarray(values, float), self.thread, seed)

    def _spearman(self, score: np.ndarray, target: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rank correlation of every post with at least three replies where neither side is constant."""
        rho, first = [], []
        for rows in self.members:
            if len(rows) < 3 or np.ptp(score[rows]) == 0 or not np.ptp(target[rows]) > 0:
                continue
            if name != "latent" and np.ptp(self.likes[rows]) == 0:
                continue
            rho.append(np.corrcoef(rankdata(score[rows]), rankdata(target[rows]))[0, 1])
            first.append(rows[0])
        return np.array(rho), np.array(first, dtype=int)

    def _boot(self, values: np.ndarray, thread: np.ndarray, seed: int) -> dict:
        """Mean with a percentile interval: threads drawn with replacement, all their values with them."""
        if not len(values):
            return {"value": np.nan, "lo": np.nan, "hi": np.nan, "n": 0}
        threads = int(self.thread.max()) + 1
        total, count = np.bincount(thread, values, threads), np.bincount(thread, minlength=threads)
        draws = np.random.default_rng(seed).multinomial(threads, np.full(threads, 1 / threads), size=BOOTSTRAP)
        size = draws @ count
        means = (draws @ total)[size > 0] / size[size > 0]
        lo, hi = np.quantile(means, [0.025, 0.975])
        return {"value": float(values.mean()), "lo": float(lo), "hi": float(hi), "n": len(values)}
