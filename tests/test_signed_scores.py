"""Scores below 0 (votes down): order and differences keep their sign, shares take 0, and what they cut is counted."""

from __future__ import annotations

import json
import types

import numpy as np
import pandas as pd
import pytest
from data_rows import data, frame, jsonl, record
from data_rows import threads as plain
from reward_rows import FAST, BagOfWords, threads

from polylib.data import pairs, prepare, split
from polylib.rewards import conditional, learned
from polylib.run import Paths


def test_counts_stay_what_they_were_to_the_last_bit():
    likes = pd.Series([0, 1, 2, 7, 1000, 10**9])
    np.testing.assert_array_equal(pairs.signed_log(likes), np.log1p(likes.astype(float)))
    np.testing.assert_array_equal(pairs._odds(likes), likes + 1.0)


def test_a_score_lies_as_far_below_nothing_as_its_opposite_above():
    scores = pd.Series([-9, -1, 0, 1, 9])
    level = pairs.signed_log(scores)
    assert (np.diff(level) > 0).all()
    np.testing.assert_allclose(level, -level[::-1])
    np.testing.assert_allclose(np.log(pairs._odds(scores)), level)


def test_pairs_follow_the_signed_score():
    rows = frame([record(0, k, reply_likes=y) for k, y in enumerate([-9, -1, 0, 1])])
    rows = rows.assign(split="train", phase="sft", engagement=pairs.signed_log(rows["reply_likes"]))
    made = pairs.preference_pairs(rows, data(pairs_per_post=99, pair_min_ratio=2.0))
    margin = {(p.chosen_id[-1], p.rejected_id[-1]): p.margin for p in made.itertuples()}
    expected = {
        ("1", "0"): np.log(10 / 2),
        ("2", "0"): np.log(10),
        ("3", "0"): np.log(20),
        ("2", "1"): np.log(2),
        ("3", "1"): np.log(4),
        ("3", "2"): np.log(2),
    }
    assert margin == pytest.approx(expected)
    assert (made["rejected_likes"] < 0).sum() == 5


def test_controlled_engagement_keeps_the_sign():
    rows = frame([record(p, k, reply_likes=y) for p in range(9) for k, y in enumerate([-9, 0, 9])])
    rows = split.assign(rows, data())
    np.testing.assert_allclose(rows["engagement"], np.tile([-np.log(10), 0, np.log(10)], 9))


def test_shares_take_no_negative_score():
    rows = frame([record(0, k, reply_likes=y, tweet_likes=-2) for k, y in enumerate([-6, 0, 3, 1])])
    made = conditional.Threads(rows, np.zeros(4))
    assert made.share.tolist() == [0, 0, 0.75, 0.25]
    below = conditional.Threads(rows.assign(reply_likes=[-6, -1, -2, -1]), np.zeros(4))
    assert below.share.tolist() == [0, 0, 0, 0] and below.informative == 0


def test_what_nobody_wrote_is_not_better_than_the_worst_reply():
    rows = threads(6)
    rows.loc[rows["tweet_id"] == "p3", "reply_likes"] = [-7, 0, 4, 2, 1]
    worst = conditional.negatives(rows, 2, seed=0).groupby("tweet_id")["reply_likes"].agg(set)
    assert worst["p3"] == {-7} and all(worst.drop("p3") == {0})


def test_the_reward_counts_what_its_shares_cut():
    rows = threads(20)
    rows.loc[[0, 1, 7], "reply_likes"] = [-3, -1, -20]
    part = {name: rows[rows["split"] == name] for name in ("train", "validation")}
    reward = learned.fit(part["train"], part["validation"], BagOfWords(), FAST, 0)
    assert reward.card["cut_to_zero"] == 3


def test_a_file_with_votes_down_goes_all_the_way(tmp_path):
    rows = [r | {"reply_likes": r["reply_likes"] - 12} for r in plain(40)]
    paths = Paths("study", tmp_path)
    settings = types.SimpleNamespace(data=data())
    made = prepare.prepare(settings, jsonl(tmp_path / "a.jsonl", rows), paths)
    below = sum(r["reply_likes"] < 0 for r in rows)
    metrics = json.loads((paths.results("data") / "metrics.json").read_text())
    assert made.manifest["rejects"] == {} and metrics["cut_to_zero"] == below > 20
    assert (made.preferences["rejected_likes"] < 0).any()
    assert (made.preferences["margin"] > 0).all()
    assert all(np.isfinite(p.engagement) for p in prepare.posts(made.rows, "train"))
