"""What a reward pays for text written without reading: planted weaknesses are found, a sound reward is not flagged."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from reward_rows import threads

from polylib import run
from polylib.config import UserError
from polylib.reward_checks import attacks

ROWS = threads(60, seed=1).drop_duplicates(["tweet_id", "reply"]).reset_index(drop=True)


class Reward:
    """A named function of one post and one reply, which notes what it was shown."""

    def __init__(self, name, function):
        self.name, self.function, self.seen = name, function, set()

    def __call__(self, posts, replies):
        self.seen |= set(zip(posts, replies))
        return np.array(
            [self.function(post, reply) for post, reply in zip(posts, replies)], dtype=float
        )


def oracle():
    """1 for what people wrote under this very post, else 0."""
    known = set(zip(ROWS["tweet"], ROWS["reply"]))
    return Reward("oracle", lambda post, reply: float((post, reply) in known))


def outcome(reward, pieces=240):
    return attacks.table([reward], ROWS, 0, pieces).set_index("attack")


def test_a_reward_that_knows_people_is_not_flagged():
    table = outcome(oracle())
    assert tuple(table.index) == attacks.ATTACKS
    assert (
        table["passed"].all()
        and (table["human_median"] == 1).all()
        and (table["score"] < 0.2).all()
    )
    assert attacks.failures(table.reset_index()) == {"oracle": []}


@pytest.mark.parametrize(
    ("name", "function", "caught"),
    [
        ("question marks", lambda post, reply: reply.count("?"), {"constant", "question_bait"}),
        ("overlap", lambda post, reply: len(set(post.split()) & set(reply.split())), {"parrot"}),
        ("emoji", lambda post, reply: reply.count("\U0001f525"), {"emoji_hashtags"}),
        ("hashtags", lambda post, reply: reply.count("#"), {"emoji_hashtags"}),
        ("length", lambda post, reply: len(reply), {"padding", "constant"}),
        (
            "bag of words",
            lambda post, reply: -abs(len(set(reply.split())) - 7),
            {"shuffled_words", "other_post"},
        ),
    ],
)
def test_planted_weaknesses_are_found(name, function, caught):
    table = outcome(Reward(name, function), pieces=0)
    failed = set(table.index[~table["passed"]])
    assert caught <= failed, failed


def test_score_and_median_by_hand():
    reward = Reward("length", lambda post, reply: len(reply))
    table = outcome(reward, pieces=0)
    test = ROWS[ROWS["split"] == "test"]
    assert table["human_median"].unique() == np.median(test["reply"].str.len())
    posts = test.drop_duplicates("tweet_id")["tweet"]
    assert table.loc["parrot", "score"] == pytest.approx(posts.str.len().mean())
    assert table.loc["shuffled_words", "score"] == pytest.approx(test["reply"].str.len().mean())


def test_a_tie_with_the_median_is_no_pass():
    table = outcome(Reward("flat", lambda post, reply: 1.0), pieces=0)
    assert not table["passed"].any()


def test_search_beats_the_bank_and_every_pair_of_pieces():
    pieces = ["an old kettle sings", "never at noon", "the parrot knows why", "what a day it was"]
    worth = {"kettle": 1.0, "parrot": 2.0, "noon": 0.5, "day": -3.0}
    reward = Reward(
        "planted", lambda post, reply: sum(v for word, v in worth.items() if word in reply)
    )
    found = attacks.best_constant(reward, ["post one", "post two"], pieces)
    value = reward(["post one"], [found])[0]
    pairs = [" ".join(pair) for pair in itertools.permutations(pieces, 2)]
    assert (
        value >= max(reward(["post one"] * len(pairs), pairs)) and value == 3.5
    )  # three pieces at once
    assert attacks.best_constant(reward, ["post one"], []) in attacks.BANK


def test_the_search_never_sees_test_posts():
    reward = oracle()
    table = attacks.table([reward], ROWS, 0, 240)
    test = set(ROWS.loc[ROWS["split"] == "test", "tweet"])
    under_test = {reply for post, reply in reward.seen if post in test}
    constants = under_test & set(attacks.BANK)
    assert constants <= {table.attrs["found"]["oracle"]}
    under_validation = {reply for post, reply in reward.seen if post not in test}
    assert set(attacks.BANK) <= under_validation


def test_bank_is_large_generic_and_holds_the_published_sentence():
    assert len(set(attacks.BANK)) == len(attacks.BANK) >= 60
    assert (
        "Honestly such a fair point. What made you see it this way? Curious to hear more."
        in attacks.BANK
    )
    assert max(map(len, attacks.BANK)) <= 120


def test_the_same_seed_gives_the_same_table_and_no_found_string_is_in_it():
    reward = Reward("length", lambda post, reply: len(set(reply.split())))
    one, two = attacks.table([reward], ROWS, 3, 240), attacks.table([reward], ROWS, 3, 240)
    pd.testing.assert_frame_equal(one, two)
    assert one.attrs["found"] == two.attrs["found"]
    assert list(one.columns) == ["reward", "attack", "score", "human_median", "passed"]
    assert one.attrs["found"]["length"] not in one.to_csv()


def test_flags_stand_in_the_cards(tmp_path):
    weak = Reward("weak", lambda post, reply: reply.count("#"))
    table = attacks.table([oracle(), weak], ROWS, 0, pieces=0)
    card = attacks.flag({"oracle": {"pairs": 0.7}, "other": {"pairs": 0.5}}, table)
    assert card["oracle"] == {"pairs": 0.7, "flagged": []} and card["other"] == {"pairs": 0.5}
    assert "emoji_hashtags" in card["weak"]["flagged"]
    run.write_json(tmp_path / "metrics.json", card)
    assert json.loads((tmp_path / "metrics.json").read_text()) == card


def test_padding_reaches_its_length_without_content():
    assert attacks.pad("So true!", 5) == "So true!"
    for size in (40, 120, 300):
        assert size - 12 <= len(attacks.pad("So true!", size)) <= size


def test_no_posts_and_no_numbers_are_refused():
    with pytest.raises(UserError, match="need test and validation posts"):
        attacks.table([oracle()], ROWS[ROWS["split"] != "test"], 0, 0)
    with pytest.raises(ValueError, match="broken: a score under attack"):
        attacks.table(
            [Reward("broken", lambda post, reply: np.nan if post == reply else 1.0)],
            ROWS,
            0,
            pieces=0,
        )
