"""Equally liked replies are ties wherever engagement is fitted to or ranked by; a post counts once, however long."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reward_rows import BagOfWords, threads
from scipy.stats import spearmanr

from polylib.reward_checks import validate
from polylib.rewards import calibration, heuristic, judge

ENCODER = BagOfWords()


def shaken(rows):
    """The same likes, with the control dealt out anew among the equally liked replies of every post."""
    mixed = rows.sample(frac=1, random_state=1).sort_values(
        ["tweet_id", "reply_likes"], kind="stable"
    )
    ordered = rows.sort_values(["tweet_id", "reply_likes"], kind="stable")
    return rows.assign(engagement=pd.Series(mixed["engagement"].to_numpy(), index=ordered.index))


def few_likes(posts=150):
    """Five replies a post, most of them not liked at all; engagement is log likes less a term in followers."""
    rows = threads(posts, seed=5, fame_shows=True)
    rows["reply_likes"] = np.where(rows["asks"], rows["reply_likes"] % 3, 0)
    rows["engagement"] = np.log1p(rows["reply_likes"]) - 0.5 * (
        np.log(rows["reply_author_followers"]) - 6
    )
    rows["engagement"] -= rows.groupby("tweet_id")["engagement"].transform("mean")
    return rows


def test_which_equally_liked_reply_the_control_favours_changes_nothing():
    """Fits and rank metrics see them as ties: dealing the control out anew among them must leave no trace."""
    rows = few_likes()
    other = shaken(rows)
    assert (rows["engagement"] != other["engagement"]).mean() > 0.5
    score = rows["reply"].str.len().to_numpy(float) % 7

    def traces(rows):
        value = rows["engagement"].to_numpy(float)
        ranked = validate.Ranking(rows)
        yield ranked._spearman(score, value, "engagement")[0]
        yield judge._target(rows)
        yield validate.baselines(rows, rows, ENCODER, 0)["tfidf_ridge"]
        yield heuristic._upper_half(rows)

    for one, two in zip(traces(rows), traces(other), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_rank_correlation_gives_equal_likes_their_average_rank():
    rows, rho = few_likes(), []
    rows["score"] = rows["reply"].str.len() % 7
    for _, post in rows.groupby("tweet_id"):
        if post["reply_likes"].nunique() > 1 and post["score"].nunique() > 1:
            level = [
                post["engagement"][post["reply_likes"] == likes].mean()
                for likes in post["reply_likes"]
            ]
            rho.append(spearmanr(post["score"], level).statistic)
    score, value = rows["score"].to_numpy(float), rows["engagement"].to_numpy(float)
    line = validate.Ranking(rows).compare(score, value, "engagement")[1]
    assert line["metric"] == "spearman_engagement" and line["n"] == len(rho)
    assert line["value"] == pytest.approx(np.mean(rho), abs=1e-12)


def test_ridge_does_not_learn_who_wrote_what_nobody_liked():
    """A word of the famous draws no likes; minus the control, what nobody liked looks better without it."""
    rows = few_likes()
    rows["reply"] = np.where(rows["shouts"], rows["reply"] + " press", rows["reply"])
    values = validate.baselines(rows[rows["split"] == "train"], rows, ENCODER, 0)["tfidf_ridge"]
    silent = rows.assign(reply_likes=np.arange(len(rows)))  # no two alike: the control alone
    untied = validate.baselines(silent[silent["split"] == "train"], rows, ENCODER, 0)["tfidf_ridge"]
    gap = lambda v: v[~rows["shouts"]].mean() - v[rows["shouts"]].mean()  # noqa: E731
    assert gap(untied) > 2 * gap(values)


def test_heuristic_aims_at_the_liked_half_where_most_are_not_liked():
    rows = pd.DataFrame(
        {
            "tweet_id": list("aaaaabbbcc"),
            "reply_likes": [0, 0, 0, 1, 2, 0, 0, 0, 1, 5],
            "engagement": [0.3, -0.1, -0.9, 0.2, 0.5, 0.1, 0.0, -0.1, -0.2, 0.2],
        }
    )
    np.testing.assert_array_equal(heuristic._upper_half(rows), [0, 0, 0, 1, 1, 1, 1, 1, 0, 1])
    texts = rows.assign(
        tweet="my kettle fell", reply=["x" * n for n in (9, 9, 9, 80, 80, 80, 80, 80, 9, 80)]
    )
    fitted = heuristic.HeuristicReward(ENCODER, {"length": 1.0}).fit(texts)
    assert fitted.scales["length_mean"] == pytest.approx(np.log(81))


def giant():
    """Ten threads of two posts with 2 to 6 replies, ranked right, and one post of 60, ranked wrong."""
    rows = []
    for p in range(21):
        for r in range(60 if p == 20 else 2 + p % 5):
            rows.append(
                {
                    "tweet_id": f"p{p}",
                    "thread_id": f"t{p // 2}",
                    "reply": "x" * 9,
                    "reply_likes": r,
                    "score": -r if p == 20 else r,
                    "engagement": float(r),
                }
            )
    return pd.DataFrame(rows)


def test_one_giant_thread_counts_once():
    rows = giant()
    held, score = validate.Ranking(rows), rows["score"].to_numpy(float)
    lines = {
        line["metric"]: line
        for line in held.compare(score, rows["engagement"].to_numpy(), "engagement")
    }
    lines["pair_accuracy_balanced"] = held.balanced(score)
    small = sum(n * (n - 1) // 2 for n in (2 + p % 5 for p in range(20)))
    for name in ("engagement", "balanced"):
        assert lines[f"pair_accuracy_{name}"]["value"] == pytest.approx(20 / 21)
        assert lines[f"pair_accuracy_{name}"]["n"] == small + 60 * 59 // 2
    assert lines["pair_accuracy_engagement"]["lo"] > 0.8
    likes, value = rows["reply_likes"].to_numpy(float), rows["engagement"].to_numpy()
    margin, weight = calibration.margins(
        score, value, likes, rows["tweet_id"]
    )  # what temperatures are fitted to
    assert weight.sum() == pytest.approx(21) and calibration.accuracy(
        margin, weight
    ) == pytest.approx(20 / 21)


def test_interval_of_the_pair_accuracy_draws_threads_with_all_their_posts():
    rows = giant().sample(frac=1, random_state=0).reset_index(drop=True)
    rng = np.random.default_rng(3)
    score, target = rng.normal(size=len(rows)), rows["engagement"].to_numpy()
    line = validate.Ranking(rows, seed=7).compare(score, target, "engagement")[0]
    accuracy = {}
    for (thread, _), at in rows.groupby(["thread_id", "tweet_id"]).indices.items():
        right = [float(score[a] > score[b]) for a in at for b in at if target[a] > target[b]]
        accuracy.setdefault(thread, []).append(np.mean(right))
    names = list(pd.unique(rows["thread_id"]))
    values = []
    for drawn in np.random.default_rng(7).multinomial(
        11, np.full(11, 1 / 11), size=validate.BOOTSTRAP
    ):
        values.append(
            np.mean([a for name, times in zip(names, drawn) for a in accuracy[name] * times])
        )
    assert line["value"] == pytest.approx(np.mean(sum(accuracy.values(), [])))
    np.testing.assert_allclose(
        [line["lo"], line["hi"]], np.quantile(values, [0.025, 0.975]), atol=1e-12
    )
