"""C2ST and MMD against scikit-learn, a double loop, and planted samples of equal and unequal distribution."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from polylib.evaluation import likeness
from polylib.metrics import Undefined
from polylib.run import write_json

WORDS = "kettle keys rain cat fridge bell bowl tuesday pan contract late warm again never always maybe".split()
STOCK = "amazing incredible insight thanks sharing journey leverage growth".split()


def planted(rng, posts=20, human=3, model=4, shift=0.0, d=4):
    """Vectors with a strong effect of the post; the model's are `shift` away from people's."""
    post = np.repeat(np.arange(posts), human + model)
    is_human = np.tile(np.arange(human + model) < human, posts)
    x = 2 * rng.normal(size=(posts, d))[post] + rng.normal(size=(len(post), d))
    x[~is_human, 0] += shift
    return x, post, is_human


def both(x, post, human, seed=0, permutations=49, draws=3):
    orders = likeness.shuffles(post, permutations, seed)
    return likeness.c2st(x, post, human, orders, seed, draws), likeness.mmd2(x, post, human, orders)


def test_logistic_regressions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = np.repeat([1.0, 0.0], 15)
    x = np.concatenate([rng.normal(size=(3, 30, 4)) + y[:, None] * rng.normal(size=4), np.ones((3, 30, 1))], axis=2)
    x[2, :15, 0] += 9  # separable
    for mine, part in zip(likeness.fit(x, y), x, strict=True):
        other = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(part[:, :-1], y)
        np.testing.assert_allclose(mine, [*other.coef_[0], *other.intercept_], atol=1e-5)


def test_auc_is_that_of_scikit_learn_on_whole_posts():
    rng = np.random.default_rng(1)
    x, post, human = planted(rng, posts=12, human=1, model=1, shift=1.0)  # one pair a post: every draw is the same
    auc, _ = likeness.c2st(x, post, human, likeness.shuffles(post, 0, 0), 3, draws=1)
    fold = np.random.default_rng(3).permutation(12) % likeness.FOLDS
    z, found = (x - x.mean(0)) / x.std(0), []
    for k in range(likeness.FOLDS):
        test = fold[post] == k
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(z[~test], human[~test])
        found.append(roc_auc_score(human[test], model.decision_function(z[test])))
        assert len(set(post[test]) & set(post[~test])) == 0
    assert auc == pytest.approx(np.mean(found))


def test_mmd_is_the_double_loop_over_all_draws():
    rng = np.random.default_rng(2)
    x, post, human = planted(rng, posts=4, human=2, model=3, shift=0.5)
    value, p = likeness.mmd2(x, post, human, likeness.shuffles(post, 19, 0))
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]
    k = np.exp(-np.array([[((a - b) ** 2).sum() for b in x] for a in x]) / (2 * np.median(pairs) ** 2))
    sides = [[np.flatnonzero((post == i) & (human == side)) for i in range(4)] for side in (True, False)]
    found = [np.mean([k[h[i], h[j]] + k[m[i], m[j]] - k[h[i], m[j]] - k[m[i], h[j]]
                      for i, j in itertools.permutations(range(4), 2)])
             for h, m in itertools.product(itertools.product(*sides[0]), itertools.product(*sides[1]))]
    assert len(found) == 2**4 * 3**4 and value == pytest.approx(np.mean(found), abs=1e-12)
    assert 0 < p <= 1


def test_permutations_stay_within_posts():
    post = np.repeat([0, 1, 2], [2, 5, 3])
    orders = likeness.shuffles(post, 50, 0)
    assert (orders[0] == np.arange(10)).all() and (np.sort(orders, axis=1) == np.arange(10)).all()
    assert (post[orders] == post).all() and len(np.unique(orders, axis=0)) > 40


def test_equal_distributions_give_half_and_uniform_p():
    results = []
    for seed in range(40):
        x, post, human = planted(np.random.default_rng(seed))
        results.append(np.ravel(both(x, post, human, seed, permutations=19)))
    auc, auc_p, distance, distance_p = np.transpose(results)
    assert abs(auc.mean() - 0.5) < 0.03 and abs(distance.mean()) < 0.004
    for p in (auc_p, distance_p):  # 40 values of mean .525 (of 1/20, ..., 1), standard error .046
        assert 0.38 < p.mean() < 0.67 and (p <= 0.1).mean() < 0.3
    assert distance.min() < 0  # unbiased, so it goes below 0


def test_another_distribution_is_found_though_posts_differ_more():
    x, post, human = planted(np.random.default_rng(0), posts=40, shift=2.0)
    (auc, auc_p), (distance, distance_p) = both(x, post, human)
    assert auc > 0.65 and auc_p == distance_p == 1 / 50 and distance > 0.01
    far, _ = both(*planted(np.random.default_rng(0), posts=40, shift=20.0))
    assert far[0] > 0.99


def corpus(rng, words, posts=24):
    people = [SimpleNamespace(id=f"p{i}", text="", replies=[" ".join(rng.choice(WORDS, 6)) for _ in range(4)])
              for i in range(posts)]
    rows = [(post.id, " ".join(rng.choice(words, 6)), 0.7) for post in people for _ in range(5)]
    return people, pd.DataFrame(rows, columns=["post_id", "reply", "temperature"])


def test_replies_of_a_cell(tmp_path):
    posts, stock = corpus(np.random.default_rng(0), STOCK + WORDS[:8])
    section = likeness.measure(stock, posts, 7)
    assert section["c2st_auc"] > 0.8 and section["c2st_p"] == section["mmd2_p"] == 1 / 200
    assert (section["posts"], section["human_replies"], section["model_replies"]) == (24, 96, 120)
    assert likeness.measure(stock, posts, 7) == section
    likeness_of_people = likeness.people(posts, 7)
    assert abs(likeness_of_people["c2st_auc"] - 0.5) < 0.15 and likeness_of_people["c2st_p"] > 0.05
    write_json(tmp_path / "metrics.json", {"likeness": section, "people": likeness_of_people})
    assert json.loads((tmp_path / "metrics.json").read_text())["likeness"]["dimensions"] == likeness.DIMENSIONS


def test_what_cannot_be_told_has_a_reason(tmp_path):
    posts, replies = corpus(np.random.default_rng(0), WORDS, posts=4)
    section = likeness.measure(replies, posts, 7)
    assert "needs 10 posts, found 4" in section["c2st_auc"]["reason"] and section["posts"] == 4
    write_json(tmp_path / "metrics.json", section)
    assert "fewer than 4" in likeness.measure(replies, [], 7)["mmd2"]["reason"]
    assert "no reply has a letter" in likeness.measure(
        replies.assign(reply=""), [SimpleNamespace(id=p.id, replies=[""]) for p in posts], 7)["mmd2"]["reason"]
    with pytest.raises(ValueError, match="one temperature"):
        likeness.measure(replies.assign(temperature=np.arange(len(replies)) % 2), posts, 7)
    with pytest.raises(Undefined, match="alike"):
        likeness.mmd2(np.ones((6, 2)), np.array([0, 0, 0, 1, 1, 1]), np.array([True, False, False] * 2),
                      np.arange(6)[None])
