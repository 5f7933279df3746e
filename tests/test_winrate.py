"""Win rates: the study's tables against hand counts, agreement against scikit-learn and published values, and the
language model's part over a scripted server."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from study_fixture import small_config, write_study
from test_rewards_llm import server  # noqa: F401  (a fixture)

from polylib.analysis import judging, replies, results, winrate
from polylib.config import UserError
from polylib.figures import winrate_figure
from polylib.reward_checks import agreement
from polylib.reward_checks.agreement import ScoreJudge
from polylib.rewards import llm_controls
from polylib.run import atomic_write


def test_posts_weigh_the_same_and_what_has_no_verdict_is_left_out():
    wins = np.r_[np.ones(30), 0.0, np.nan]
    found = winrate.by_post(wins, pd.Series([*["a"] * 30, "b", "c"]))
    assert found.to_dict() == pytest.approx({"a": 1.0, "b": 0.0})
    assert winrate.by_post(np.array([np.nan]), pd.Series(["p"])).empty


# ---- the study's tables


def write_replies(paths, cfg, judged=True):
    """Five posts of the fixture, three replies a cell; GRPO is judged one unit better and writes longer."""
    rng = np.random.default_rng(2)
    cells = [("human", None)] + [(method, seed) for method in cfg.methods for seed in cfg.seeds]
    for method, seed in cells:
        rows = []
        for temperature in [np.nan] if method == "human" else [cfg.sampling.temperature, 1.3]:
            for i in range(24):
                for k in range(3):
                    words = int(rng.integers(4, 12)) + 5 * (method == "grpo")
                    score = rng.normal(1.0 * (method == "grpo"), 0.6) - 50 * (temperature == 1.3)
                    text = f"{method} {seed} {k} " + " ".join(["word"] * words)
                    rows.append(
                        {
                            "post_id": f"p{i:03d}",
                            "post": f"post {i}",
                            "sample": k,
                            "temperature": temperature,
                            "reply": text,
                            "tokens": np.nan,
                            "truncated": np.nan,
                            "reward": 0.0,
                            "relevance": 0.5,
                            "flags": [],
                        }
                        | ({"judge": score} if judged else {})
                    )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write(paths.evaluation(method, seed) / "generations.jsonl", lines)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    cfg = small_config()
    paths = write_study(tmp_path_factory.mktemp("study"), cfg)
    write_replies(paths, cfg)
    return results.load(paths, cfg)


def test_win_rates_are_the_pairs_counted_by_hand(study):
    scored = replies.load(study)
    found = winrate.runs(study, scored)
    assert len(found) == 3 * (2 * len(study.cfg.methods) - 1) and ("sft", 42, "sft") not in found
    mine, theirs = (replies.cell(scored, name, 123) for name in ("grpo", "sft"))
    assert len(mine) == 72  # replies at another temperature are no part
    won = []
    for post in mine["post_id"].unique():
        for x in mine.loc[mine["post_id"].eq(post), "judge"]:
            for y in theirs.loc[theirs["post_id"].eq(post), "judge"]:
                won.append(0.5 if abs(x - y) < 0.2 else expit(x - y))
    shares = found["grpo", 123, "sft"]
    assert len(shares) == 24 and shares.mean() == pytest.approx(np.mean(won)) and np.mean(won) > 0.6


def test_intervals_of_a_method_take_runs_as_a_sample(study):
    found = winrate.runs(study)
    row = winrate.by_method(study, found).set_index(["method", "opponent"]).loc[("grpo", "sft")]
    values = np.array([found["grpo", seed, "sft"] for seed in study.cfg.seeds])
    assert row["raw"] == pytest.approx(values.mean()) and (row["runs"], row["n"]) == (3, 24)
    error2 = values.mean(1).var(ddof=1) / 3 + values.mean(0).var(ddof=1) / 24
    assert row["raw_low"] > 0.5 and (row["raw_high"] - row["raw"]) / np.sqrt(error2) > 1.96
    alone = dataclasses.replace(study, cfg=dataclasses.replace(study.cfg, seeds=(42,)))
    table = winrate.by_method(alone, winrate.runs(alone))
    assert table["reason"].str.contains("one run").all()


@pytest.mark.parametrize("columns", [1, 2])
def test_the_picture_says_what_it_rests_on_and_fits_its_page(study, columns):
    drawn = winrate_figure.picture(study, winrate.runs(study), columns)
    note = " ".join(drawn.figure.get_supxlabel().split())
    assert (
        "judge right on 66% of 3210 human pairs" in note
        and "count half" in note
        and len(drawn.data)
    )
    drawn.figure.draw_without_rendering()
    box = drawn.figure.get_tightbbox()
    assert box.x0 > -0.02 and box.x1 < drawn.figure.get_figwidth() + 0.02


def test_replies_without_a_score_are_refused(study, tmp_path):
    cfg = study.cfg
    paths = write_study(tmp_path, cfg)
    bare = results.load(paths, cfg)
    with pytest.raises(UserError, match="generations.jsonl: missing"):
        winrate.runs(bare)
    write_replies(paths, cfg, judged=False)
    with pytest.raises(
        UserError, match="generations.jsonl: no column judge: written by an older version"
    ):
        winrate.runs(bare)


def test_a_scorer_is_a_judge_that_the_controls_can_refuse():
    posts = [f"topic{i} here" for i in range(12)]
    said = [f"about topic{i}" for i in range(12)]
    fair = ScoreJudge(lambda p, r: np.array([2.0 * (x.split()[0] in y) for x, y in zip(p, r)]))
    assert not llm_controls.refusal(llm_controls.battery(fair, posts, said))
    length = ScoreJudge(lambda p, r: np.array([float(len(y)) for y in r]))
    assert "same" in llm_controls.refusal(llm_controls.battery(length, posts, said))
    np.testing.assert_allclose(
        agreement.soft_wins([2, 0.1, 0], [0, 0, 4]), [expit(2), 0.5, expit(-4)]
    )


# ---- agreement


def test_kappa_is_the_published_value():
    from sklearn.metrics import cohen_kappa_score

    first, second = [2, 0, 2, 2, 0, 1], [0, 0, 2, 2, 0, 2]
    found = agreement.kappa(first, second, range(6))
    assert found["kappa"] == pytest.approx(0.42857142857) and found["agreement"] == pytest.approx(
        4 / 6
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = rng.choice([0, 0.5, 1], 80)
        b = np.where(rng.random(80) < 0.5, a, rng.choice([0, 0.5, 1], 80))
        both = agreement.kappa(np.r_[a, np.nan], np.r_[b, 1], np.r_[np.arange(80) // 2, 99])
        assert both["kappa"] == pytest.approx(cohen_kappa_score(a.astype(str), b.astype(str)))
        assert both["low"] < both["kappa"] < both["high"] and (both["n"], both["missing"]) == (
            80,
            1,
        )
    same = agreement.kappa([1, 1], [1, 1], ["p", "q"])
    assert np.isnan(same["kappa"]) and "one answer only" in same["reason"]
    assert agreement.kappa([np.nan], [1], ["p"])["reason"] == "no pair has both verdicts"


def test_the_interval_of_kappa_resamples_posts_not_pairs():
    rng = np.random.default_rng(1)
    of_post, chance = rng.random(40) < 0.7, rng.integers(0, 2, 40)
    a = np.repeat(chance, 10).astype(float)
    b = np.where(np.repeat(of_post, 10), a, 1 - a)  # posts agree or disagree as a whole
    wide, narrow = (
        agreement.kappa(a, b, posts) for posts in (np.repeat(np.arange(40), 10), np.arange(400))
    )
    assert wide["high"] - wide["low"] > 2.5 * (narrow["high"] - narrow["low"])


# ---- the language model's part


def with_llm(study, server, **change):
    judge = dataclasses.replace(
        study.cfg.llm_judge,
        url=server.url,
        model="m",
        compare_posts=6,
        criteria=["engaging", "on_topic"],
        **change,
    )
    return dataclasses.replace(
        study, cfg=dataclasses.replace(study.cfg, llm_judge=judge, seeds=(42, 123))
    )


def grpo_first(data, question):
    """Knows whose reply is human and on topic; otherwise prefers GRPO when asked about engagement, else neither."""
    texts = [data["A"].rstrip(), data["B"].rstrip()]
    if any(text.startswith("Agreed!") for text in texts):  # whatever it says after that
        return "AB"[texts[0].startswith("Agreed!")]
    if "takes up" in question:
        return "no idea" if texts[0].startswith("human") else "A"
    if texts[0] == texts[1]:
        return "A"
    if texts[0].startswith("human"):
        return "A" if data["post"].endswith(texts[0].split()[-1]) else "B"
    return (
        "AB"[not texts[0].startswith("grpo")] if any(t.startswith("grpo") for t in texts) else "A"
    )


@pytest.fixture
def talkative(study, server, monkeypatch):
    people = study.paths.evaluation("human") / "generations.jsonl"
    rows = [json.loads(line) for line in people.read_text().splitlines()]
    lines = [
        json.dumps(row | {"reply": f"human {row['sample']} {row['post'].split()[-1]}"})
        for row in rows
    ]
    people.write_text("\n".join(lines) + "\n")
    server.say = grpo_first
    monkeypatch.setattr(judging, "CONTROLS", llm_controls.FEWEST)
    return server


def test_a_language_model_is_asked_only_where_it_passed(study, talkative, tmp_path, capsys):
    found = judging.llm_comparison(with_llm(study, talkative), tmp_path)
    said = capsys.readouterr().out
    calls = len(talkative.seen)
    promised = int(said.split("at most ")[1].split()[0])
    assert calls <= promised and found["controls"]["criterion"].unique().tolist() == [
        "engaging",
        "on_topic",
    ]
    runs = found["runs"].set_index(["criterion", "method", "seed"])
    assert (
        runs.loc[("engaging", "grpo", 42), "raw"] == 1
        and runs.loc[("engaging", "grpo", 42), "consistent"] == 1
    )
    other = runs.loc[("engaging", "hybrid", 42)]
    assert (other["raw"], other["consistent"], other["first"]) == (0.5, 0, 1) and other["n"] == 6
    refused = runs.loc["on_topic"]
    assert (
        refused["raw"].isna().all()
        and refused["reason"].str.startswith("judge refused (same: ").all()
    )
    asked = [body["messages"][-1]["content"] for body in talkative.seen]
    assert any("grpo" in text for text in asked)
    assert not any(
        "grpo" in text for text in asked if "takes up" in text
    )  # once refused, not asked
    assert set(found["methods"]["criterion"]) == {"engaging"}
    replay = judging.llm_comparison(with_llm(study, talkative, cache="replay"), tmp_path)
    assert len(talkative.seen) == calls and replay["runs"].to_csv() == found["runs"].to_csv()
    assert (
        replay["controls"].to_csv() == found["controls"].to_csv()
        and replay["methods"].to_csv() == found["methods"].to_csv()
    )


def test_no_question_is_asked_beyond_the_budget_or_without_being_wanted(
    study, talkative, tmp_path, capsys
):
    with pytest.raises(UserError, match="exceed max_calls 10 or max_cost"):
        judging.llm_comparison(with_llm(study, talkative, max_calls=10), tmp_path)
    with pytest.raises(UserError, match="max_cost 0.001"):
        judging.llm_comparison(with_llm(study, talkative, max_cost=0.001, price_in=10.0), tmp_path)
    capsys.readouterr()
    assert (
        judging.llm_comparison(study, tmp_path) == {}
        and capsys.readouterr().out.strip() == judging.OFF
    )
    assert not talkative.seen
