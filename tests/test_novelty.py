"""Kinds of replies, overlap with people: published values, other libraries, brute force, hostile text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polylib.evaluation import novelty, overlap
from polylib.metrics import Undefined

RNG = np.random.default_rng(0)


def rng():
    return np.random.default_rng(7)


def similarity(classes, inside=0.8, outside=0.1):
    classes = np.array(classes)
    s = np.where(classes[:, None] == classes, inside, outside)
    np.fill_diagonal(s, 1.0)
    return s


# ---- kinds -------------------------------------------------------------------------------------------------


def test_kinds_are_chains_of_likeness_and_depend_on_the_threshold():
    s = np.eye(4)
    s[0, 1] = s[1, 0] = s[1, 2] = s[2, 1] = 0.75  # 0-1-2 a chain, 3 alone
    assert novelty.class_sizes(s, 0.7).tolist() == [3, 3, 3, 1]
    assert novelty.distinct_k(novelty.class_sizes(s, 0.7)[None]) == pytest.approx(2)
    assert novelty.distinct_k(novelty.class_sizes(s, 0.8)[None]) == 4
    path = np.eye(9) + np.diag([0.9] * 8, 1) + np.diag([0.9] * 8, -1)
    assert (
        novelty.class_sizes(path, 0.9).tolist() == [9] * 9
    )  # the longest chain of nine, cosine on the threshold
    stack = novelty.class_sizes(np.stack([np.ones((3, 3)), np.eye(3)]), 0.9)
    assert stack.tolist() == [[3, 3, 3], [1, 1, 1]] and novelty.distinct_k(stack) == 2


def test_distinct_k_of_sets_is_rarefaction():
    """Expected kinds among k of n, by Hurlbert 1971: sum over kinds of 1 - C(n - n_i, k) / C(n, k)."""
    from math import comb

    classes, k = [0, 0, 0, 1, 1, 2, 3], 4
    picks = novelty.sets(7, k, rng())
    assert len(picks) == comb(7, k)
    s = similarity(classes)[picks[:, :, None], picks[:, None]]
    expected = sum(1 - comb(7 - m, k) / comb(7, k) for m in (3, 2, 1, 1))
    assert novelty.distinct_k(novelty.class_sizes(s, 0.5)) == pytest.approx(expected)
    drawn = novelty.sets(40, k, rng())
    assert drawn.shape == (novelty.MOST_SETS, k) and all(
        len(set(pick)) == k for pick in drawn.tolist()
    )
    for n, size in ((3, 4), (1, 1)):
        with pytest.raises(Undefined, match="fewer than"):
            novelty.sets(n, size, rng())


def test_effective_diversity_counts_pairs_that_are_good_and_different():
    s, good = similarity([0, 0, 1, 2, 3], inside=0.6, outside=0.2), np.array([1, 1, 1, 1, 0], bool)
    pairs = list(itertools.combinations(range(5), 2))
    brute = np.mean([good[i] and good[j] and s[i, j] < 0.5 for i, j in pairs])
    assert novelty.effective_diversity(s, good, 0.5) == pytest.approx(brute) == 0.5
    assert (
        novelty.effective_diversity(s, ~good, 0.5) == 0.0
    )  # one good reply makes no pair: a finding
    with pytest.raises(Undefined, match="fewer than 2"):
        novelty.effective_diversity(np.ones((1, 1)), np.array([True]), 0.5)


# ---- overlap with people -----------------------------------------------------------------------------------


def unit(length, seed):
    vectors = np.random.default_rng(seed).normal(size=(length, 5))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_bertscore(a, b):
    precision = np.mean([max(max(x @ y, 0) for y in b) for x in a])
    recall = np.mean([max(max(x @ y, 0) for x in a) for y in b])
    return 2 * precision * recall / (precision + recall)


def test_greedy_matching_is_brute_force_token_by_token():
    a, b = [unit(n, n) for n in (1, 4, 7)], [unit(n, 10 + n) for n in (2, 5)]
    expected = [[brute_bertscore(x, y) for y in b] for x in a]
    np.testing.assert_allclose(overlap.match(a, b), expected, atol=1e-12)
    # By hand: two tokens against one at right angles to the first and equal to the second: P 1/2, R 1, F 2/3.
    e = np.eye(2)
    assert overlap.match([e], [e[1:]])[0, 0] == pytest.approx(2 / 3)
    assert overlap.match([e[:1]], [e[1:]])[0, 0] == 0.0


def test_bertscore_takes_the_nearest_person_and_leaves_oneself_out():
    states = {
        "a": unit(3, 1),
        "b": unit(4, 2),
        "c": unit(2, 3),
        "👍": np.zeros((0, 5)),
        "": np.zeros((0, 5)),
    }
    found = overlap.bertscore(["a", "👍", "", "B"], ["b", "c", "👍"], states | {"B": unit(4, 9)})
    assert found[0] == pytest.approx(max(brute_bertscore(states["a"], states[x]) for x in "bc"))
    assert (
        found[1] == 1.0 and np.isnan(found[2]) and found[3] == 1.0
    )  # the same text, case aside, is 1
    own = overlap.bertscore(["a", "b", "👍"], ["a", "b", "👍"], states, leave_one_out=True)
    assert own[:2] == pytest.approx([brute_bertscore(states["a"], states["b"])] * 2) and np.isnan(
        own[2]
    )
    assert np.isnan(overlap.bertscore(["a"], [], states)).all()
    assert overlap.bertscore(["a", "a"], ["a", "a"], states, leave_one_out=True).tolist() == [
        1.0,
        1.0,
    ]
