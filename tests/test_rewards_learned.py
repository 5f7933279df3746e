"""The engagement model recovers planted signals and nothing else: not the post's popularity, not the author's fame."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from reward_rows import FAST, THINGS, BagOfWords, threads

from polylib.config import UserError
from polylib.rewards import conditional, learned

ENCODER = BagOfWords()


def fit(rows, seed=0, cfg=FAST):
    return learned.fit(
        rows[rows["split"] == "train"], rows[rows["split"] == "validation"], ENCODER, cfg, seed
    )


def score(reward, rows):
    return reward(list(rows["tweet"]), list(rows["reply"]))


def test_likelihood_by_hand_and_for_two_replies():
    # group 0: softmax(0, log 3) = (1/4, 3/4), shares (1, 0): -log 1/4; group 1: two replies = soft Bradley-Terry
    value = torch.tensor([0.0, np.log(3.0), 0.7, -0.2])
    share, group = torch.tensor([1.0, 0.0, 0.3, 0.7]), torch.tensor([0, 0, 1, 1])
    bradley_terry = -(0.3 * np.log(1 / (1 + np.exp(-0.9))) + 0.7 * np.log(1 / (1 + np.exp(0.9))))
    expected = (np.log(4) + bradley_terry) / 2
    assert float(conditional.nll(value, share, group)) == pytest.approx(expected, abs=1e-6)
    shifted = value + torch.tensor([5.0, 5.0, -80.0, -80.0])  # a term f(post) cancels
    assert float(conditional.nll(shifted, share, group)) == pytest.approx(expected, abs=1e-5)


def test_planted_signal_is_recovered_on_new_threads():
    rows = threads(80)
    reward, test = fit(rows), rows[rows["split"] == "test"]
    values = score(reward, test)
    assert values[test["asks"]].mean() - values[~test["asks"]].mean() > 1.5
    assert abs(values[test["shouts"]].mean() - values[~test["shouts"]].mean()) < 0.6
    train = score(reward, rows[rows["split"] == "train"])
    assert train.mean() == pytest.approx(0, abs=1e-5) and train.std() == pytest.approx(1, abs=1e-5)


def test_popularity_of_the_post_cancels_exactly():
    rows = threads(30)
    louder = rows.assign(
        reply_likes=rows["reply_likes"] * (2 ** (rows["tweet_id"].str[1:].astype(int) % 7))
    )
    np.testing.assert_array_equal(score(fit(rows), rows), score(fit(louder), rows))


def test_fame_is_taken_out_by_the_offset():
    rows = threads(120, effect=0.0, fame=0.5, fame_shows=True)

    def shouting(rows):
        reward = fit(rows)
        raw = (
            score(reward, rows) * reward.card["sd"]
        )  # log-rate units, not sd of a score that should be flat
        return raw[rows["shouts"]].mean() - raw[~rows["shouts"]].mean()

    assert (
        shouting(rows.assign(reply_author_followers=np.nan)) > 0.5
    )  # unknown fame is mistaken for what shows it
    assert abs(shouting(rows)) < 0.25


def test_offset_coefficient_is_the_planted_exponent():
    rows = threads(150, effect=0.0, fame=0.4)
    z = conditional._nuisance(rows)
    beta = conditional._nuisance_fit(rows)
    assert beta[0] == pytest.approx(0.4, abs=0.05) and abs(beta[1]) < 0.15
    # cross-fitted: changing one thread's likes cannot move its own offset
    cross = conditional.offsets(rows)
    mine = rows["thread_id"] == "p3"
    changed = rows.assign(
        reply_likes=rows["reply_likes"].where(
            ~mine, rows["reply_likes"].sample(frac=1, random_state=1).to_numpy()
        )
    )
    np.testing.assert_array_equal(conditional.offsets(changed)[mine], cross[mine])
    assert np.corrcoef(cross, z[:, 0])[0, 1] > 0.95
    assert (
        pd.Series(cross).groupby(rows["tweet_id"].to_numpy()).mean().abs().max() < 1e-12
    )  # who has none, gains none
    unknown = rows.assign(
        reply_author_followers=rows["reply_author_followers"].where(rows.index != rows.index[0])
    )
    assert conditional._nuisance(unknown)[0, 0] == 0  # its post's mean
    held, reference = rows[rows["split"] == "test"], rows[rows["split"] == "train"]
    np.testing.assert_allclose(
        conditional.offsets(held, reference),
        conditional._nuisance(held) @ conditional._nuisance_fit(reference),
    )
    assert (
        np.corrcoef(conditional.offsets(held, reference), conditional._nuisance(held)[:, 0])[0, 1]
        > 0.95
    )


def test_without_followers_and_delay_offsets_are_zero_and_the_fit_works():
    rows = threads(40).drop(columns=["reply_author_followers", "reply_time_diff_seconds"])
    assert not conditional.offsets(rows).any()
    values = score(fit(rows), rows)
    assert values[rows["asks"]].mean() > values[~rows["asks"]].mean() + 1


def test_saved_and_loaded_scores_are_equal(tmp_path):
    rows = threads(30)
    reward = fit(rows)
    reward.save(tmp_path)
    again = learned.load(tmp_path, ENCODER)
    np.testing.assert_array_equal(score(again, rows), score(reward, rows))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    parts = again.components(list(rows["tweet"]), list(rows["reply"]))
    assert (parts["learned_sd"] > 0).all() and list(parts) == ["learned", "learned_sd"]


def test_one_by_one_equals_the_batch_and_absurd_replies_stay_bounded():
    rows = threads(30)
    reward, head = fit(rows), rows.head(6)
    single = [reward([p], [r])[0] for p, r in zip(head["tweet"], head["reply"])]
    np.testing.assert_allclose(single, score(reward, head), atol=1e-5)
    absurd = reward(["post"] * 3, ["?" * 5000, "", "!! why? " * 900])
    assert np.isfinite(absurd).all()
    seen = learned.apply_inputs(reward.transform, learned.blocks(ENCODER, ["post"], ["?" * 5000]))
    assert (
        np.abs(seen).max() <= learned.CLIP
    )  # a reply far outside the training range gains nothing by going further


def test_the_seed_decides():
    rows = threads(20)
    cfg = dataclasses.replace(FAST, epochs=3, members=1)
    same, other = score(fit(rows, 1, cfg), rows), score(fit(rows, 2, cfg), rows)
    np.testing.assert_array_equal(score(fit(rows, 1, cfg), rows), same)
    assert np.abs(same - other).max() > 1e-3


def test_nothing_to_learn_is_said():
    with pytest.raises(UserError, match="two replies and a like"):
        fit(threads(10).assign(reply_likes=0))


def test_negatives_belong_to_others_or_are_out_of_order():
    rows = threads(20)
    added = conditional.negatives(rows, 2, seed=0)
    own = rows.groupby("tweet_id")["reply"].agg(set)
    assert (added["reply_likes"] == 0).all()
    assert (
        added.groupby(["tweet_id", "kind"]).size().eq(2).all() and added["tweet_id"].nunique() == 20
    )
    words = {name: {tuple(sorted(text.split())) for text in texts} for name, texts in own.items()}
    for row in added.itertuples():
        assert row.reply not in own[row.tweet_id] and row.thread_id == row.tweet_id
        assert (tuple(sorted(row.reply.split())) in words[row.tweet_id]) == (
            row.kind == "shuffled_words"
        )
    assert (
        conditional.negatives(rows.assign(reply="two words"), 1, 0)["kind"]
        .eq("shuffled_post")
        .all()
    )


def test_negatives_teach_what_likes_do_not_show():
    """Every reply names its post's thing, so likes alone cannot tell that another thing is off topic."""
    rows = threads(120)
    test = rows[rows["split"] == "test"]
    other = dict(zip(THINGS, THINGS[1:] + THINGS[:1]))
    off = [
        text.replace(t, other[t])
        for text, t in zip(test["reply"], test["tweet"].str.split().str[1])
    ]

    def wins(negatives):
        reward = fit(rows, cfg=dataclasses.replace(FAST, negatives=negatives))
        values = score(reward, test)
        assert values[test["asks"]].mean() > values[~test["asks"]].mean() + 0.5
        return (values > reward(list(test["tweet"]), off)).mean()

    assert wins(2) > 0.9 and wins(0) < 0.8
