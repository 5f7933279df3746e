"""The validation table against enumeration and against rewards whose quality is known by construction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reward_rows import BagOfWords, threads

from polylib.reward_checks import validate
from polylib.rewards import calibration

ENCODER = BagOfWords()
KEYS = ["dataset", "model", "metric", "value", "lo", "hi", "n"]


class Planted:
    def __init__(self, name, score):
        self.name, self.score = name, score

    def __call__(self, posts, replies):
        return np.array([self.score(r) for r in replies], dtype=float)


@pytest.fixture(scope="module")
def rows():
    rows = threads(120, seed=3)
    rows["split"] = rows["split"].where(rows["split"].isin(["train", "validation"]), "test")
    return rows


@pytest.fixture(scope="module")
def table(rows):
    rewards = [
        Planted("right", lambda r: "?" in r),
        Planted("wrong", lambda r: "?" not in r),
        Planted("flat", lambda r: 1.0),
        Planted("nouns", lambda r: len(r) % 7),
    ]
    return validate.table(
        rows, rewards, ENCODER, rows[["reply_id", "latent"]], dataset="planted", seed=1
    )


def value(table, model, metric, column="value"):
    return table[(table["model"] == model) & (table["metric"] == metric)][column].item()


def test_shape_and_intervals(table):
    assert list(table) == KEYS and set(table["dataset"]) == {"planted"}
    assert not table.duplicated(["model", "metric"]).any()
    known = table.dropna(subset=["value"])
    assert (known["lo"] <= known["value"] + 1e-9).all() and (
        known["value"] <= known["hi"] + 1e-9
    ).all()
    assert (known["n"] > 0).all()


def test_known_rewards_get_known_accuracies(table):
    assert value(table, "right", "pair_accuracy_latent") == 1  # latent is the question mark alone
    assert value(table, "wrong", "pair_accuracy_latent") == 0
    assert value(table, "flat", "pair_accuracy_latent") == 0.5
    assert value(table, "right", "spearman_latent") == pytest.approx(1)
    assert (
        np.isnan(value(table, "flat", "spearman_latent"))
        and value(table, "flat", "spearman_latent", "n") == 0
    )
    lo, hi = (value(table, "random", "pair_accuracy_latent", c) for c in ("lo", "hi"))
    assert lo < 0.5 < hi


def test_pair_accuracy_equals_enumeration(table, rows):
    held, of_post, pairs = rows[rows["split"] == "test"], [], 0
    for _, post in held.groupby("tweet_id"):
        right = []
        replies = list(zip(post["reply"].str.len() % 7, post["engagement"], post["reply_likes"]))
        for a in range(len(replies)):
            for b in range(a):
                (s, e, k), (t, f, m) = replies[a], replies[b]
                if k != m and e != f:
                    right.append(0.5 if s == t else float((s > t) == (e > f)))
        of_post, pairs = of_post + ([np.mean(right)] if right else []), pairs + len(right)
    assert value(table, "nouns", "pair_accuracy_engagement") == pytest.approx(
        np.mean(of_post), abs=1e-12
    )
    assert value(table, "nouns", "pair_accuracy_engagement", "n") == pairs


def test_bins_split_the_pairs_and_one_of_them_equals_enumeration(table, rows):
    for kind in ("ratio", "length"):
        part = table[
            (table["model"] == "nouns") & table["metric"].str.startswith(f"pair_accuracy_{kind}_")
        ]
        assert (
            part["n"].sum() == value(table, "nouns", "pair_accuracy_engagement", "n")
            and len(part) == 4
        )
    of_post, n = [], 0
    for _, post in rows[rows["split"] == "test"].groupby("tweet_id"):
        replies, right = list(zip(post["reply"], post["engagement"], post["reply_likes"])), []
        for a in range(len(replies)):
            for b in range(a):
                (r, e, k), (s, f, m) = replies[a], replies[b]
                clear = 2 <= max((k + 1) / (m + 1), (m + 1) / (k + 1)) < 4
                if clear:
                    right.append(
                        0.5
                        if len(r) % 7 == len(s) % 7
                        else float((len(r) % 7 > len(s) % 7) == (e > f))
                    )
        of_post, n = of_post + ([np.mean(right)] if right else []), n + len(right)
    assert value(table, "nouns", "pair_accuracy_ratio_2_4") == pytest.approx(
        np.mean(of_post), abs=1e-12
    )
    assert value(table, "nouns", "pair_accuracy_ratio_2_4", "n") == n


def test_fame_wins_raw_pairs_and_no_balanced_ones():
    rows = threads(400, effect=1.0, fame=0.3)
    rows["split"] = np.where(rows["split"] == "train", "train", "test")
    table = validate.table(rows, [Planted("right", lambda r: "?" in r)], ENCODER, seed=0)
    fame = "followers_and_delay_only"
    assert value(table, fame, "pair_accuracy_likes") > 0.65
    assert value(table, fame, "pair_accuracy_balanced") == pytest.approx(0.5, abs=0.05)
    assert value(table, fame, "pair_accuracy_engagement") == pytest.approx(0.5, abs=0.05)
    # the score that is right gains: no pair is decided against it by followers any longer
    assert (
        value(table, "right", "pair_accuracy_balanced")
        > value(table, "right", "pair_accuracy_likes") + 0.02
    )


def test_a_post_written_out_many_times_calibrates_like_once():
    """Each pair five times at a fifth of the weight: the same accuracy, temperature and curve."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0.3, 1, 200)
    once, five = (margin, np.ones(200)), (np.repeat(margin, 5), np.full(1000, 0.2))
    for function in (
        calibration.accuracy,
        calibration.temperature,
        calibration.curve,
    ):
        np.testing.assert_allclose(function(*five), function(*once), rtol=1e-6)
    with pytest.raises(ValueError, match="no pair"):
        calibration.temperature(np.zeros(0), np.zeros(0))
    # a post of 190 pairs against ten of one: unweighted its temperature would be the answer
    size = np.concatenate([np.full(190, 1.0), np.full(10, 3.0)])
    side = np.concatenate([np.where(np.arange(190) < 100, 1.0, -1.0), np.ones(10)])
    weight = np.concatenate([np.full(190, 1 / 190), np.ones(10)])
    assert calibration.accuracy(side * size, weight) == pytest.approx((100 / 190 + 10) / 11)
    assert (
        calibration.temperature(side * size, weight)
        < 1
        < 3
        < calibration.temperature(side * size, np.ones(200))
    )


def test_unliked_pairs_do_not_count(rows):
    """With a control subtracted from zero likes, followers would rank the replies nobody liked."""
    silent = rows.assign(reply_likes=0, engagement=-np.log(rows["reply_author_followers"]))
    table = validate.table(silent, [], ENCODER, seed=0)
    assert np.isnan(value(table, "followers_and_delay_only", "pair_accuracy_engagement"))


def test_interval_is_by_thread_not_by_row(rows):
    """Five copies of each thread's value are one observation: the interval must not shrink."""
    held = rows[rows["split"] == "test"].reset_index(drop=True)
    threads_, per_thread = (
        validate.Ranking(held),
        np.random.default_rng(0).normal(size=held["thread_id"].nunique()),
    )
    values = per_thread[pd.factorize(held["thread_id"])[0]]
    line = threads_.mean(values)
    expected = 2 * 1.96 * per_thread.std(ddof=1) / np.sqrt(len(per_thread))
    assert line["hi"] - line["lo"] == pytest.approx(expected, rel=0.15)


def test_controls(rows, table):
    held = rows[rows["split"] == "test"].reset_index(drop=True)
    moved = validate.other_posts(held, seed=0)
    assert sorted(moved) == sorted(held["reply"])
    own = set(zip(held["tweet_id"], held["reply_id"]))
    unique = held.assign(reply=held["reply_id"])
    assert not own & set(zip(unique["tweet_id"], validate.other_posts(unique, seed=0)))
    shuffled = validate.shuffled_words(held["reply"], 0)
    assert all(
        sorted(a.split()) == sorted(b.split()) for a, b in zip(held["reply"], shuffled, strict=True)
    )
    assert (held["reply"] != shuffled).mean() > 0.9
    assert (
        value(table, "right", "mean_constant") == 1 and value(table, "flat", "win_constant") == 0.5
    )
    with pytest.raises(ValueError, match="more than half"):
        validate.other_posts(held.assign(tweet_id="one"), seed=0)


def test_metrics_for_the_file_have_no_nan(table):
    metrics = validate.metrics(table)
    assert (
        metrics["right"]["pair_accuracy_latent"] == 1 and "spearman_latent" not in metrics["flat"]
    )
    assert np.isfinite([v for part in metrics.values() for v in part.values()]).all()
