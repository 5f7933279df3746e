"""Metrics against published values, other libraries and brute force over all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from polylib import metrics
from polylib.evaluation import text

RNG = np.random.default_rng(0)
# The three sentences of fast-bleu's README, whose self-BLEU values are published there.
FAST_BLEU = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the "
    "command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    "n, c, k, value",
    [(10, 3, 5, 0.9166667), (10, 1, 5, 0.5), (5, 2, 3, 0.9), (200, 20, 10, 0.660225623763214)],
)
def test_pass_at_k_gives_the_published_values(n, c, k, value):
    assert metrics.pass_at_k(n, c, k) == pytest.approx(
        value, abs=1e-7
    )  # openai/human-eval's formula


def test_pass_at_k_is_the_share_of_subsets_with_a_pass():
    passes = np.array([1, 0, 0, 1, 0, 0, 0])
    for k in range(1, 8):
        subsets = list(itertools.combinations(passes, k))
        assert metrics.pass_at_k(7, 2, k) == pytest.approx(
            np.mean([max(s) for s in subsets]), abs=1e-12
        )
    assert metrics.pass_at_k(7, np.array([[0, 7], [1, 2]]), 3).shape == (2, 2)


def test_k_out_of_range_is_an_error_not_a_number():
    for call in (
        lambda k: metrics.pass_at_k(10, 3, k),
        lambda k: metrics.max_at_k(np.arange(10.0), k),
    ):
        with pytest.raises(metrics.Undefined, match="fewer than 11 replies"):
            call(11)
        with pytest.raises(ValueError, match="at least 1"):
            call(0)


def test_max_at_k_gives_order_statistics():
    assert [metrics.max_at_k(np.arange(1.0, 6), k) for k in range(1, 6)] == pytest.approx(
        [3, 4, 4.5, 4.8, 5]
    )
    assert metrics.max_at_k(np.repeat([1.0, 0.0], [3, 7]), 5) == pytest.approx(
        0.9166667
    )  # = pass@5


def test_best_of_k_equals_brute_force_over_subsets():
    assert metrics.best_of_k([3, 1, 2, 4], [0.2, 0.9, 0.5, 0.1], 2) == pytest.approx(0.2)
    proxy, values = RNG.normal(size=8), RNG.normal(size=8)
    for k in range(1, 9):
        brute = np.mean(
            [values[max(s, key=lambda i: proxy[i])] for s in itertools.combinations(range(8), k)]
        )
        assert metrics.best_of_k(proxy, values, k) == pytest.approx(brute, abs=1e-12)


def test_best_of_k_averages_ties_whatever_the_order_of_generation():
    proxy, values = np.array([1.0, 2, 2, 0, 2]), np.array([5.0, 1, 4, 9, 7])
    subsets = list(itertools.combinations(range(5), 3))
    brute = np.mean(
        [np.mean([values[i] for i in s if proxy[i] == max(proxy[list(s)])]) for s in subsets]
    )
    orders = map(list, itertools.permutations(range(5)))
    results = [metrics.best_of_k(proxy[order], values[order], 3) for order in orders]
    assert results == pytest.approx([brute] * len(results), abs=1e-12)


def test_semantic_distances():
    points = np.array([0, 0, 10, 10, 20, 20.0])
    kernel = np.exp(-abs(points[:, None] - points[None]))
    assert metrics.vendi(kernel) == pytest.approx(2.9999999959, abs=1e-9)  # vendi-score's README
    assert metrics.vendi(np.stack([np.ones((4, 4)), np.eye(4)])) == pytest.approx([1, 4])
    assert metrics.mean_pairwise_distance(np.eye(3)) == 1.0
    assert metrics.mean_pairwise_distance(np.ones((3, 3))) == 0.0
    with pytest.raises(ValueError, match="fewer than 2"):
        metrics.mean_pairwise_distance(np.ones((1, 1)))
    with pytest.raises(ValueError, match="diagonal"):
        metrics.vendi(2 * np.eye(3))


def test_self_bleu_gives_fast_bleu_s_published_values():
    """At order 2 nothing needs smoothing; at order 3 the first sentence does, where libraries differ
    (fast-bleu .078)."""
    published = np.mean([25.819889, 36.155076, 37.080992])
    assert text.self_bleu(FAST_BLEU, 2, rng(), order=2) == pytest.approx(published)
    a, b, c = FAST_BLEU
    assert text._bleu(3).sentence_score(b, [a, c]).score == pytest.approx(20.140621)
    assert text._bleu(3).sentence_score(c, [a, b]).score == pytest.approx(21.415336)


def test_self_bleu_on_short_and_empty_replies():
    assert text.self_bleu(["great point"] * 3, 2, rng()) == pytest.approx(
        100
    )  # NLTK's BLEU-4 says 0 or 32
    assert text.self_bleu(["lol same", "same lol"], 1, rng()) == pytest.approx(70.7107, abs=1e-3)
    assert text.self_bleu(["👍", "👍", "👍"], 2, rng()) == pytest.approx(100)
    assert text.self_bleu(["", "", ""], 2, rng()) == 100.0
    assert text.self_bleu(["", "a cat"], 1, rng()) == 0.0
    with pytest.raises(ValueError, match="fewer than 5 replies"):
        text.self_bleu(["a", "b"], 4, rng())


def test_bleu_gives_sacrebleu_s_readme_value():
    assert text._bleu(4).sentence_score(
        "The dog bit the man.", ["The dog had bit the man."]
    ).score == pytest.approx(51.15, abs=0.005)


def test_self_bleu_does_not_hang_on_how_many_replies_there_are():
    """With the number of references fixed, twice the replies give the same expectation; with all of them they
    do not."""
    pool = [
        "the cat sat",
        "a cat ran off",
        "the dog sat down",
        "no idea at all",
        "the cat ran",
        "a dog sat",
    ]
    draws = [list(RNG.choice(pool, 12)) for _ in range(300)]
    small = np.mean([text.self_bleu(d[:6], 3, rng()) for d in draws])
    large = np.mean([text.self_bleu(d, 3, rng()) for d in draws])
    everything = np.mean([text.self_bleu(d, 11, rng()) for d in draws])
    assert abs(small - large) < 3 < everything - large


def test_distinct_n():
    assert text.distinct_n(["a b a b"], 1, 4, rng()) == 0.5
    assert text.distinct_n(["a b a b"], 2, 4, rng()) == pytest.approx(2 / 3)
    assert text.distinct_n(["a b", "a b"], 2, 4, rng()) == 0.5  # no bigram across replies
    # Equal budgets: a thousand further replies of the same vocabulary change nothing.
    few, many = ["a b c d"] * 2, ["a b c d"] * 1000
    assert text.distinct_n(few, 1, 8, rng()) == text.distinct_n(many, 1, 8, rng()) == 0.5
    with pytest.raises(ValueError, match="fewer than 8 words"):
        text.distinct_n(["a"], 1, 8, rng())
    with pytest.raises(ValueError, match="no reply has 2 tokens"):
        text.distinct_n(["a", "b"], 2, 2, rng())


class Words:
    """Our tokens in the shape that rouge_score wants."""

    def tokenize(self, string):
        return text.words(string)


def test_rouge_l_is_rouge_score_on_our_tokens():
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    vocabulary = "a b c d e 👍 it's ?".split()
    for _ in range(100):
        one, two = (" ".join(RNG.choice(vocabulary, RNG.integers(1, 15))) for _ in range(2))
        assert text.rouge_l(one, [two]) == pytest.approx(scorer.score(two, one)["rougeL"].fmeasure)


def test_rouge_l():
    pair = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    assert RougeScorer(["rougeL"]).score(*pair)["rougeL"].fmeasure == pytest.approx(
        0.588235, abs=1e-6
    )
    # Ours counts the full stop as a token: 5 of 9 and of 9.
    assert text.rouge_l(pair[1], [pair[0]]) == pytest.approx(5 / 9)
    assert text.rouge_l("testing", ["testing one", "no"]) == pytest.approx(2 / 3)  # the nearest one
    assert text.rouge_l("🔥🔥", ["🔥🔥"]) == 1.0  # rouge_score's own tokenizer: 0
    assert text.rouge_l("Привет всем", ["привет всем"]) == 1.0
    assert text.rouge_l("", ["a"]) == 0.0
    with pytest.raises(metrics.Undefined, match="no human reply"):
        text.rouge_l("a", [])


def test_duplicates_and_copies():
    assert text.duplicate_rate(["Same here", "same  HERE", "other"]) == pytest.approx(
        1 / 3
    )  # 1 of 3 pairs
    with pytest.raises(ValueError, match="fewer than 2"):
        text.duplicate_rate(["a"])
    assert (
        text.copy_rate("one two three four", ["One two three four", "five six seven", "x"]) == 0.5
    )
    with pytest.raises(ValueError, match="3 tokens"):
        text.copy_rate("one two three", ["x", "👍👍"])


def test_words_survive_hostile_text():
    assert text.words("Don't 👨‍👩‍👧 🇩🇪 ok\u200b\x00") == [
        "don't",
        "👨‍👩‍👧",
        "🇩🇪",
        "ok",
        "\u200b",
        "\x00",
    ]
    assert text.words(" \n\t") == []
    assert len(text.words("a " * 100_000)) == text.LONGEST / 2


def test_character_vectors_tell_wording_apart():
    vectors = text.CharacterVectors(
        ["the cat sat on the mat", "a dog ran off", "what a lovely day"]
    )
    s = vectors.similarity(["the cat sat on a mat", "the cat sat on the mat", "zzqx wwvk", "", ""])
    assert s[0, 1] > 0.6 and 0 <= s[0, 2] < 0.05 and s[3, 4] == 1.0 and s[0, 3] == 0.0
    assert np.allclose(np.diag(s), 1)
    assert (
        0 < vectors.similarity(["zzqx wwvk", "zzqx"])[0, 1] < 1
    )  # n-grams people never wrote still count


def test_the_budget_of_distinct_n_cuts_within_a_reply_and_leaves_the_rest_unread():
    """Its expectation over orders, written out; and longer replies of the same words change nothing."""
    replies, budget = ["a a a a", "d e", "b c f g h"], 5
    for n in (1, 2):
        ratios = []
        for order in itertools.permutations(replies):
            left, grams = budget, []
            for reply in order:
                part = reply.split()[: max(left, 0)]
                left -= len(part)
                grams += list(zip(*(part[i:] for i in range(n))))
            ratios.append(len(set(grams)) / len(grams))
        found = text.distinct_n(replies, n, budget, rng(), draws=4000)
        assert found == pytest.approx(np.mean(ratios), abs=0.01)
        assert len(set(ratios)) > 1 and ratios[0] < np.mean(ratios) - 0.1, "the orders must differ"
    once, longer = ["a b c d e f g"] * 3, ["a b c d e f g" + " a b c d e f g" * 9] * 3
    for n, expected in ((1, 1.0), (2, 1.0)):
        assert (
            text.distinct_n(once, n, 6, rng()) == text.distinct_n(longer, n, 6, rng()) == expected
        )
    assert text.distinct_n(longer, 1, 21, rng()) == pytest.approx(1 / 3)
