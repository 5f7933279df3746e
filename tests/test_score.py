"""Scoring from end to end with callables whose answers can be worked out by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from polylib import config, metrics
from polylib.config import EvaluationConfig
from polylib.evaluation import failures, human_baseline, novelty, overlap, record, score, text
from polylib.models import generate
from polylib.run import UserError

SETTINGS = EvaluationConfig(
    prompts=2,
    samples=6,
    temperatures=[1.0],
    sweep_samples=3,
    judge_quantiles=[0.5],
    ks=[1, 5],
    seed=3,
    likelihood_prompts=0,
    likelihood_samples=1,
)
BAR = 10.0  # of people's judge scores, half lie below


@dataclass(frozen=True)
class Post:
    id: str
    text: str
    replies: tuple[str, ...]


POSTS = [
    Post(
        "p1",
        "my cat ate the plants again",
        ("so did mine last week", "buy a dog", "what plants were they?"),
    ),
    Post(
        "p2",
        "rain all day long",
        (
            "send some here please",
            "at least the garden is happy now",
            "same",
            "I love the rain",
            "umbrella time for all of us",
            "it never ends, does it",
        ),
    ),
]
REPLIES = {
    "p1": ["so did mine", "so did mine", POSTS[0].text, "no", "she wanted it all", "why not"],
    "p2": ["", "👍", "it rains", "<b>rain</b>", "so did mine", "the garden is happy now"],
}


class Encoder:
    """Stands in for the sentence encoder: a fixed random direction per text, and a record of what was
    asked."""

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=8) for t in texts]
        return np.array([r / np.linalg.norm(r) for r in rows], dtype=np.float32)

    def token_states(self, texts):
        self.calls.append(["states", *texts])
        words = {t: [w for w in t.split() if w.isascii()] for t in texts}
        return {
            t: Encoder().encode(w) if w else np.zeros((0, 8), np.float32) for t, w in words.items()
        }


def judge(posts, replies):
    return np.array([float(len(r)) for r in replies])


def reward(posts, replies):
    return -judge(posts, replies)


def generations(temperatures=(0.7,)):
    rows = [
        (p, i, t, r, len(r.split()), i == 0)
        for t in temperatures
        for p, replies in REPLIES.items()
        for i, r in enumerate(replies)
    ]
    return pd.DataFrame(
        rows, columns=["post_id", "sample", "temperature", "reply", "tokens", "truncated"]
    )


PEOPLE = human_baseline.HumanBaseline(np.array([2.0, 9, 10, 11, 40]), -0.5)


def rated(rows=None, encoder=None):
    rows = generations() if rows is None else rows
    return score.rate(rows, POSTS, reward, judge, encoder or Encoder(), PEOPLE)


def scored(rows=None, encoder=None):
    encoder = encoder or Encoder()
    return score.score(rated(rows, encoder), POSTS, encoder, SETTINGS, PEOPLE)


def people_scored(count_tokens=None):
    rows = score.rate(generate.people(POSTS, count_tokens), POSTS, reward, judge, Encoder(), PEOPLE)
    return score.score(rows, POSTS, Encoder(), SETTINGS, PEOPLE, leave_one_out=True)


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
    assert one["n_samples"] == 6 and not table.filter(regex="@").isna().any(axis=None)


def test_diversity_and_relevance_come_from_the_encoder():
    encoder = Encoder()
    table = scored(encoder=encoder)
    states, *rest = (
        encoder.calls
    )  # tokens first: a real encoder keeps the embeddings that it computes on the way
    assert states[0] == "states" and all(len(set(call)) == len(call) for call in rest)
    vectors = Encoder().encode(REPLIES["p1"]).astype(float)
    pairs = [1 - vectors[i] @ vectors[j] for i in range(6) for j in range(i)]
    assert table["diversity"][0] == pytest.approx(np.mean(pairs), abs=1e-6)
    cosines = vectors @ Encoder().encode([POSTS[0].text])[0]
    assert table["relevance"][0] == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0 < table["diversity_tfidf"][0] < 1 and 1 / score.SET_SIZE < table["vendi"][0] < 1


def test_a_set_s_numbers_do_not_depend_on_its_neighbours_or_on_row_order():
    table = scored()
    shuffled = scored(generations().iloc[::-1])
    same = [
        "judge_mean",
        "pass@5_q0.5",
        "best@5",
        "diversity",
        "diversity_tfidf",
        "duplicates",
        "rouge_l",
        "bertscore",
        "effective_diversity",
    ]
    pd.testing.assert_frame_equal(table[same], shuffled[same])
    drawn = ["self_bleu", "vendi", "distinct_k"]
    pd.testing.assert_frame_equal(table[drawn], shuffled[drawn])
    alone = score.score(rated(generations()[:6]), POSTS[:1], Encoder(), SETTINGS, PEOPLE)
    assert alone[drawn].iloc[0].equals(table[drawn].iloc[0])


def test_people_go_through_the_same_code_leaving_themselves_out():
    people = people_scored(len)
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
    unknown = people_scored()
    assert unknown["length_tokens"].isna().all() and "length_tokens" in unknown.attrs["reasons"]


def test_every_nan_has_a_reason_and_nothing_else_is_caught(monkeypatch):
    people = people_scored()
    undefined = {name for name in people if people[name].isna().any()} - {"temperature"}
    assert undefined == set(people.attrs["reasons"])

    def bug(*args):
        raise ValueError("a bug, not an undefined metric")

    monkeypatch.setattr(metrics, "mean_pairwise_distance", bug)
    with pytest.raises(ValueError, match="a bug"):
        scored()


def test_people_set_the_bars():
    lengths = sorted(len(r) for post in POSTS for r in post.replies)
    found = human_baseline.measure(POSTS, judge, Encoder())
    assert found.judged.tolist() == lengths
    assert found.thresholds([0.5, 0.9]) == {
        0.5: np.quantile(lengths, 0.5),
        0.9: np.quantile(lengths, 0.9),
    }
    relevance = [
        (Encoder().encode([p.text]) @ Encoder().encode([r]).T).item()
        for p in POSTS
        for r in p.replies
    ]
    assert found.off_topic_below == pytest.approx(
        np.quantile(relevance, failures.OFF_TOPIC_QUANTILE), abs=1e-6
    )
    with pytest.raises(UserError, match="no human replies"):
        human_baseline.measure([], judge, Encoder())


def test_each_reply_is_rated_once_and_by_itself():
    asked = []
    rows = score.rate(
        generations(),
        POSTS,
        reward,
        lambda p, r: asked.append(len(r)) or judge(p, r),
        Encoder(),
        PEOPLE,
    )
    score.score(rows, POSTS, Encoder(), SETTINGS, PEOPLE)
    assert asked == [12]
    one = rows[rows["reply"].eq("the garden is happy now")].iloc[0]
    states = Encoder().token_states([one["reply"], *POSTS[1].replies])
    nearest = overlap.match([states[one["reply"]]], [states[r] for r in POSTS[1].replies]).max()
    assert one["bertscore"] == pytest.approx(nearest)
    empty, emoji = (rows[rows["reply"].eq(reply)].iloc[0] for reply in ("", "👍"))
    assert np.isnan(empty["bertscore"]) and np.isnan(emoji["bertscore"])
    assert empty["flags"] == ["empty", "truncated"] and "truncated" not in emoji["flags"]
    assert (
        rows["flags"].map(lambda names: "duplicate" in names).sum() == 3
    )  # "so did mine" under both posts
    people = score.rate(
        generate.people(POSTS)[::-1], POSTS, reward, judge, Encoder(), PEOPLE
    ).set_index("sample")
    mine = people[people["post_id"].eq("p2")]
    states = Encoder().token_states(POSTS[1].replies)
    for i, reply in enumerate(POSTS[1].replies):
        rest = [states[r] for r in POSTS[1].replies if r != reply]
        assert mine.loc[i, "bertscore"] == pytest.approx(overlap.match([states[reply]], rest).max())


def test_novelty_columns_are_the_metrics_of_the_set():
    table, replies = scored().iloc[0], REPLIES["p1"]
    wording = text.CharacterVectors([r for p in POSTS for r in p.replies]).similarity(replies)
    picks = novelty.sets(6, 4, np.random.default_rng(0))
    sizes = novelty.class_sizes(wording[picks[:, :, None], picks[:, None]], score.SAME_KIND)
    assert (
        table["distinct_k"] == pytest.approx(novelty.distinct_k(sizes))
        and 3 < table["distinct_k"] < 4
    )
    lengths = np.array([len(r) for r in replies], dtype=float)
    assert table["effective_diversity"] == novelty.effective_diversity(
        wording, lengths >= BAR, score.SAME_KIND
    )
    assert table["effective_diversity"] == pytest.approx(
        5 / 15
    )  # of six pairs of good ones, one says the same


def test_fewer_replies_at_the_other_temperatures_are_whole_sets_too():
    few = generations((0.7, 1.0)).query("temperature == 0.7 or sample < 3")
    table = scored(few).set_index(["temperature", "prompt_id"])
    assert table.loc[1.0, "n_samples"].eq(3).all() and table.loc[0.7, "n_samples"].eq(6).all()
    assert (
        table.loc[1.0, "pass@5_q0.5"].isna().all() and table.loc[0.7, "pass@5_q0.5"].notna().all()
    )
    pd.testing.assert_frame_equal(
        table.loc[0.7], scored().set_index("prompt_id").drop(columns="temperature")
    )


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="judge: expected 9 finite"):
        human_baseline.measure(
            POSTS, lambda posts, replies: np.full(len(replies), np.nan), Encoder()
        )


def test_what_is_saved_can_be_read_back_and_explains_its_gaps(tmp_path):
    people = people_scored()
    record.save(people, tmp_path, {0.5: BAR})
    back = pd.read_csv(tmp_path / "per_prompt.csv")
    pd.testing.assert_frame_equal(back, pd.DataFrame(people), rtol=1e-5, check_dtype=False)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    why = "people have no token limit (2 of 2 sets)"
    assert saved["mean"]["human"]["truncated"] == {"value": None, "reason": why}
    assert (
        saved["mean"]["human"]["pass@5_q0.5"] == 1.0
        and "1 of 2 sets" in saved["undefined"]["pass@5_q0.5"]
    )
    assert saved["thresholds"] == {"q0.5": 10.0}
    record.save(scored(generations((0.7, 1.0))), tmp_path, {0.5: BAR})
    assert set(json.loads((tmp_path / "metrics.json").read_text())["mean"]) == {"T0.7", "T1"}


def test_rated_replies_can_be_read_back(tmp_path):
    for rows in (generations().assign(post="a post", logprob=-1.23456), generate.people(POSTS)):
        rows = score.rate(rows, POSTS, reward, judge, Encoder(), PEOPLE)
        generate.save(rows, tmp_path)
        lines = (tmp_path / "generations.jsonl").read_text().splitlines()
        assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)  # NaN is no JSON
        back = pd.DataFrame([json.loads(line) for line in lines]).fillna(np.nan).infer_objects()
        assert list(back) == [*generate.COLUMNS, *generate.RATED]
        pd.testing.assert_frame_equal(
            back, rows[list(back)], rtol=1e-4, atol=1e-4, check_dtype=False
        )


def test_provenance_names_what_numbers_rest_on(tmp_path):
    class Named(Encoder):
        identity = {"source": "made up", "sha256": "0", "dtype": "float32"}

    (tmp_path / "judge").write_bytes(b"weights")
    known = type("Judge", (), {"pair_accuracy": 0.6, "pairs": 10})
    found = record.provenance(
        config.load("laptop"), Named(), ["a"] * 7, known, tmp_path / "judge", PEOPLE
    )
    assert found["judge"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert found["encoder"]["source"] == "made up" and found["tokens"]["model_vocabulary"] == 7
    assert found["sets"] == {"replies": 4, "words": 40, "most": 2000}
    assert "eff:yes" in found["self_bleu"]
    assert found["packages"]["sacrebleu"] == importlib.metadata.version("sacrebleu")


# ------------------------------------------------------ several bars, several temperatures, replies of all lengths
WORDS = [
    "kettle",
    "rain",
    "keys",
    "garden",
    "bakery",
    "window",
    "seven",
    "under",
    "slowly",
    "perhaps",
]


def long_replies(n, seed=0):
    """n replies of 3 to 25 words: no budget falls on their ends."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 26))) for _ in range(n)]


def several(quantiles=(0.9, 0.25, 0.5), temperatures=(0.7, 1.0), n=8):
    """(generations, table by temperature) of replies under both posts, at two temperatures, with three bars."""
    rows = [
        (post.id, i, t, reply, 5.0, False)
        for j, post in enumerate(POSTS)
        for t in temperatures
        for i, reply in enumerate(long_replies(n, seed=int(100 * t) + j))
    ]
    table = pd.DataFrame(
        rows, columns=["post_id", "sample", "temperature", "reply", "tokens", "truncated"]
    )
    settings = dataclasses.replace(SETTINGS, judge_quantiles=list(quantiles), samples=n)
    people = dataclasses.replace(PEOPLE, judged=np.arange(20.0, 180.0, 10.0))
    found = score.score(
        score.rate(table, POSTS, reward, judge, Encoder(), people),
        POSTS,
        Encoder(),
        settings,
        people,
    )
    return table, found.set_index(["temperature", "prompt_id"]), people


def test_each_bar_is_its_own_and_a_good_reply_is_one_above_the_lowest(monkeypatch):
    monkeypatch.setattr(
        score, "SAME_KIND", 0.9
    )  # ten words in all: every reply is like every other
    table, found, people = several()
    wording = text.CharacterVectors([r for p in POSTS for r in p.replies])
    for (temperature, post), part in table.groupby(["temperature", "post_id"]):
        lengths, replies = part["reply"].str.len().to_numpy(), list(part["reply"])
        bars = {q: np.quantile(people.judged, q) for q in (0.25, 0.5, 0.9)}
        for q, bar in bars.items():
            for k in (1, 5):
                subsets = itertools.combinations(lengths >= bar, k)
                share = np.mean([any(subset) for subset in subsets])
                assert found.loc[(temperature, post), f"pass@{k}_q{q:g}"] == pytest.approx(share)
        unlike = 1 - wording.similarity(replies)
        pairs = list(itertools.combinations(range(len(replies)), 2))
        different = {
            q: np.mean(
                [
                    unlike[i, j] > 1 - score.SAME_KIND and min(lengths[i], lengths[j]) >= bar
                    for i, j in pairs
                ]
            )
            for q, bar in bars.items()
        }
        assert len(set(different.values())) == 3, "the bars must tell these replies apart"
        assert found.loc[(temperature, post), "effective_diversity"] == pytest.approx(
            different[0.25]
        )
    alone = several(quantiles=(0.25,))[1]
    names = ["effective_diversity", "pass@5_q0.25"]
    pd.testing.assert_frame_equal(
        found[names], alone[names]
    )  # stricter bars beside it change nothing


def test_every_temperature_is_scored_by_its_own_replies():
    both, one = several()[1], several(temperatures=(1.0,))[1]
    pd.testing.assert_frame_equal(both.loc[[1.0]], one)
    assert not both.loc[0.7, "diversity"].equals(both.loc[1.0, "diversity"])


def test_the_table_takes_each_lexical_metric_at_its_budget():
    table, found, _ = several()
    for (temperature, post), part in table.groupby(["temperature", "post_id"]):
        row, replies = found.loc[(temperature, post)], list(part["reply"])
        assert sum(len(r.split()) for r in replies) > 2 * score.TOKEN_BUDGET
        for n in (1, 2):
            expected = text.distinct_n(
                replies, n, score.TOKEN_BUDGET, np.random.default_rng(SETTINGS.seed)
            )
            assert row[f"distinct_{n}"] == pytest.approx(expected)
        assert row["distinct_1"] >= len(WORDS) / score.TOKEN_BUDGET * 0.7, (
            "ten words in forty, not in all there are"
        )
        assert row["self_bleu"] == pytest.approx(
            text.self_bleu(replies, score.SET_SIZE - 1, np.random.default_rng(SETTINGS.seed))
        )
