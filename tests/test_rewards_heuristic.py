"""Heuristic and combined reward: bounded parts, human-like beats planted faults, weights mean what they say."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from reward_rows import FAST, WEIGHTS, BagOfWords, threads

from polylib import rewards
from polylib.config import UserError
from polylib.rewards import heuristic
from polylib.rewards.heuristic import COMPONENTS, HeuristicReward

ENCODER = BagOfWords()
POST = "my kettle number 3 fell down the stairs"
GOOD = "it is near the kettle people keep on the old door."


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return threads(60)


@pytest.fixture(scope="module")
def reward(rows) -> HeuristicReward:
    return HeuristicReward(ENCODER, WEIGHTS).fit(rows)


def part(reward, name: str, reply: str, post: str = POST) -> float:
    return float(reward.components([post], [reply])[name].iloc[0])


def test_parts_and_sum_are_bounded_for_any_text(reward):
    hostile = [
        "",
        " ",
        "?!" * 2000,
        "🐈" * 300,
        "KILL YOURSELF",
        "\ud800",
        POST,
        "a" * 9000,
        "http://x.y #a #b #c",
    ]
    parts = reward.components([POST] * len(hostile), hostile)
    assert list(parts) == list(COMPONENTS)
    assert parts.to_numpy().min() >= 0 and parts.to_numpy().max() <= 1
    assert (
        0
        <= reward([POST] * len(hostile), hostile).min()
        <= reward([POST] * len(hostile), hostile).max()
        <= 1
    )


def test_one_reply_and_a_batch_give_the_same_number(reward, rows):
    posts, replies = list(rows["tweet"][:40]), list(rows["reply"][:40])
    single = [reward([p], [r])[0] for p, r in zip(posts, replies)]
    np.testing.assert_array_equal(single, reward(posts, replies))


def test_the_sum_is_the_weighted_mean_of_its_parts(reward):
    parts = reward.components([POST], [GOOD]).iloc[0]
    expected = sum(WEIGHTS[k] * parts[k] for k in WEIGHTS) / sum(WEIGHTS.values())
    assert reward([POST], [GOOD])[0] == pytest.approx(expected, abs=1e-12)


def test_relevance_wants_an_answer_not_an_echo(reward):
    assert part(reward, "relevance", GOOD) > part(
        reward, "relevance", GOOD.replace("kettle", "violin")
    )
    assert part(reward, "relevance", POST) == pytest.approx(0, abs=1e-6)
    assert part(
        reward, "relevance", "my kettle number 3 fell down the stairs, people keep wood"
    ) < part(reward, "relevance", GOOD)


def test_length_peaks_at_human_length_and_falls_smoothly(reward, rows):
    above = rows["engagement"] >= rows.groupby("tweet_id")["engagement"].transform("median")
    typical = int(rows["reply"][above].str.len().median())
    curve = [part(reward, "length", "x" * n) for n in range(1, 4 * typical)]
    assert abs(int(np.argmax(curve)) + 1 - typical) <= 2 and max(curve) == pytest.approx(
        1, abs=0.01
    )
    assert (
        np.abs(np.diff(curve)).max() < 0.15
    )  # a step, as in a table of lengths, would be a target for padding


@pytest.mark.parametrize(
    ("name", "worse", "better"),
    [
        ("variety", "so good so good so good so good", "so good that we went back twice this week"),
        ("punctuation", "WHAT?!?!?! NO!!!", "What, no."),
        ("punctuation", "nice one 😀😀😀😀😀😀", "nice one 😀"),
        ("punctuation", "look #a #b #c #d", "look here"),
        ("specificity", "So true! Love this!", "The heron took our goldfish at dawn."),
        ("specificity", "50% off, link in bio", "The heron took our goldfish at dawn."),
        ("toxicity", "you are an idiot", "I do not agree with a word of it"),
        ("toxicity", "I hope you die", "you are an idiot"),
        ("profanity", "damn that's good", "oh that's good"),
        ("sentiment", "horrible awful disgusting hate", "it was on the shelf"),
    ],
)
def test_planted_faults_score_below_their_repair(reward, name, worse, better):
    assert part(reward, name, worse) < part(reward, name, better)


def test_swearing_is_not_toxicity_and_slurs_are_stored_as_hashes(reward, monkeypatch):
    assert (
        part(reward, "toxicity", "hell yeah this slaps, damn") == 1
        and part(reward, "profanity", "hell yeah") == 0
    )
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in heuristic.SLURS)
    monkeypatch.setattr(heuristic, "SLURS", {"2d2370db2447ff8c"})  # sha256("duck")
    assert (
        part(reward, "toxicity", "what a Duck!") == 0
        and part(reward, "toxicity", "what a duckling") == 1
    )


def test_sentiment_fit_allows_half_the_mood_of_the_post():
    smart = "VADER is smart, handsome, and funny."  # 0.8316 in VADER's README
    np.testing.assert_allclose(
        heuristic._moods([smart, "a", smart], [smart, smart, "a"]), [0.4158, 0.8316, -0.4158]
    )


def of_file(lines) -> pd.DataFrame:
    """tweet, reply of nested posts or of flat rows."""
    records = [json.loads(line) for line in lines]
    pairs = (
        [(r["tweet"], x["reply"]) for r in records for x in r["replies"]]
        if "replies" in records[0]
        else [(r["tweet"], r["reply"]) for r in records]
    )
    return pd.DataFrame(pairs, columns=["tweet", "reply"])


def test_every_part_varies_over_people():
    lines = (ROOT / "polylib/data/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    corpus = of_file(lines).sample(1000, random_state=0)
    parts = (
        HeuristicReward(ENCODER, WEIGHTS)
        .fit(corpus)
        .components(list(corpus["tweet"]), list(corpus["reply"]))
    )
    spread = parts.std()
    assert (spread.drop("profanity") > 0.01).all(), spread
    assert (
        parts["profanity"] == 1
    ).all()  # the corpus was written without swearing; see the next test


def test_every_part_varies_over_people_in_real_threads():
    file = ROOT.parent / "shared" / "data" / "pheme_root_en.jsonl.gz"
    if not file.exists():
        pytest.skip("real threads are not distributed with the project")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        real = of_file(lines).sample(1000, random_state=0)
    parts = (
        HeuristicReward(ENCODER, WEIGHTS)
        .fit(real)
        .components(list(real["tweet"]), list(real["reply"]))
    )
    assert (parts.std() > 0.01).all(), parts.std()


def test_empty_weights_are_refused():
    with pytest.raises(UserError, match="not all be 0"):
        HeuristicReward(ENCODER, {"relevance": 0.0})


def test_combined_is_six_to_four_of_standardised_parts_and_survives_the_disk(rows, tmp_path):
    fitted = rewards.fit_all(rows, ENCODER, FAST, tmp_path, seed=0)
    train = rows[rows["split"] == "train"]
    posts, replies = list(train["tweet"]), list(train["reply"])
    parts = fitted.combined.components(posts, replies)
    np.testing.assert_allclose(
        fitted.combined(posts, replies),
        0.6 * parts["learned"] + 0.4 * parts["heuristic"],
        atol=1e-12,
    )
    np.testing.assert_allclose(parts[["learned", "heuristic"]].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(parts[["learned", "heuristic"]].std(ddof=0), 1, atol=1e-5)
    for name in ("combined", "learned", "heuristic"):
        loaded = rewards.load(tmp_path, ENCODER, name)
        assert loaded.name == name
        np.testing.assert_allclose(
            loaded(posts, replies), getattr(fitted, name)(posts, replies), atol=1e-9
        )
    np.testing.assert_array_equal(
        rewards.load_judge(tmp_path)(posts, replies), fitted.judge(posts, replies)
    )


def test_missing_rewards_and_unknown_names_are_said(tmp_path):
    with pytest.raises(UserError, match="run stage reward_model first"):
        rewards.load(tmp_path, ENCODER)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(UserError, match="use combined, learned, heuristic, coherence"):
        rewards.load(tmp_path, ENCODER, "best")


def test_no_reward_learns_from_the_judge_s_split_and_the_judge_from_no_other(rows, tmp_path):
    # in the judge's split questions are liked, everywhere else they are not: each believes its own split
    own = rows["split"] == "judge"
    liked = np.where(own == rows["asks"], 40, 2)
    planted = rows.assign(reply_likes=liked, engagement=np.log(liked))
    fitted = rewards.fit_all(planted, ENCODER, FAST, tmp_path, seed=0)
    posts, replies = [POST] * 2, [GOOD.replace(".", " why?"), GOOD]
    assert np.diff(fitted.judge(posts, replies)) < 0 < np.diff(fitted.learned(posts, replies))
