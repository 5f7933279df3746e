"""Each rule rejects what it names and nothing near it; near duplicates against brute force; order is void."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from data_rows import data, frame, record, threads, words

from polylib.data import clean
from polylib.data import text as texts
from polylib.run import UserError


def reasons(records: list[dict], **changes) -> dict[str, int]:
    kept, rejects = clean.clean(frame(records), data(**changes))
    assert len(kept) + rejects["count"].sum() == len(records)  # nothing is lost
    return dict(zip(rejects["reason"], rejects["count"], strict=True))


GOOD = threads(6)


@pytest.mark.parametrize(
    ("reason", "reply"),
    [
        ("too_short", "ok"),
        ("too_short", "@someone @other"),
        ("too_long", words(1, 60)),
        ("links", "see http://a.b and www.c.d"),
        ("links", "masked http and http"),
        ("hashtags", "a #one #two #three"),
        ("emoji", "so good 😀😀😀😀"),
        ("spam_words", "thank you, Ser!"),
        ("spam_words", "please CLICK HERE now"),
        ("retweet_style", "RT @user: " + words(5)),
        ("retweet_style", "wow “@user: breaking news”"),
        ("copies_post", "@user " + words("post 0").upper() + "!!"),
    ],
)
def test_rule_rejects(reason, reply):
    assert reasons([*GOOD, record(0, 99, reply=reply)]) == {reason: 1}


@pytest.mark.parametrize(
    "reply",
    [
        "my user account on the server is a serious segment",
        "one link http://a.b only",
        "two #tags #here are fine",
        "three 😀😀😀 fit",
        "starting a sentence with rt is odd",
        'he said "@user is right" and left',
        "partly " + words("post 0", 4),
        "gmail and clicking hereabouts",
    ],
)
def test_rule_spares(reply):
    assert reasons([*GOOD, record(0, 99, reply=reply)]) == {}


def test_language_by_column_and_by_guess():
    foreign = record(0, 99, reply="this claims to be German", lang="de")
    guessed = record(0, 99, reply="совсем другой язык", lang=None)
    assert reasons([*GOOD, foreign]) == reasons([*GOOD, guessed]) == {"language": 1}
    assert reasons([*GOOD, record(0, 99, reply="the same language", lang="en-GB")]) == {}
    assert reasons([*GOOD, foreign, guessed | {"reply_id": "other"}], language="any") == {}
    with pytest.raises(UserError, match="no lang"):
        reasons([*GOOD, guessed], language="de")
    assert clean.looks_english("well I never thought that they would do it")
    assert not clean.looks_english("ich habe nie gedacht dass sie das wirklich machen")


@pytest.mark.parametrize(
    "lang", ["EN", "en-us", "en_GB", "eng", "English", "und", "zxx", "qme", ""]
)
def test_ways_to_write_english_or_nothing(lang):
    rows = [row | {"lang": lang or None, "reply": words(k, 5)} for k, row in enumerate(GOOD)]
    assert reasons(rows) == {}
    foreign = record(0, 99, reply="совсем другой язык", lang=lang or None)
    guessed = lang in ("und", "zxx", "qme", "")
    assert reasons([*rows, foreign]) == ({"language": 1} if guessed else {})


def test_ways_to_write_another_language():
    rows = [
        row | {"lang": name} for row, name in zip(GOOD, ["German", "deu", "de-AT"] * 8, strict=True)
    ]
    assert reasons(rows, language="de") == {}
    und = record(0, 99, lang="und", reply=words("short", 5))
    assert reasons([*rows, und], language="de") == {"language": 1}


def test_a_post_of_a_whole_book_goes_with_its_replies():
    book = [record("book", k, tweet="x " * (clean.MAX_POST // 2 + 1)) for k in range(3)]
    assert reasons([*GOOD, *book]) == {"post_too_long": 3}
    fits = [row | {"tweet": words("fits") + " " * clean.MAX_POST} for row in book]
    assert reasons([*GOOD, *(r | {"tweet": r["tweet"][: clean.MAX_POST]} for r in fits)]) == {}


def test_self_reply_needs_known_authors():
    own = record(0, 99, reply_author="ann", tweet_author="ann")
    assert reasons([*GOOD, own]) == {"self_reply": 1}
    assert reasons(GOOD) == {}  # both authors unknown is not the same author


def test_bots_by_text_and_by_author():
    copies = [record(p, 50, reply=f"Congrats on your {p}00 tweets") for p in range(5)]
    assert reasons([*GOOD, *copies]) == {"repeated_text": 5}
    assert reasons([*GOOD, *copies[:2]]) == {}  # numbers differ: neither bot nor duplicate
    author = [
        record(p, 60 + k, reply_author="bot", reply=f"offer {'abc'[k]} for you")
        for p in range(3)
        for k in (0, 1)
    ]
    assert reasons([*GOOD, *author]) == {"repeating_author": 6}  # each text thrice, 4 repetitions
    busy = [record(p, 60 + k, reply_author="busy") for p in range(6) for k in (0, 1)]
    assert reasons([*GOOD, *busy]) == {}  # much, but never the same


def test_duplicates_keep_the_earliest():
    late, early = (
        record(p, 70, reply_time_diff_seconds=t, reply_likes=n, reply=f"@x {words('dup')}{end}")
        for p, t, n, end in ((0, 900, 50, "!"), (1, 30, 0, ""))
    )
    kept, rejects = clean.clean(frame([*GOOD, late, early]), data())
    assert rejects["reason"].tolist() == ["duplicate"]
    assert early["reply_id"] in set(kept["reply_id"]) and late["reply_id"] not in set(
        kept["reply_id"]
    )


def test_near_duplicate_within_a_post_only():
    near = [
        record(p, 80 + p, reply_time_diff_seconds=100 + p, reply=words("near", 12) + f" {p}")
        for p in (0, 1)
    ]
    assert reasons([*GOOD, *near]) == {}
    same_post = [near[0], near[1] | {"tweet_id": "p0", "tweet": words("post 0")}]
    kept, rejects = clean.clean(frame([*GOOD, *same_post]), data())
    assert rejects["reason"].tolist() == ["near_duplicate"]
    assert rejects["examples"].tolist() == [[same_post[1]["reply"]]]


def test_short_threads_and_subsample():
    lonely = record(30, 0)
    assert reasons([*GOOD, lonely]) == {"too_few_replies": 1}
    kept, rejects = clean.clean(frame(threads(40)), data(max_posts=10))
    assert kept["tweet_id"].nunique() == 10 and (kept.groupby("tweet_id").size() == 4).all()
    assert dict(zip(rejects["reason"], rejects["count"], strict=True)) == {"subsampled": 120}
    other, _ = clean.clean(frame(threads(40)), data(max_posts=10, split_seed=8))
    assert set(kept["tweet_id"]) != set(other["tweet_id"])


def test_order_of_rows_changes_nothing():
    same = [record(p, 90, reply_time_diff_seconds=5, reply="all the same here") for p in (1, 2)]
    records = threads(20) + same
    shuffled = random.Random(3).sample(records, len(records))
    first, second = (clean.clean(frame(r), data(max_posts=12)) for r in (records, shuffled))
    pd.testing.assert_frame_equal(first[0], second[0])
    pd.testing.assert_frame_equal(first[1], second[1])


def test_addressing_is_cut_and_nothing_else():
    assert clean.strip_addressing("@a @b: hello @c") == "hello @c"
    assert clean.strip_addressing("hello @a") == "hello @a"


def test_nothing_left_names_the_reason():
    with pytest.raises(UserError, match="left none of 24 rows; most fell to 'too_short'"):
        clean.clean(frame(GOOD), data(min_chars=200))


def cosine(a: str, b: str) -> float:
    """Independent of the library's vectoriser: sets of 4-grams of the padded text."""
    x, y = ({f"\0\0{t}\0\0"[k : k + 4] for k in range(len(t) + 1)} for t in (a, b))
    return len(x & y) / np.sqrt(len(x) * len(y))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 1.0])
def test_similar_pairs_equal_brute_force(threshold, monkeypatch):
    monkeypatch.setattr(texts, "_BLOCK", 16)  # several blocks
    draw = random.Random(1)
    base = [words(k, draw.randrange(1, 14)) for k in range(25)]
    keys = base + [
        " ".join(w if draw.random() > p else "xyz" for w in b.split())
        for b in base
        for p in (0.05, 0.2, 0.4)
    ]
    keys += ["", "a", "ok", "ok", words("long", 400), words("long", 400) + " tail"]
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(len(keys)), 2)
        if cosine(keys[i], keys[j]) >= threshold - 1e-9
    }
    i, j = texts.similar_pairs(keys, threshold)
    assert Counter(zip(i.tolist(), j.tolist(), strict=True)) == Counter(expected)
    assert len(expected) > 5


def test_key_and_hash():
    assert texts.key("@a Hello,  WORLD! http://x.y ") == texts.key("hello world") == "hello world"
    assert texts.key("😀") != texts.key("😡")
    u = texts.seeded_hash(map(str, range(4000)), 1)
    assert abs(u.mean() - 0.5) < 0.03 and u.min() >= 0 and u.max() < 1
    assert abs(np.corrcoef(u, texts.seeded_hash(map(str, range(4000)), 2))[0, 1]) < 0.06
