"""Preference pairs within one post: which of two human replies people liked better, other things being near
equal."""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib.config import DataConfig
from polylib.data import text as texts

COLUMNS = (
    "pair_id",
    "thread_id",
    "tweet_id",
    "split",
    "phase",
    "tweet",
    "chosen_id",
    "rejected_id",
    "chosen",
    "rejected",
    "chosen_likes",
    "rejected_likes",
    "margin",
    "engagement_gap",
    "timing",
)
COMPARABLE_SECONDS = 3600  # DialogRPT (Gao et al. 2020): at most an hour apart
COMPARABLE_FACTOR = (
    2  # and, in threads that are over in minutes, within a factor of two of each other
)
TIMINGS = ("later", "comparable", "unknown")  # in order of preference


def signed_log(likes: pd.Series) -> np.ndarray:
    """log1p of the likes; a score below 0 counts as far below as its opposite is above."""
    score = likes.to_numpy(dtype=float)
    return np.sign(score) * np.log1p(np.abs(score))


def preference_pairs(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """At most `pairs_per_post` pairs for each post of split rows, columns COLUMNS; deterministic in
    split_seed.

    A pair needs (likes_w + 1) / (likes_l + 1) >= pair_min_ratio (a score y below 0 enters as 1 / (1 - y) in the
    place of likes + 1: as far below one as its opposite is above), and the winner must also lead after
    followers and delay are taken out (engagement_gap > 0). timing: `later`, the winner was posted later, so
    less time cannot be what it won by (SHP, Ethayarajh et al. 2022); `comparable`, delays close to each
    other; `unknown`, no delays known. A winner that was simply much earlier makes no pair. Pairs are taken in
    that order, then by hash, so that one runaway reply does not fill the quota by its ratio. margin =
    the log of that ratio, for a margin in the loss."""
    likes, delay, engagement = (
        rows[c].to_numpy(dtype=float)
        for c in ("reply_likes", "reply_time_diff_seconds", "engagement")
    )
    found = [
        _of_post(at, likes[at], delay[at], engagement[at], data.pair_min_ratio)
        for at in rows.groupby("tweet_id").indices.values()
    ]
    winner, loser, timing = (np.concatenate(parts) for parts in zip(*found, strict=True))
    chosen, rejected = rows.iloc[winner], rows.iloc[loser]
    columns = {
        name: chosen[name].to_numpy()
        for name in ("thread_id", "tweet_id", "split", "phase", "tweet")
    }
    for side, part in (("chosen", chosen), ("rejected", rejected)):
        columns |= {
            f"{side}_id": part["reply_id"].to_numpy(),
            side: part["reply"].to_numpy(),
            f"{side}_likes": part["reply_likes"].to_numpy(),
        }
    pairs = pd.DataFrame(columns)
    pairs["margin"] = np.log(_odds(pairs["chosen_likes"]) / _odds(pairs["rejected_likes"]))
    pairs["engagement_gap"] = chosen["engagement"].to_numpy() - rejected["engagement"].to_numpy()
    pairs["timing"] = np.array(TIMINGS, dtype=object)[timing]
    pairs["pair_id"] = pairs["chosen_id"] + ">" + pairs["rejected_id"]
    order = pd.DataFrame(
        {
            "tweet_id": pairs["tweet_id"],
            "timing": timing,
            "hash": texts.seeded_hash(pairs["pair_id"], data.split_seed),
        }
    )
    order = order.sort_values(["tweet_id", "timing", "hash"])
    order = order[order.groupby("tweet_id").cumcount() < data.pairs_per_post]
    return pairs.loc[order.index, list(COLUMNS)].reset_index(drop=True)


def _odds(likes: np.ndarray | pd.Series) -> np.ndarray:
    """likes + 1; 1 / (1 - likes) below 0, so that its log is that of `signed_log`."""
    likes = np.asarray(likes, dtype=float)
    return np.where(likes < 0, 1 / (1 - np.minimum(likes, 0)), likes + 1)


def _of_post(
    at: np.ndarray, likes: np.ndarray, delay: np.ndarray, engagement: np.ndarray, min_ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of winners and losers and the index into TIMINGS, for the rows `at` of one post."""
    w, lo = np.nonzero(
        (_odds(likes)[:, None] >= min_ratio * _odds(likes)[None, :])
        & (engagement[:, None] > engagement[None, :])
        & (likes[:, None] > likes[None, :])
    )
    unknown = np.isnan(delay[w]) | np.isnan(delay[lo])
    later = delay[w] >= delay[lo]
    comparable = (delay[lo] - delay[w] <= COMPARABLE_SECONDS) & (
        delay[lo] <= COMPARABLE_FACTOR * delay[w]
    )
    timing = np.select([unknown, later, comparable], [2, 0, 1], default=3)
    fair = timing < 3
    return at[w[fair]], at[lo[fair]], timing[fair]
