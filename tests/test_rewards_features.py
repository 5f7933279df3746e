"""Surface features against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polylib.rewards import features

POST = "The cat sat on my new kettle today."


def of(reply: str, post: str = POST) -> dict[str, float]:
    return dict(zip(features.NAMES, features.surface([post], [reply])[0], strict=True))


def test_every_name_is_in_the_row():
    assert sorted(features._row(POST, "A reply.")) == sorted(features.NAMES)


def test_counted_by_hand():
    f = of(
        'Wow!! I told you: my CAT did 2 things... "really"? See https://x.org/a #cats @tom 🐈‍⬛😀'
    )
    assert np.expm1(f["exclamation"]) == pytest.approx(2)
    assert np.expm1(f["emoji"]) == pytest.approx(
        2
    )  # the black cat is three code points and one picture
    assert [np.expm1(f[k]) for k in ("links", "hashtags", "mentions")] == pytest.approx([1, 1, 1])
    # words: wow i told you my cat did 2 things really see = 11, links, tags and mentions left out
    assert np.expm1(f["log_words"]) == pytest.approx(11)
    assert f["first"] == pytest.approx(2 / 11) and f["second"] == pytest.approx(1 / 11)
    assert f["past"] == pytest.approx(2 / 11) and f["digits"] == pytest.approx(1 / 11)
    assert f["type_token"] == 1 and f["starts_first"] == 0
    assert (
        f["question"],
        f["ends_question"],
        f["colon"],
        f["ellipsis"],
        f["quote"],
        f["paren"],
    ) == (1, 0, 1, 1, 1, 0)
    assert np.expm1(f["all_caps"]) == pytest.approx(1) and f["no_end"] == 1 and f["generic"] == 1


def test_overlap_with_the_post():
    assert of(POST)["copy3"] == of(POST)["copy1"] == of(POST)["content_overlap"] == 1
    f = of("the cat sat down")  # trigrams: 'the cat sat' is in the post, 'cat sat down' is not
    assert f["copy3"] == pytest.approx(1 / 2) and f["copy1"] == pytest.approx(3 / 4)
    assert f["content_overlap"] == pytest.approx(
        2 / 2
    )  # cat, sat; 'the' and 'down' are function words
    assert f["length_ratio"] == pytest.approx(np.log1p(16) - np.log1p(len(POST)))


def test_generic_and_promotional_phrases():
    assert of("So true!")["generic_share"] == pytest.approx(7 / 8)
    assert of("The heron took our goldfish at dawn.")["generic"] == 0
    assert of("50% off, link in bio, use code TOAD20")["promo"] >= 3
    assert of("My officer friend is bionic")["promo"] == 0  # whole words only


def test_sentiment_is_vader_published_value():
    # from VADER's README: "VADER is smart, handsome, and funny." compound 0.8316
    assert features.sentiment("VADER is smart, handsome, and funny.")["compound"] == pytest.approx(
        0.8316
    )


def test_empty_and_hostile_replies_are_finite():
    replies = ["", " ", "\u200b", "🐈", "\ud800", "!" * 3000, "a" * 5000, "\x00"]
    table = features.surface([POST] * len(replies), replies)
    assert table.shape == (len(replies), len(features.NAMES)) and np.isfinite(table).all()
    assert features.surface([], []).shape == (0, len(features.NAMES))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        features.surface(["a"], ["b", "c"])
