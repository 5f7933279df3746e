"""Scoring from end to end with callables whose answers can be worked out by hand."""
from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from polylib.config import EvaluationConfig
from polylib.evaluation import metrics, score, text
from polylib.run import UserError

SETTINGS = EvaluationConfig(prompts=2, samples=6, temperatures=[1.0], judge_quantiles=[0.5], ks=[1, 5],
                            seed=3)
THRESHOLDS = {0.5: 10.0}


@dataclass(frozen=True)
class Post:
    id: str
    text: str
    replies: tuple[str, ...]


POSTS = [Post("p1", "my cat ate the plants again",
              ("so did mine last week", "buy a dog", "what plants were they?")),
         Post("p2", "rain all day long",
              ("send some here please", "at least the garden is happy now", "same", "I love the rain",
               "umbrella time for all of us", "it never ends, does it"))]
REPLIES = {"p1": ["so did mine", "so did mine", POSTS[0].text, "no", "she wanted it all", "why not"],
           "p2": ["", "👍", "it rains", "<b>rain</b>", "so did mine", "the garden is happy now"]}


class Encoder:
    """Stands in for the sentence encoder: a fixed random direction per text, and a record of what was
    asked."""

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=8) for t in texts]
        return np.array([r / np.linalg.norm(r) for r in rows], dtype=np.float32)


def judge(posts, replies):
    return np.array([float(len(r)) for r in replies])


def reward(posts, replies):
    return -judge(posts, replies)


def generations(temperatures=(0.7,)):
    rows = [(p, i, t, r, len(r.split()), i == 0)
            for t in temperatures for p, replies in REPLIES.items() for i, r in enumerate(replies)]
    return pd.DataFrame(rows, columns=score.NEEDED)


def scored(rows=None, encoder=None):
    rows = generations() if rows is None else rows
    return score.score(rows, POSTS, reward, judge, encoder or Encoder(), SETTINGS, THRESHOLDS)


def test_a_row_per_prompt_and_temperature_with_hand_worked_numbers():
    table = scored(generations((0.7, 1.0)))
    assert table[score.KEYS].values.tolist() == [["p1", 0.7], ["p1", 1.0], ["p2", 0.7], ["p2", 1.0]]
    one = table.iloc[0]
    lengths = sorted(len(r) for r in REPLIES["p1"])
    assert one["judge_mean"] == np.mean(lengths) == -one["reward_mean"]
    assert one["pass@1_q0.5"] == pytest.approx(4 / 6) and one["pass@5_q0.5"] == 1.0  # 10 characters
    assert one["max@5"] == pytest.approx((5 * lengths[-1] + lengths[-2]) / 6)
    assert one["best@5"] == pytest.approx((5 * lengths[0] + lengths[1]) / 6)  # reward = -judge
    assert one["duplicates"] == 1 / 15  # one of 15 pairs
    assert one["repeated_elsewhere"] == 2 / 6 and table.iloc[2]["repeated_elsewhere"] == 1 / 6
    rouge = [text.rouge_l(r, list(POSTS[0].replies)) for r in REPLIES["p1"]]
    assert one["rouge_l"] == pytest.approx(np.mean(rouge))
    assert one["length_tokens"] == np.mean([len(r.split()) for r in REPLIES["p1"]])
    assert one["truncated"] == 1 / 6
    assert one["n_samples"] == 6 and not table.filter(like="@").isna().any(axis=None)


def test_diversity_and_relevance_come_from_the_encoder_asked_once():
    encoder = Encoder()
    table = scored(encoder=encoder)
    assert len(encoder.calls) == 1 and len(set(encoder.calls[0])) == len(encoder.calls[0])
    vectors = Encoder().encode(REPLIES["p1"]).astype(float)
    pairs = [1 - vectors[i] @ vectors[j] for i in range(6) for j in range(i)]
    assert table["diversity"][0] == pytest.approx(np.mean(pairs), abs=1e-6)
    cosines = vectors @ Encoder().encode([POSTS[0].text])[0]
    assert table["relevance"][0] == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0 < table["diversity_tfidf"][0] < 1 and 1 / score.SET_SIZE < table["vendi"][0] < 1


def test_a_set_s_numbers_do_not_depend_on_its_neighbours_or_on_row_order():
    table = scored()
    shuffled = scored(generations().iloc[::-1])
    same = ["judge_mean", "pass@5_q0.5", "best@5", "diversity", "diversity_tfidf", "duplicates", "rouge_l"]
    pd.testing.assert_frame_equal(table[same], shuffled[same])
    alone = score.score(generations()[:6], POSTS[:1], reward, judge, Encoder(), SETTINGS, THRESHOLDS)
    assert alone[["self_bleu", "vendi"]].iloc[0].equals(table[["self_bleu", "vendi"]].iloc[0])


def test_people_go_through_the_same_code_leaving_themselves_out():
    people = score.human(POSTS, reward, judge, Encoder(), SETTINGS, THRESHOLDS, count_tokens=len)
    assert list(people) == list(scored()) and people["temperature"].isna().all()
    replies = POSTS[1].replies
    rest = [text.rouge_l(r, [o for o in replies if o != r]) for r in replies]
    assert people["rouge_l"][1] == pytest.approx(np.mean(rest)) and people["rouge_l"][1] < 1
    assert list(people["n_samples"]) == [3, 6]
    reasons = people.attrs["reasons"]
    assert np.isnan(people["pass@5_q0.5"][0]) and people["pass@5_q0.5"][1] == 1.0
    assert reasons["pass@5_q0.5"] == "fewer than 5 replies (1 of 2 sets)"
    assert reasons["truncated"] == "people have no token limit (2 of 2 sets)"
    assert np.isnan(people["self_bleu"][0]) and "fewer than 4" in reasons["self_bleu"]
    unknown = score.human(POSTS, reward, judge, Encoder(), SETTINGS, THRESHOLDS)
    assert unknown["length_tokens"].isna().all() and "length_tokens" in unknown.attrs["reasons"]


def test_every_nan_has_a_reason_and_nothing_else_is_caught(monkeypatch):
    people = score.human(POSTS, reward, judge, Encoder(), SETTINGS, THRESHOLDS)
    undefined = {name for name in people if people[name].isna().any()} - {"temperature"}
    assert undefined == set(people.attrs["reasons"])

    def bug(*args):
        raise ValueError("a bug, not an undefined metric")

    monkeypatch.setattr(metrics, "mean_pairwise_distance", bug)
    with pytest.raises(ValueError, match="a bug"):
        scored()


def test_thresholds_are_quantiles_over_human_replies():
    lengths = [len(r) for post in POSTS for r in post.replies]
    found = score.human_thresholds(POSTS, judge, [0.5, 0.9])
    assert found == {0.5: np.quantile(lengths, 0.5), 0.9: np.quantile(lengths, 0.9)}
    with pytest.raises(UserError, match="no human replies"):
        score.human_thresholds([], judge, [0.5])


def test_bad_generations_are_refused_in_one_line():
    for broken, message in [(generations().drop(columns="truncated"), "truncated"),
                            (generations().assign(post_id="p9"), "p9"),
                            (generations().iloc[1:], "p1 at temperature 0.7 has 5, expected 6"),
                            (generations().query("post_id == 'p1'"), "1 sets for 2 posts")]:
        with pytest.raises(UserError, match=message) as error:
            scored(broken)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="judge: expected 9 finite"):
        score.human_thresholds(POSTS, lambda posts, replies: np.full(len(replies), np.nan), [0.5])


def test_what_is_saved_can_be_read_back_and_explains_its_gaps(tmp_path):
    people = score.human(POSTS, reward, judge, Encoder(), SETTINGS, THRESHOLDS)
    score.save(people, tmp_path, THRESHOLDS)
    back = pd.read_csv(tmp_path / "per_prompt.csv")
    pd.testing.assert_frame_equal(back, pd.DataFrame(people), rtol=1e-5, check_dtype=False)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    why = "people have no token limit (2 of 2 sets)"
    assert saved["mean"]["human"]["truncated"] == {"value": None, "reason": why}
    assert saved["mean"]["human"]["pass@5_q0.5"] == 1.0 and "1 of 2 sets" in saved["undefined"]["pass@5_q0.5"]
    assert saved["thresholds"] == {"q0.5": 10.0} and "eff:yes" in saved["self_bleu"]
    score.save(scored(generations((0.7, 1.0))), tmp_path, THRESHOLDS)
    assert set(json.loads((tmp_path / "metrics.json").read_text())["mean"]) == {"T0.7", "T1"}
