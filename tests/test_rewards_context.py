"""What a reply cannot change cancels in group-relative advantages: timing, credibility, popularity are controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from reward_rows import threads

from polylib.rewards.context import WithContext, objectives
from polylib.training.advantages import group_advantages

SAMPLES = 4
OBJECTIVES = ("timing", "credibility", "popularity")


class Length:
    name = "length"

    def __call__(self, posts, replies):
        return np.array([len(reply) / 10 for reply in replies])

    def components(self, posts, replies):
        return pd.DataFrame({"length": self(posts, replies)})


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    rows, rng = threads(30), np.random.default_rng(1)
    of_post = rows["tweet_id"].str[1:].astype(int)
    hours = rng.integers(0, 24, 30)
    return rows.assign(
        tweet_created_at=[f"2024-05-01T{hours[p]:02d}:30:00Z" for p in of_post],
        tweet_author_followers=np.exp(rng.normal(7, 2, 30))[of_post],
        tweet_likes=rng.poisson(50, 30)[of_post],
    )


@pytest.fixture(scope="module")
def sampled(rows):
    posts = np.repeat(rows["tweet"].unique()[:8], SAMPLES)
    return list(posts), list(np.random.default_rng(0).choice(rows["reply"], len(posts)))


def groups(reward, sampled) -> torch.Tensor:
    return torch.from_numpy(reward(*sampled)).view(-1, SAMPLES)


@pytest.mark.parametrize("scale", ["none", "group"])
@pytest.mark.parametrize(
    "weights", [{"timing": 3.0}, {"credibility": -2.0}, dict.fromkeys(OBJECTIVES, 5.0)]
)
def test_context_changes_rewards_and_no_advantage(rows, sampled, weights, scale):
    plain, rich = groups(Length(), sampled), groups(WithContext(Length(), rows, weights), sampled)
    assert (plain - rich).abs().max() > 0.5
    torch.testing.assert_close(
        group_advantages(plain, scale), group_advantages(rich, scale), atol=1e-12, rtol=0
    )


def test_a_baseline_over_different_posts_would_let_context_in(rows, sampled):
    plain = groups(Length(), sampled)
    context = torch.from_numpy(
        WithContext(Length(), rows, {"popularity": 1.0}).offset(sampled[0])
    ).view(-1, SAMPLES)
    over_posts = (plain + 5 * context) - (plain + 5 * context).mean()
    assert (over_posts - (plain - plain.mean())).abs().max() > 0.5


def test_a_part_that_does_read_the_reply_does_not_cancel(sampled):
    plain = groups(Length(), sampled)
    read = plain + torch.from_numpy(np.array([r.count("e") for r in sampled[1]], dtype=float)).view(
        -1, SAMPLES
    )
    assert (group_advantages(plain) - group_advantages(read)).abs().max() > 0.1


def test_objectives_by_hand():
    rows = pd.DataFrame(
        {
            "tweet": list("abcd"),
            "tweet_created_at": [
                "2024-01-01T23:10:00Z",
                "2024-01-02T01:00:00Z",
                "2024-01-02T12:00:00Z",
                None,
            ],
            "tweet_author_followers": [10, 1000, np.nan, 100],
            "tweet_likes": [5, 5, 1, 9],
        }
    )
    table = objectives(rows)
    # 23 h and 1 h are two hours apart around midnight: both have two posts near, noon has one
    np.testing.assert_allclose(table["timing"], [1.0, 1.0, 0.5, 0.5])
    np.testing.assert_allclose(table["credibility"], [1 / 3, 1.0, 0.5, 2 / 3])
    np.testing.assert_allclose(table["popularity"], [0.625, 0.625, 0.25, 1.0])


def test_unknown_posts_are_neutral(rows):
    reward = WithContext(Length(), rows, {"timing": 2.0})
    assert (
        reward(["never seen"], ["1234567890"])[0] == pytest.approx(1 + 2 * 0.5)
        and reward.name == "length+context"
    )
    parts = reward.components([rows["tweet"].iloc[0], "never seen"], ["a", "b"])
    assert list(parts) == ["length", *OBJECTIVES] and (parts.iloc[1, 1:] == 0.5).all()
