"""The judge: fitted on its own split with its own features, calibrated, and equal after a trip to the disk."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from reward_rows import THINGS, threads
from scipy.special import expit

from polylib.config import UserError
from polylib.rewards import calibration, judge


@pytest.fixture(scope="module")
def rows():
    return threads(100)


@pytest.fixture(scope="module")
def fitted(rows):
    return judge.fit(rows[rows["tweet_id"].str[1:].astype(int) < 60], seed=0)


def test_planted_signal_on_new_threads(fitted, rows):
    new = rows[rows["tweet_id"].str[1:].astype(int) >= 60]
    values = fitted(list(new["tweet"]), list(new["reply"]))
    assert values[new["asks"]].min() > values[~new["asks"]].max()
    assert 0.75 < fitted.pair_accuracy <= 1 and fitted.pairs > 200


def test_kernel_sum_equals_sklearn(rows, monkeypatch):
    from sklearn.svm import SVR

    monkeypatch.setattr(judge, "NEGATIVES", 0)
    target = judge._target(rows)
    ours = judge._fit_regression(rows, target, seed=0)
    x = judge._inputs(ours.vectorizers, ours.arrays, rows["tweet"], rows["reply"])
    theirs = SVR(C=judge.C, epsilon=judge.EPSILON, gamma="scale").fit(x, target).predict(x)
    np.testing.assert_allclose(ours._regress(x), theirs, atol=1e-9)


def test_what_a_whole_post_has_more_of_is_no_target(rows):
    level = rows["tweet_id"].map(
        {post: float(i) for i, post in enumerate(rows["tweet_id"].unique())}
    )
    raised = rows.assign(engagement=rows["engagement"] + level)
    np.testing.assert_allclose(judge._target(raised), judge._target(rows), atol=1e-9)


def test_accuracy_and_scale_are_those_of_threads_it_has_not_seen():
    """Likes by lot under texts that can be learnt by heart: a judge rated on what it was fitted to would look right."""
    rng = np.random.default_rng(3)
    rows = threads(60, effect=0.0)
    words = rng.choice([f"w{i}" for i in range(400)], (len(rows), 6))
    lots = rows.assign(
        reply=[" ".join(line) for line in words], reply_likes=rng.integers(0, 50, len(rows))
    )
    lots["engagement"] = np.log1p(lots["reply_likes"])
    blind = judge.fit(lots, seed=0)
    assert abs(blind.pair_accuracy - 0.5) < 0.08
    own = blind(list(lots["tweet"]), list(lots["reply"])) * blind.card["scale"]
    assert np.corrcoef(own, lots["engagement"])[0, 1] > 0.5  # by heart it knows them


def test_the_scale_is_the_likelihood_maximum():
    # margins drawn from sigmoid(margin / 2): the fitted temperature is 2
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 3, 20_000)
    won = rng.random(len(margin)) < expit(margin / 2)
    assert calibration.temperature(
        np.where(won, margin, -margin), np.ones(len(margin))
    ) == pytest.approx(2, rel=0.06)


def test_a_reply_about_another_thing_loses(fitted, rows):
    new = rows[rows["tweet_id"].str[1:].astype(int) >= 60]
    other = dict(zip(THINGS, THINGS[1:] + THINGS[:1]))
    off = [
        text.replace(t, other[t]) for text, t in zip(new["reply"], new["tweet"].str.split().str[1])
    ]
    posts = list(new["tweet"])
    assert (fitted(posts, list(new["reply"])) > fitted(posts, off)).mean() > 0.8


def test_saved_and_loaded_scores_are_equal(fitted, rows, tmp_path):
    fitted.save(tmp_path)
    posts, replies = list(rows["tweet"]), list(rows["reply"])
    np.testing.assert_array_equal(judge.load(tmp_path)(posts, replies), fitted(posts, replies))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_shares_no_feature_code_with_the_proxy():
    names = {
        alias.name
        for node in ast.walk(ast.parse(Path(judge.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names |= {
        node.module
        for node in ast.walk(ast.parse(Path(judge.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert not {
        n
        for n in names
        if n and any(word in n for word in ("encoder", "features", "learned", "torch"))
    }


def test_posts_liked_alike_are_left_out_and_too_few_are_said(rows):
    silent = rows.assign(reply_likes=0)
    with pytest.raises(UserError, match="only 0 posts whose replies differ in likes"):
        judge.fit(silent, seed=0)


def test_hostile_replies_are_finite(fitted):
    texts = ["", "?" * 4000, "\u200b", "🐈" * 50, "<script>"]
    assert np.isfinite(fitted(["post"] * len(texts), texts)).all()
