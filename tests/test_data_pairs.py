"""Preference pairs: by enumeration on tiny threads, and by their invariants on larger ones."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pandas as pd
from data_rows import data, frame, record, threads

from polylib.data import pairs, split


def table(likes, delays, engagement=None) -> pd.DataFrame:
    rows = frame(
        [
            record(0, k, reply_likes=y, reply_time_diff_seconds=t)
            for k, (y, t) in enumerate(zip(likes, delays, strict=True))
        ]
    )
    engagement = np.log1p(likes) if engagement is None else engagement
    return rows.assign(split="train", phase="sft", engagement=engagement)


def found(rows, **changes) -> dict[tuple[str, str], str]:
    made = pairs.preference_pairs(rows, data(**{"pairs_per_post": 99} | changes))
    return {(p.chosen_id[-1], p.rejected_id[-1]): p.timing for p in made.itertuples()}


def test_small_thread_by_hand():
    # 0: early star; 1: late and good; 2: as late, weak; 3: an hour after 0 at most, but past twice its delay
    rows = table([99, 9, 1, 9], [60, 9000, 9000, 600])
    assert found(rows) == {
        ("1", "2"): "later"
    }  # 0 is far too early, and 3 was 15 times as early as 2
    assert found(table([9, 1], [3000, 4000])) == {("0", "1"): "comparable"}
    assert found(table([9, 1], [np.nan, 4000])) == {("0", "1"): "unknown"}


def test_ratio_uses_add_one_and_ties_make_no_pair():
    assert found(table([1, 0], [9, 9])) == {("0", "1"): "later"}
    assert found(table([4, 2], [9, 9])) == {}  # 5/3 < 2
    assert found(table([5, 2], [9, 9])) == {("0", "1"): "later"}
    assert found(table([3, 3, 0, 0], [9] * 4), pair_min_ratio=1.0).keys() == {
        ("0", "2"),
        ("0", "3"),
        ("1", "2"),
        ("1", "3"),
    }


def test_winner_must_also_lead_after_control():
    assert found(table([9, 1], [9, 9], engagement=[-0.2, 0.2])) == {}


def test_cap_prefers_later_winners():
    rows = table([9, 9, 0, 0], [3000, 5000, 4000, 4500])
    assert found(rows, pairs_per_post=2) == {("1", "2"): "later", ("1", "3"): "later"}


def test_invariants_determinism_and_enumeration():
    records = threads(60, replies=6)
    rows = split.assign(frame(records), data())
    made = pairs.preference_pairs(rows, data())
    assert list(made.columns) == list(pairs.COLUMNS)
    assert made["pair_id"].is_unique and made.groupby("tweet_id").size().max() <= 4
    by_id = rows.set_index("reply_id")
    for side in ("chosen", "rejected"):
        other = by_id.loc[made[f"{side}_id"]]
        assert (other["tweet_id"].to_numpy() == made["tweet_id"]).all()
        assert (other["reply"].to_numpy() == made[side]).all()
        assert (other["split"].to_numpy() == made["split"]).all()
    assert np.allclose(
        made["margin"], np.log((made["chosen_likes"] + 1) / (made["rejected_likes"] + 1))
    )
    assert (made["engagement_gap"] > 0).all() and (made["margin"] >= np.log(2) - 1e-12).all()

    def allowed(w, lo):
        fair = w.reply_time_diff_seconds >= lo.reply_time_diff_seconds or (
            lo.reply_time_diff_seconds - w.reply_time_diff_seconds <= 3600
            and lo.reply_time_diff_seconds <= 2 * w.reply_time_diff_seconds
        )
        return (
            w.reply_likes + 1 >= 2 * (lo.reply_likes + 1) and w.engagement > lo.engagement and fair
        )

    every = {
        f"{w.reply_id}>{lo.reply_id}"
        for _, post in rows.groupby("tweet_id")
        for w, lo in itertools.permutations(post.itertuples(), 2)
        if allowed(w, lo)
    }
    assert set(pairs.preference_pairs(rows, data(pairs_per_post=999))["pair_id"]) == every
    shuffled = split.assign(frame(random.Random(2).sample(records, len(records))), data())
    pd.testing.assert_frame_equal(made, pairs.preference_pairs(shuffled, data()))


def test_no_pairs_is_an_empty_table():
    made = pairs.preference_pairs(table([0, 0], [9, 9]), data())
    assert made.empty and list(made.columns) == list(pairs.COLUMNS)
