"""Failure rules: every one with replies that fail and with near misses that do not; hostile text breaks none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from polylib.evaluation import failures

POST = "The bridge at Mill Lane was closed this morning after heavy rain, says @countyroads."


def flags_of(reply: str, post: str = POST, relevance: float = 0.5, cut: bool = False) -> list[str]:
    return failures.flags([post], [reply], np.array([relevance]), np.array([cut]), 0.1)[0]


CASES = [  # name, replies that fail, near misses
    ("empty", ["", "   ", "...", "\u200b\u200d", "?!"], ["ok", "😂", "7", "ありがとう"]),
    (
        "parrot",
        [
            POST,
            "The bridge at Mill Lane was closed!",
            "so: the bridge at mill lane was closed this morning after",
        ],
        [
            "The bridge? At Mill, or the other one?",
            "Mill Lane again? They mended that bridge in spring and it was never right since",
            "was closed this",
        ],
    ),
    (
        "agreement",
        [
            "Agreed!",
            "So true.",
            "Exactly this 👏",
            "I totally agree with you",
            "You're absolutely right!",
            "Well said, my friend",
            "Couldn’t agree more",
        ],
        [
            "Agreed, but the council promised a new bridge in March and built nothing",
            "I don't agree",
            "Not true",
            "True grit is what the road crew showed this week in Ashford",
        ],
    ),
    (
        "question_bait",
        [
            "Nice. What do you think?",
            "Thoughts?",
            "Wow! Anyone else?",
            "Such a fair point. What made you see it this way? Curious to hear more.",
            "Let me know what you think",
        ],
        [
            "What do you think the council will pay for this?",
            "I have no thoughts on that",
            "When will the bridge open?",
            "Who else was stuck behind that lorry?",
        ],
    ),
    (
        "spam",
        [
            "#rain #bridge #road #news",
            "😀😀😀😀😀😀",
            "see http://a.com and http://b.com",
            "Check my page, link in bio",
        ],
        ["#rain #bridge #road", "😀😀😀😀😀", "The shop is on sale street"],
    ),
    (
        "toxic",
        ["you are an idiot", "KYS", "shut up", "I'll find you"],
        ["hell yeah this slaps", "that is idiotic weather", "I shut the window"],
    ),
    (
        "script",
        [
            "Мост опять закрыли",
            "また橋が閉鎖された",
            "الجسر مغلق",
            "el puente está cerrado otra vez por culpa del alcalde corrupto",
        ],
        [
            "café naïve façade",
            "The sign said МОСТ and nobody could read it",
            "ok",
            "😂😂",
            "Puente cerrado otra vez",
            "She's got geese, they've got swans, he's got ducks",
        ],
    ),
    (
        "invented",
        ["thanks @mayor", "read https://t.co/x1", "see roadnews.com"],
        ["@CountyRoads closed it last year too", "mail me at a@b", "9.30 in the morning"],
    ),
    (
        "leakage",
        [
            "<|im_end|>ok",
            "User: hi",
            "fine\nAssistant: sure",
            "[INST] go",
            "### Response",
            "</s>",
            "As an AI language model, I cannot say",
            "Write a short reply to the post.",
        ],
        [
            "The user: a nightmare",
            "2 < 3 | 4 > 1",
            "I am no AI",
            "He asked me to reply to the post office",
        ],
    ),
]


@pytest.mark.parametrize("name,fail,miss", CASES, ids=[case[0] for case in CASES])
def test_a_rule_finds_its_failures_and_spares_near_misses(name, fail, miss):
    assert [reply for reply in fail if name not in flags_of(reply)] == []
    assert [reply for reply in miss if name in flags_of(reply)] == []


def test_every_reply_rule_has_cases_and_plain_replies_have_no_flag():
    assert {case[0] for case in CASES} | {"truncated", "duplicate", "template", "off_topic"} == set(
        failures.RULES
    )
    assert (
        flags_of("My bus needed forty minutes more because of it, and the driver had no idea why.")
        == []
    )


def test_slurs_are_known_by_their_hash(monkeypatch):
    monkeypatch.setattr(failures, "SLURS", {hashlib.sha256(b"zorblax").hexdigest()[:16]})
    assert "toxic" in flags_of("what a Zorblax!") and "toxic" not in flags_of("what zorblaxes")


def test_numbers_decide_truncated_and_off_topic():
    assert flags_of("It rained all night", cut=True) == ["truncated"]
    assert flags_of("It rained all night", relevance=0.099) == ["off_topic"]
    assert flags_of("It rained all night", relevance=0.1) == []
    people = failures.flags([POST], ["It rained all night"], [0.5], np.array([np.nan]), 0.1)
    assert people == failures.flags([POST], ["It rained all night"], [0.5], None, 0.1) == [[]]


def test_duplicates_are_of_other_posts():
    posts = ["a b", "c d", "a b", "e f"]
    found = failures.flags(
        posts, ["Rain  again", "rain again", "Snow today", "snow tomorrow"], [1.0] * 4, None, 0
    )
    assert found == [["duplicate"], ["duplicate"], [], []]
    assert failures.flags(["a b"] * 2, ["same words"] * 2, [1.0] * 2, None, 0) == [[], []]


def test_a_template_needs_a_tenth_of_the_replies_and_three_posts():
    def found(openers: int, under: int) -> int:
        posts = [f"post {i % under if i < openers else i}" for i in range(40)]
        replies = [
            f"I love how number {i} was" if i < openers else f"word{i} b{i} c{i}" for i in range(40)
        ]
        return sum(
            "template" in names for names in failures.flags(posts, replies, [1.0] * 40, None, 0)
        )

    assert [found(4, 4), found(5, 5), found(5, 3), found(5, 2)] == [0, 5, 5, 0]


def test_hostile_text_is_read_and_bad_numbers_are_refused():
    nasty = [
        "\ud800",
        "\x00" * 50,
        "a" * 200_000,
        "@" * 5000,
        "http" * 3000,
        "you " * 9000,
        "<|" * 5000,
        "🏳️‍🌈" * 3000,
        "\u202e<script>alert(1)</script>",
        "so true " * 5000,
        "?" * 9000,
        "tell me know " * 3000,
    ]
    found = failures.flags(nasty[::-1], nasty, np.ones(len(nasty)), None, 0.1)
    assert len(found) == len(nasty)
    assert "spam" in found[7]
    assert failures.flags([], [], [], None, 0.1) == []
