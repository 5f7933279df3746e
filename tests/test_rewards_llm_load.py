"""A language model is tested before it may reward: comparing, and by the scores it would pay. Real HTTP, no model."""

from __future__ import annotations

import json

import pytest
from reward_rows import FAST, BagOfWords, threads
from test_rewards_llm import server  # noqa: F401

from polylib import rewards
from polylib.config import LLMJudgeConfig, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward_model")
    rewards.fit_all(threads(80).assign(tweet_likes=9), BagOfWords(), FAST, folder, seed=0)
    return folder


@pytest.fixture
def load(server, folder, tmp_path, monkeypatch):
    """Loads reward llm as notebook 05 does; answers are kept in a folder of this test."""
    monkeypatch.setenv("POLYLIB_CACHE", str(tmp_path))

    def load(folder=folder, **change):
        given = {
            "url": server.url,
            "model": "m",
            "cache": "live",
            "max_calls": 500,
            "max_cost": 1.0,
            "price_in": 0.0,
            "price_out": 0.0,
            "concurrency": 4,
            "max_tokens": 8,
            "compare_posts": 0,
            "criteria": ["engaging"],
        }
        return rewards.load(folder, None, "llm", None, LLMJudgeConfig(**given | change))

    return load


def honest(known, right="9", wrong="3"):
    """Knows the human reply of every post, and nothing else."""
    own = dict(zip(known["posts"], known["replies"]))

    def say(data, question):
        if "reply" in data:
            return right if data["reply"].strip() == own[data["post"]] else wrong
        return "A" if data["A"].strip() == own[data["post"]] else "B"

    return say


def test_a_good_judge_is_tested_once_and_then_known(server, load, folder):
    known = json.loads((folder / "controls.json").read_text())
    assert len(known["posts"]) == len(set(known["posts"])) == 20
    server.say = honest(known)
    reward = load()
    asked = len(server.seen)
    assert reward.name == "llm" and asked == 20 * (
        4 * 2 + 5
    )  # four pairs in two orders, five scores a post
    load()
    assert len(server.seen) == asked
    load(cache="replay", url="")  # the same study without network


def test_controls_are_the_best_liked_replies_of_training_posts(folder):
    rows = threads(80)
    known = json.loads((folder / "controls.json").read_text())
    for post, reply in zip(known["posts"], known["replies"]):
        own = rows[rows["tweet"] == post]
        best = own[own["reply_likes"].eq(own["reply_likes"].max())]
        assert set(own["split"]) == {"train"} and reply in set(best["reply"])


@pytest.mark.parametrize(
    ("score", "compare", "said"),
    [
        (None, "A", "judge m, comparing, is refused .*constant: right on 0 of 20, 90% are needed"),
        (
            "7",
            None,
            "judge m, scoring, is refused .*constant: right on 0 of 20, 90% are needed; off_topic: right on 0",
        ),
        ("no idea", None, "judge m, scoring, is refused .*same: right on 0 of 20"),
    ],
    ids=["first", "all alike", "silent"],
)
def test_a_judge_that_knows_nothing_is_refused_before_it_rewards(
    server, load, folder, score, compare, said
):
    known = honest(json.loads((folder / "controls.json").read_text()))
    server.say = lambda data, question: (
        (score if "reply" in data else compare) or known(data, question)
    )
    with pytest.raises(UserError, match=said):
        load()


def test_an_older_reward_folder_is_said(load, tmp_path):
    with pytest.raises(UserError, match="controls.json is missing.; run stage reward_model first"):
        load(tmp_path)
