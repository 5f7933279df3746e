"""No text of one split has a near copy in another; halves balance; the control removes its share only."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from data_rows import data, frame, record, threads, words

from polylib.data import split
from polylib.run import UserError


def test_fractions_phases_and_whole_threads():
    rows = split.assign(frame(threads(200)), data())
    by_thread = rows.groupby("thread_id")[["split", "phase", "quartile"]].nunique()
    assert (by_thread == 1).all().all()
    share = rows.groupby("split")["thread_id"].nunique() / 200
    assert share.to_dict() == {"train": 0.5, "validation": 0.1, "test": 0.2, "judge": 0.2}
    assert set(rows.loc[rows["split"] != "train", "phase"]) == {""}
    train = rows[rows["split"] == "train"].drop_duplicates("thread_id")
    table = pd.crosstab(train["phase"], train["quartile"])
    assert table.shape == (2, 4) and (abs(table.loc["sft"] - table.loc["rl"]) <= 1).all()
    assert train["quartile"].value_counts().between(23, 27).all()


def test_order_blind_and_seeded():
    records = threads(60)
    shuffled = random.Random(1).sample(records, len(records))
    first, second = (split.assign(frame(r), data()) for r in (records, shuffled))
    pd.testing.assert_frame_equal(first, second)
    other = split.assign(frame(records), data(split_seed=8))
    assert (other["split"] != first["split"]).mean() > 0.3


@pytest.mark.parametrize("where", ["tweet", "reply"])
@pytest.mark.parametrize("change", ["", " Extra"])
def test_planted_leak_is_held_together(where, change):
    records = threads(80)
    copy = words("shared", 16)
    for post, end in ((3, ""), (50, change), (77, change * 2)):  # a chain: 3 ~ 50 ~ 77
        for row in records:
            if row["tweet_id"] == f"p{post}" and (
                where == "tweet" or row["reply_id"] == f"p{post}-2"
            ):
                row[where] = copy + end
    clusters = split.clusters(frame(records), 0.9).groupby(frame(records)["thread_id"]).first()
    assert clusters["p3"] == clusters["p50"] == clusters["p77"] and clusters.nunique() == 78
    for seed in range(3):
        rows = split.assign(frame(records), data(split_seed=seed))
        split.assert_disjoint(rows)
        placed = rows[rows["thread_id"].isin(["p3", "p50", "p77"])]
        assert placed["split"].nunique() == 1 and placed["phase"].nunique() == 1


def test_assert_disjoint_sees_planted_leaks():
    rows = split.assign(frame(threads(40)), data())
    split.assert_disjoint(rows)
    one, other = (np.flatnonzero(rows["split"] == name)[0] for name in ("train", "test"))
    for change in (
        {"reply": rows.at[one, "reply"].upper() + "!"},
        {"tweet": rows.at[one, "tweet"] + " x"},
        {"reply": rows.at[one, "tweet"]},
        {"thread_id": rows.at[one, "thread_id"]},
    ):
        leaked = rows.copy()
        for column, value in change.items():
            leaked.loc[other, column] = value
        with pytest.raises(
            AssertionError, match="more than one split|near duplicates across splits"
        ):
            split.assert_disjoint(leaked)


def test_threads_with_several_posts_stay_together():
    records = [r | {"thread_id": f"t{int(r['tweet_id'][1:]) // 3}"} for r in threads(90)]
    rows = split.assign(frame(records), data())
    assert (rows.groupby("thread_id")["split"].nunique() == 1).all()


def test_bad_fractions_and_too_few_threads():
    with pytest.raises(UserError, match="must add up to 1"):
        split.assign(frame(threads(20)), data(train=0.9))
    with pytest.raises(UserError, match="only 5 independent threads"):
        split.assign(frame(threads(5)), data())


def planted(n_posts: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows whose log1p(likes) is post + followers + delay + quality, and that quality."""
    rng = np.random.default_rng(0)
    rows = frame([record(p, r) for p in range(n_posts) for r in range(6)])
    rows["reply_author_followers"] = np.round(np.exp(rng.normal(6, 1.5, len(rows))))
    rows["reply_time_diff_seconds"] = np.round(np.exp(rng.normal(7, 1.5, len(rows))))
    quality = rng.normal(0, 0.5, len(rows))
    level = (
        np.repeat(rng.normal(4, 1, n_posts), 6)
        + quality
        + 0.4 * (np.log1p(rows["reply_author_followers"]) - 6)
        - 0.3 * (np.log1p(rows["reply_time_diff_seconds"]) - 7)
    )
    rows["reply_likes"] = np.round(np.expm1(level.clip(0))).astype("int64")
    return rows, quality


def test_engagement_is_free_of_post_followers_and_delay():
    rows, quality = planted(300)
    rows = split.assign(rows.assign(quality=quality), data())
    assert rows.groupby("tweet_id")["engagement"].mean().abs().max() < 1e-9
    centred = rows["quality"] - rows.groupby("tweet_id")["quality"].transform("mean")
    assert np.corrcoef(rows["engagement"], centred)[0, 1] > 0.95
    for column in ("reply_author_followers", "reply_time_diff_seconds"):
        within = np.log1p(rows[column]) - np.log1p(rows[column]).groupby(
            rows["tweet_id"]
        ).transform("mean")
        assert abs(np.corrcoef(rows["engagement"], within)[0, 1]) < 0.06
    log = np.log1p(rows["reply_likes"])
    raw = log - log.groupby(rows["tweet_id"]).transform("mean")
    assert np.corrcoef(raw, centred)[0, 1] < 0.6  # without the control, quality is mostly hidden


def test_control_equals_fixed_effects_regression():
    """One fit for all rows of the held-out splits: least squares with a dummy for each post (statsmodels)."""
    rows, _ = planted(60)
    rows["reply_time_diff_seconds"] = np.nan  # followers alone: the reference has no spline of ours
    rows = split.assign(rows, data())
    table = pd.DataFrame(
        {
            "y": np.log1p(rows["reply_likes"]),
            "f": np.log1p(rows["reply_author_followers"]),
            "post": rows["tweet_id"],
            "train": rows["split"] == "train",
        }
    )
    slope = smf.ols("y ~ f + C(post)", table[table["train"]]).fit().params["f"]
    centred = table[["y", "f"]] - table.groupby("post")[["y", "f"]].transform("mean")
    expected = (centred["y"] - slope * centred["f"])[~table["train"]]
    assert np.allclose(
        rows.loc[~table["train"], "engagement"], expected, atol=1e-4
    )  # a touch of ridge


def test_cross_fitting_ignores_the_own_thread():
    """Likes of one training thread may move the others' residuals, never the nuisance fit for itself: its own
    residual must shift by exactly what its log-likes did."""
    rows, _ = planted(80)
    rows = split.assign(rows, data())
    cluster = rows["thread_id"]
    thread = rows.loc[rows["split"] == "train", "thread_id"].iloc[0]
    own = (rows["thread_id"] == thread).to_numpy()
    changed = rows.copy()
    changed.loc[own, "reply_likes"] = [1, 5, 25, 125, 625, 3125]
    before, after = (split.controlled_engagement(r, cluster, 7) for r in (rows, changed))
    shift = np.log1p(changed["reply_likes"]) - np.log1p(rows["reply_likes"])
    shift = (shift - shift.groupby(rows["tweet_id"]).transform("mean")).to_numpy()
    assert np.allclose((after - before)[own], shift[own])
    assert np.abs(after - before)[~own].max() > 1e-6


def test_missing_covariates():
    rows, _ = planted(60)
    bare = rows.assign(reply_author_followers=np.nan, reply_time_diff_seconds=np.nan)
    bare = split.assign(bare, data())
    log = np.log1p(bare["reply_likes"])
    assert np.allclose(bare["engagement"], log - log.groupby(bare["tweet_id"]).transform("mean"))
    rows.loc[::7, "reply_author_followers"] = np.nan
    rows.loc[::5, "reply_time_diff_seconds"] = np.nan
    assert np.isfinite(split.assign(rows, data())["engagement"]).all()


def test_text_never_enters_the_control():
    rows, _ = planted(60)
    first = split.assign(rows, data())
    second = split.assign(rows.assign(reply=[f"{i} {words(i)}" for i in range(len(rows))]), data())
    assert np.array_equal(first["engagement"], second["engagement"])
