"""Do the rewards rank people's replies as people did? One tidy table, before any policy trains on them.

Columns: dataset, model, metric, value, lo, hi, n. Pairs and rank correlations stay within one post, and every post
counts the same; intervals are 95 % bootstraps over whole threads. `engagement` is likes controlled for
post, followers and delay; `latent` is the simulator's secret quality, known only for simulated data."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from polylib.rewards import calibration, conditional

COLUMNS = ["dataset", "model", "metric", "value", "lo", "hi", "n"]
BOOTSTRAP = 1000
FEWEST = 5  # threads: below that, resampling them says nothing about other threads
RATIOS = (1.0, 1.5, 2.0, 4.0, np.inf)  # edges of (winner's likes + 1) / (loser's likes + 1)
LENGTHS = (
    1.0,
    1.1,
    1.5,
    3.0,
    np.inf,
)  # edges of longer reply / shorter reply in characters; the first is "matched"
LEAST = 0.05  # no pair weighs more than 1 / LEAST when reach is balanced
# A published heuristic reward gives this one sentence .80-.89 of 1 under every post.
CONSTANT = "Honestly such a fair point. What made you see it this way? Curious to hear more."


class Ranking:
    """How well scores order people's replies: pairs within the posts of `held` (tweet_id, thread_id, reply,
    reply_likes), with intervals over threads, which `seed` draws.

    Every line is {metric, value, lo, hi, n}: lo and hi are a 95 % percentile bootstrap that draws whole threads with
    all they hold, since replies of one thread are not independent; n counts pairs, posts or replies. A pair accuracy is
    the mean over posts of the accuracy within a post: pairs grow with the square of a post's replies, and one long
    thread would decide a pooled share.

    reach (N,): score by followers and delay alone, from other threads, with curve = calibration.curve of its
    margins there; None = unknown, so that both replies of a pair are as likely to win."""

    def __init__(
        self,
        held: pd.DataFrame,
        seed: int = 0,
        reach: np.ndarray | None = None,
        curve=((0.0,), (0.5,)),
    ):
        self.thread = pd.factorize(held["thread_id"])[0]
        self.likes = held["reply_likes"].to_numpy(float)
        self.length = held["reply"].str.len().clip(lower=1).to_numpy(float)
        self.parent = held["tweet_id"]
        self.post = pd.factorize(held["tweet_id"])[0]
        self.reach, self.curve = np.zeros(len(held)) if reach is None else reach, curve
        threads = int(self.thread.max()) + 1
        self.draws = np.random.default_rng(seed).multinomial(
            threads, np.full(threads, 1 / threads), size=BOOTSTRAP
        )
        self.members = [rows for rows in held.groupby("tweet_id").indices.values() if len(rows) > 1]
        pairs = [
            np.stack([rows[k] for k in np.triu_indices(len(rows), 1)]) for rows in self.members
        ]
        self.i, self.j = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=int)

    def compare(self, score: np.ndarray, target: np.ndarray, name: str) -> list[dict]:
        """pair_accuracy_<name>, spearman_<name>.

        A pair of different likes keeps its own controlled values: they take out what reach did to it."""
        known = np.abs(target[self.i] - target[self.j]) > 0
        if (
            name != "latent"
        ):  # two unliked replies differ in controlled engagement by followers and delay alone
            known &= self.likes[self.i] != self.likes[self.j]
        rho, first = self._spearman(score, target, name)
        return [
            self._pairs(f"pair_accuracy_{name}", self._right(score, target), known),
            {"metric": f"spearman_{name}"} | self._boot(rho, self.thread[first]),
        ]

    def balanced(self, score: np.ndarray) -> dict:
        """pair_accuracy_balanced: pairs by likes, each weighted by 1 / P(its winner wins | followers, delay), as if
        reach had been handed out at random (inverse probability weights, Horvitz & Thompson 1952). Divided by the sum
        of weights over all posts, not within each: in a post with one pair its weight would cancel.

        A residual of log likes cannot do this where most replies have none: 1 against 0 stays the larger."""
        winner = np.sign(self.likes[self.i] - self.likes[self.j])
        margin = winner * (self.reach[self.i] - self.reach[self.j])
        larger = np.interp(np.abs(margin), *self.curve)  # chance of the reply with more reach
        chance = np.select([margin > 0, margin < 0], [larger, 1 - larger], 0.5)
        weight = 1 / np.maximum(chance, LEAST)
        right = self._right(score, self.likes)
        return self._pairs("pair_accuracy_balanced", right, winner != 0, weight)

    def bins(self, score: np.ndarray, target: np.ndarray) -> list[dict]:
        """pair_accuracy_ratio_<a>_<b> and pair_accuracy_length_<a>_<b> (pair_accuracy_length_matched: within 10 %)
        against `target`: by how clearly the likes differ, and by how much the lengths do."""
        right = self._right(score, target)
        known = (target[self.i] != target[self.j]) & (self.likes[self.i] != self.likes[self.j])
        lines = []
        for kind, size, edges in (
            ("ratio", self.likes + 1, RATIOS),
            ("length", self.length, LENGTHS),
        ):
            ratio = np.maximum(size[self.i], size[self.j]) / np.minimum(size[self.i], size[self.j])
            for a, b in zip(edges, edges[1:]):
                label = "matched" if (kind, a) == ("length", 1.0) else f"{a:g}_{b:g}"
                inside = known & (ratio >= a) & (ratio < b)
                lines.append(self._pairs(f"pair_accuracy_{kind}_{label}", right, inside))
        return lines

    def mean(self, values: np.ndarray) -> dict:
        return self._boot(np.asarray(values, float), self.thread)

    def _right(self, score: np.ndarray, target: np.ndarray) -> np.ndarray:
        gap = target[self.i] - target[self.j]
        return 0.5 + 0.5 * np.sign(gap) * np.sign(score[self.i] - score[self.j])

    def _pairs(self, metric: str, right: np.ndarray, known: np.ndarray, weight=None) -> dict:
        """Mean over the posts that have such pairs: a pair's weight is `weight` (1) over its post's number of them."""
        post = self.post[self.i[known]]
        each = (1.0 if weight is None else weight[known]) / np.bincount(post)[post]
        return {"metric": metric} | self._boot(right[known], self.thread[self.i[known]], each)

    def _spearman(
        self, score: np.ndarray, target: np.ndarray, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank correlation of every post with at least three replies where neither side is constant.

        Equally liked replies share their average rank, unless the target is the latent quality itself: the control
        would rank them by followers and delay alone."""
        if name != "latent":
            target = calibration.tied(target, self.likes, self.parent)
        rho, first = [], []
        for rows in self.members:
            alike = name != "latent" and np.ptp(self.likes[rows]) == 0
            if len(rows) > 2 and np.ptp(score[rows]) and np.ptp(target[rows]) > 0 and not alike:
                rho.append(np.corrcoef(rankdata(score[rows]), rankdata(target[rows]))[0, 1])
                first.append(rows[0])
        return np.array(rho), np.array(first, dtype=int)

    def _boot(
        self, values: np.ndarray, thread: np.ndarray, weight: np.ndarray | None = None
    ) -> dict:
        """(Weighted) mean with a percentile interval: threads drawn with replacement, all their values with them; no
        interval (NaN) where fewer than FEWEST threads carry a value."""
        if not len(values):
            return {"value": np.nan, "lo": np.nan, "hi": np.nan, "n": 0}
        weight, threads = np.ones(len(values)) if weight is None else weight, self.draws.shape[1]
        total = np.bincount(thread, weight * values, threads)
        size = np.bincount(thread, weight, threads)
        drawn = self.draws @ size
        means = (self.draws @ total)[drawn > 0] / drawn[drawn > 0]
        known = np.count_nonzero(size) >= FEWEST
        lo, hi = np.quantile(means, [0.025, 0.975]) if known else (np.nan, np.nan)
        return {
            "value": float(total.sum() / size.sum()),
            "lo": float(lo),
            "hi": float(hi),
            "n": len(values),
        }


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
