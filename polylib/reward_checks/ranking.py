"""How well scores order people's replies within posts, with intervals over threads.

Every line is {metric, value, lo, hi, n}: lo and hi are a 95 % percentile bootstrap that draws whole threads with
all they hold, since replies of one thread are not independent; n counts pairs, posts or replies. A pair accuracy is
the mean over posts of the accuracy within a post: pairs grow with the square of a post's replies, and one long thread
would decide a pooled share (`pair_accuracy_pooled_*` is that, for comparison)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from polylib.rewards import calibration

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
TOP = 0.9  # quantile of engagement above which a reply is in the top decile
LEAST = 0.05  # no pair weighs more than 1 / LEAST when reach is balanced


class Ranking:
    """Pairs within the posts of `held` (tweet_id, thread_id, reply, reply_likes).

    reach (N,): score by followers and delay alone, from other threads, with curve = calibration.curve of its
    margins there; None = unknown, so that both replies of a pair are as likely to win."""

    def __init__(self, held: pd.DataFrame, reach: np.ndarray | None = None, curve=((0.0,), (0.5,))):
        self.thread = pd.factorize(held["thread_id"])[0]
        self.likes = held["reply_likes"].to_numpy(float)
        self.length = held["reply"].str.len().clip(lower=1).to_numpy(float)
        self.parent = held["tweet_id"]
        self.post = pd.factorize(held["tweet_id"])[0]
        self.reach, self.curve = np.zeros(len(held)) if reach is None else reach, curve
        self._drawn: dict[int, np.ndarray] = {}
        self.members = [rows for rows in held.groupby("tweet_id").indices.values() if len(rows) > 1]
        pairs = [
            np.stack([rows[k] for k in np.triu_indices(len(rows), 1)]) for rows in self.members
        ]
        self.i, self.j = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=int)

    def compare(self, score: np.ndarray, target: np.ndarray, name: str, seed: int) -> list[dict]:
        """pair_accuracy_<name>, pair_accuracy_clear_<name> (targets at least one sd apart), spearman_<name>,
        pair_accuracy_pooled_<name> (every pair counts the same, so that a post of 100 replies counts as 500 of 5).

        A pair of different likes keeps its own controlled values: they take out what reach did to it."""
        gap = target[self.i] - target[self.j]
        right, known = self._right(score, target), np.abs(gap) > 0
        if (
            name != "latent"
        ):  # two unliked replies differ in controlled engagement by followers and delay alone
            known &= self.likes[self.i] != self.likes[self.j]
        clear = known & (np.abs(gap) >= np.nanstd(target))
        rho, first = self._spearman(score, target, name)
        return [
            self._pairs(f"pair_accuracy_{name}", right, known, seed),
            self._pairs(f"pair_accuracy_clear_{name}", right, clear, seed),
            {"metric": f"spearman_{name}"} | self._boot(rho, self.thread[first], seed),
            {"metric": f"pair_accuracy_pooled_{name}"}
            | self._boot(right[known], self.thread[self.i[known]], seed),
        ]

    def balanced(self, score: np.ndarray, seed: int) -> list[dict]:
        """pair_accuracy_balanced: pairs by likes, each weighted by 1 / P(its winner wins | followers, delay), as if
        reach had been handed out at random (inverse probability weights, Horvitz & Thompson 1952). Divided by the sum
        of weights over all posts, not within each: in a post with one pair its weight would cancel.

        A residual of log likes cannot do this where most replies have none: 1 against 0 stays the larger."""
        winner = np.sign(self.likes[self.i] - self.likes[self.j])
        margin = winner * (self.reach[self.i] - self.reach[self.j])
        larger = np.interp(np.abs(margin), *self.curve)  # chance of the reply with more reach
        chance = np.select([margin > 0, margin < 0], [larger, 1 - larger], 0.5)
        weight = 1 / np.maximum(chance, LEAST)
        return [
            self._pairs(
                "pair_accuracy_balanced", self._right(score, self.likes), winner != 0, seed, weight
            )
        ]

    def bins(self, score: np.ndarray, target: np.ndarray, seed: int) -> list[dict]:
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
                lines.append(
                    self._pairs(
                        f"pair_accuracy_{kind}_{label}",
                        right,
                        known & (ratio >= a) & (ratio < b),
                        seed,
                    )
                )
        return lines

    def top_decile(self, score: np.ndarray, target: np.ndarray, seed: int) -> dict:
        """auc_top_decile: chance that a reply of the top decile by `target` scores above one that is not, among
        replies of posts where likes differ. Unlike pairs it compares scores across posts. Equally liked replies of one
        post are in that decile together or not at all (calibration.tied)."""
        target = calibration.tied(target, self.likes, self.parent)
        some = [rows for rows in self.members if np.ptp(self.likes[rows]) > 0]
        rows = np.concatenate(some) if some else np.zeros(0, dtype=int)
        top = (
            target[rows] > np.quantile(target[rows], TOP) if len(rows) else np.zeros(0, dtype=bool)
        )
        if not top.any() or top.all():
            return {"metric": "auc_top_decile", "value": np.nan, "lo": np.nan, "hi": np.nan, "n": 0}
        order = np.argsort(score[rows], kind="stable")
        rows, top = rows[order], top[order]
        new = np.flatnonzero(
            np.diff(score[rows], prepend=np.nan) != 0
        )  # first row of every group of equal scores
        weight = np.vstack([np.ones(self.thread.max() + 1), self._draws(seed)])[
            :, self.thread[rows]
        ]
        above = np.add.reduceat(weight * top, new, axis=1)
        below = np.add.reduceat(weight * ~top, new, axis=1)
        won = (above * (np.cumsum(below, axis=1) - 0.5 * below)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        auc = won[pairs > 0] / pairs[pairs > 0]
        lo, hi = np.quantile(auc[1:], [0.025, 0.975])
        return {
            "metric": "auc_top_decile",
            "value": float(auc[0]),
            "lo": float(lo),
            "hi": float(hi),
            "n": len(rows),
        }

    def calibrated(self, score: np.ndarray, target: np.ndarray, temperature: float) -> list[dict]:
        """ece_calibrated (differences over `temperature` read as log-odds), ece_raw (as they are), temperature.

        Without intervals: resampling adds noise to every bin, and an error of bins only grows with noise."""
        margin, weight = calibration.margins(score, target, self.likes, self.parent)
        none = {"lo": np.nan, "hi": np.nan, "n": len(margin)}
        return [
            {
                "metric": "ece_calibrated",
                "value": calibration.expected_error(margin / temperature, weight),
            }
            | none,
            {"metric": "ece_raw", "value": calibration.expected_error(margin, weight)} | none,
            {"metric": "temperature", "value": temperature} | none,
        ]

    def mean(self, values: np.ndarray, seed: int) -> dict:
        return self._boot(np.asarray(values, float), self.thread, seed)

    def _right(self, score: np.ndarray, target: np.ndarray) -> np.ndarray:
        gap = target[self.i] - target[self.j]
        return 0.5 + 0.5 * np.sign(gap) * np.sign(score[self.i] - score[self.j])

    def _pairs(
        self, metric: str, right: np.ndarray, known: np.ndarray, seed: int, weight=None
    ) -> dict:
        """Mean over the posts that have such pairs: a pair's weight is `weight` (1) over its post's number of them."""
        post = self.post[self.i[known]]
        each = (1.0 if weight is None else weight[known]) / np.bincount(post)[post]
        return {"metric": metric} | self._boot(right[known], self.thread[self.i[known]], seed, each)

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
            if len(rows) < 3 or np.ptp(score[rows]) == 0 or not np.ptp(target[rows]) > 0:
                continue
            if name != "latent" and np.ptp(self.likes[rows]) == 0:
                continue
            rho.append(np.corrcoef(rankdata(score[rows]), rankdata(target[rows]))[0, 1])
            first.append(rows[0])
        return np.array(rho), np.array(first, dtype=int)

    def _draws(self, seed: int) -> np.ndarray:
        """How often each thread is drawn (BOOTSTRAP, threads): the same draws for every line of one seed."""
        if seed not in self._drawn:
            threads, rng = int(self.thread.max()) + 1, np.random.default_rng(seed)
            self._drawn[seed] = rng.multinomial(
                threads, np.full(threads, 1 / threads), size=BOOTSTRAP
            )
        return self._drawn[seed]

    def _boot(
        self, values: np.ndarray, thread: np.ndarray, seed: int, weight: np.ndarray | None = None
    ) -> dict:
        """(Weighted) mean with a percentile interval: threads drawn with replacement, all their values with them; no
        interval (NaN) where fewer than FEWEST threads carry a value."""
        if not len(values):
            return {"value": np.nan, "lo": np.nan, "hi": np.nan, "n": 0}
        weight, threads = (
            np.ones(len(values)) if weight is None else weight,
            int(self.thread.max()) + 1,
        )
        total, size = (
            np.bincount(thread, weight * values, threads),
            np.bincount(thread, weight, threads),
        )
        draws = self._draws(seed)
        drawn = draws @ size
        means = (draws @ total)[drawn > 0] / drawn[drawn > 0]
        known = np.count_nonzero(size) >= FEWEST
        lo, hi = np.quantile(means, [0.025, 0.975]) if known else (np.nan, np.nan)
        return {
            "value": float(total.sum() / size.sum()),
            "lo": float(lo),
            "hi": float(hi),
            "n": len(values),
        }
