"""Matched gains against loops and planted causes; the reward's parts against the reward itself with weights at 0."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import reply_rows
import reward_rows
import statsmodels.formula.api as smf
from study_fixture import small_config, write_study

from polylib.claims import gains, matched, results, reward_parts, stats
from polylib.config import UserError
from polylib.evaluation import components
from polylib.rewards import CombinedReward, HeuristicReward


def replies(gain: float = 0.0, longer: float = 6.0, slope: float = 0.5, seeds=(1, 2, 3), seed: int = 0) -> pd.DataFrame:
    """40 posts, 6 replies a cell: value = gain of grpo + slope * log length (of relevance: 3 times) + post + noise."""
    rng, rows = np.random.default_rng(seed), []
    for method, s, p, _ in itertools.product(("sft", "grpo"), seeds, range(40), range(6)):
        trained = method == "grpo"
        length = np.round(np.exp(rng.normal(2.5, 0.4)) + longer * trained)
        relevance = rng.normal(0.3, 0.1) + 0.01 * longer * trained
        value = gain * trained + slope * (np.log1p(length) + 3 * relevance) + p / 40 + 0.1 * rng.normal()
        rows.append((method, s, f"p{p}", length, relevance, value))
    return pd.DataFrame(rows, columns=["method", "seed", "prompt_id", "length", "relevance", "value"])


# ---- equal relevance ---------------------------------------------------------------------------------------


def test_relevance_control_leaves_what_relevance_did_not_bring():
    table = replies(gain=0.1, longer=5.0)
    table["value"] -= 0.5 * np.log1p(table["length"])  # relevance alone is paid for
    row = gains.relevance_controlled_gain(table, "grpo").iloc[0]
    assert row["raw"] == pytest.approx(0.1 + 0.5 * 3 * 0.05, abs=0.02)
    assert row["controlled_low"] < 0.1 < row["controlled_high"] < row["raw"]
    assert row["relevance"] == pytest.approx(0.05, abs=0.01) and row["overlap"] > 0.7 and row["reason"] == ""
    model = smf.ols("value ~ relevance + C(prompt_id) + C(method + seed.astype(str))", table[::7]).fit()
    assert gains._slope(table[::7].assign(log=table["relevance"], cell=table["method"] + table["seed"].astype(str)))[
        0] == pytest.approx(model.params["relevance"], abs=1e-8)
    nothing = gains.relevance_controlled_gain(table.assign(value=table["value"] - 0.1 * table["method"].eq("grpo")),
                                              "grpo").iloc[0]
    assert nothing["controlled_low"] < 0 < nothing["controlled_high"] and nothing["raw_low"] > 0
    far = gains.relevance_controlled_gain(replies(longer=60.0), "grpo").iloc[0]
    assert "relevances hardly overlap" in far["reason"]


# ---- inside bins -------------------------------------------------------------------------------------------


def test_a_gain_of_length_alone_is_none_inside_bins():
    row = matched.matched_gain(replies(gain=0.0, longer=4.0, slope=0.5).assign(relevance=0.0), "grpo", bins=20)
    assert row["raw_low"] > 0.1
    alone = replies(gain=0.0, longer=4.0)
    alone["value"] -= 1.5 * alone["relevance"]  # length alone is paid for
    row = matched.matched_gain(alone, "grpo", bins=20)
    assert row["raw_low"] > 0.08 and row["matched_low"] < 0 < row["matched_high"] and row["reason"] == ""
    assert 0.6 < row["covered"] < 0.95
    better = alone.assign(value=alone["value"] + 0.2 * alone["method"].eq("grpo"))
    planted = matched.matched_gain(better, "grpo", bins=20)
    assert planted["matched"] == pytest.approx(row["matched"] + 0.2, abs=0.01) and planted["matched_low"] > 0.15


def test_relevance_can_be_matched_too():
    table = replies(gain=0.1, longer=3.0)
    table["value"] -= 0.5 * np.log1p(table["length"])
    row = matched.matched_gain(table, "grpo", by="relevance", bins=15)
    assert row["matched_low"] < 0.1 < row["matched_high"] < row["raw_high"] and row["matched"] < row["raw"] - 0.02


def test_matched_gain_is_the_loop_over_runs_and_bins():
    table = replies(gain=0.3, longer=2.0, seeds=(1, 2), seed=3)[::3].reset_index(drop=True)  # unbalanced
    post = table.groupby(["prompt_id", "method"])["value"].mean().groupby("prompt_id").mean()
    table["y"] = table["value"] - table["prompt_id"].map(post)
    edges = np.unique(np.quantile(table["length"], np.linspace(0, 1, 5)))
    per_run = []
    for seed in (1, 2):
        total, weight = 0.0, 0.0
        for k, (low, high) in enumerate(zip(edges, edges[1:])):
            last = k == len(edges) - 2
            inside = table[(table["length"] >= low) & ((table["length"] <= high) if last else (table["length"] < high))]
            cells = [inside[(inside["seed"] == seed) & (inside["method"] == m)]["y"] for m in ("grpo", "sft")]
            n = [((table["seed"] == seed) & (table["method"] == m)).sum() for m in ("grpo", "sft")]
            w = min(len(c) / size for c, size in zip(cells, n))
            total, weight = total + w * (cells[0].mean() - cells[1].mean()), weight + w
        per_run.append((total / weight, weight))
    row = matched.matched_gain(table, "grpo", bins=4)
    assert row["matched"] == pytest.approx(np.mean([g for g, _ in per_run]))
    assert row["covered"] == pytest.approx(np.mean([w for _, w in per_run]))
    bins = matched.inside_bins(table, "grpo", bins=4)
    assert len(bins) == 4 and (bins["low"] < bins["high"]).all()
    assert bins["weight"].sum() == pytest.approx(row["covered"])
    first = [table[(table["seed"] == s) & (table["length"] < edges[1])].groupby("method")["y"].mean() for s in (1, 2)]
    assert bins["gain"][0] == pytest.approx(np.mean([f["grpo"] - f["sft"] for f in first]))


def test_what_cannot_be_matched_has_a_reason():
    far = matched.matched_gain(replies(longer=900.0), "grpo")
    assert np.isnan(far["matched"]) and far["reason"] == matched.NOTHING and np.isfinite(far["raw"])
    bins = matched.inside_bins(replies(longer=900.0), "grpo")
    assert bins["gain"].isna().all() and bins["reason"].str.contains("no reply").all()
    some = matched.matched_gain(replies(longer=14.0), "grpo")
    assert np.isfinite(some["matched"]) and "no counterpart of like length" in some["reason"]
    one = matched.matched_gain(replies(seeds=(1,)), "grpo")
    assert one["reason"] == "over prompts only: one run" and one["matched_low"] < one["matched_high"]
    level = matched.matched_gain(replies(gain=0.2).assign(length=9), "grpo")
    assert level["matched"] == pytest.approx(level["raw"]) and level["covered"] == pytest.approx(1)
    with pytest.raises(ValueError, match="has seeds"):
        matched.matched_gain(replies().query("method == 'sft' or seed < 3"), "grpo")


# ---- parts of the reward -----------------------------------------------------------------------------------


class Questions:
    """A learned score that counts question marks."""

    name = "learned"

    def __call__(self, posts, replies):
        return np.array([reply.count("?") for reply in replies], dtype=float)

    def components(self, posts, replies):
        return pd.DataFrame({"learned": self(posts, replies), "learned_sd": 0.0})


@pytest.fixture(scope="module")
def combined():
    rows = reward_rows.threads(30)
    rules = HeuristicReward(reward_rows.BagOfWords(), reward_rows.WEIGHTS).fit(rows)
    return CombinedReward(Questions(), rules).fit(rows, 0.3, seed=0), rows


def rated(rows: pd.DataFrame, reward, extra: str = "", n: int = 4) -> pd.DataFrame:
    part = rows.groupby("tweet_id").head(n)
    said = pd.DataFrame({"post_id": part["tweet_id"], "post": part["tweet"], "temperature": 0.7,
                         "reply": part["reply"] + extra})
    return said.assign(reward=reward(list(said["post"]), list(said["reply"])))


def test_parts_add_up_and_without_is_the_reward_with_that_weight_at_zero(combined):
    reward, rows = combined
    posts, texts = list(rows["tweet"]), list(rows["reply"])
    parts = components.contributions(reward, posts, texts)
    own = [name for name in parts if not name.startswith("without_")]
    assert own == ["learned", *(f"heuristic_{name}" for name in reward_rows.WEIGHTS), "floor"]
    assert np.ptp(parts[own].sum(axis=1) - reward(posts, texts)) < 1e-9
    assert (parts["floor"] < -0.1).any() and (parts["floor"] == 0).any()
    for name, others in (("learned", {"learned": 0.0}), ("heuristic", {"heuristic": 0.0})):
        again = CombinedReward(reward.learned, reward.heuristic)
        again.weights, again.floor = reward.weights | others, reward.floor
        np.testing.assert_allclose(parts[f"without_{name}"], again(posts, texts), atol=1e-9)
    again = CombinedReward(reward.learned, reward.heuristic)
    np.testing.assert_allclose(parts["without_floor"], again(posts, texts), atol=1e-9)
    alone = components.contributions(reward.heuristic, posts, texts)
    np.testing.assert_allclose(alone.sum(axis=1), reward.heuristic(posts, texts), atol=1e-12)
    assert list(components.contributions(Questions(), posts, texts)) == ["learned"]


def test_a_reward_that_is_not_its_parts_is_refused(combined):
    reward, rows = combined
    other = CombinedReward(reward.learned, reward.heuristic, 0.9, 0.1)
    other.floor = reward.floor
    other.weights = type("Changing", (dict,), {"items": lambda self: {"learned": 0.5, "heuristic": 0.5}.items()})(
        other.weights)
    with pytest.raises(ValueError, match="miss it"):
        components.measure(other, rated(rows, other))


def test_shares_find_the_part_that_was_trained(combined, tmp_path):
    reward, rows = combined
    rng, tables = np.random.default_rng(0), []
    for method, seed in itertools.product(("sft", "grpo"), (1, 2, 3)):
        some = rated(rows, reward).sample(frac=0.9, random_state=seed)
        some = some[some["post_id"].isin(rows["tweet_id"].unique()[:25])]
        if method == "grpo":  # more questions, nothing else
            some["reply"] = [r + "?" * int(rng.integers(1, 3)) for r in some["reply"]]
            some["reward"] = reward(list(some["post"]), list(some["reply"]))
        tables.append(components.measure(reward, some).assign(method=method, seed=seed))
    table = pd.concat(tables, ignore_index=True)
    found = reward_parts.shares(table, "grpo").set_index("component")
    assert list(found.index[:3]) == ["reward", "learned", "heuristic"]
    assert found.loc["learned", "share"] > 0.9 and found.loc["reward", "share"] == 1
    parts = [name for name in found.index if name not in ("reward", "heuristic")]
    assert found.loc[parts, "share"].sum() == pytest.approx(1)
    rules = [name for name in parts if name.startswith("heuristic_")]
    assert found.loc[rules, "gain"].sum() == pytest.approx(found.loc["heuristic", "gain"])
    assert found.loc["learned", "gain_without"] < 0.2 * found.loc["reward", "gain"]
    mine = table.groupby(["method", "seed", "prompt_id"])["reward"].mean()
    d = (mine["grpo"] - mine["sft"]).unstack().to_numpy()
    assert found.loc["reward", "gain_low"] == pytest.approx(stats.interval(d)[1].low)
    same = reward_parts.shares(table.assign(method=np.where(table["seed"] == 2, "grpo", "sft"), seed=1).query(
        "seed == 1").drop_duplicates(["method", "prompt_id"]), "grpo")
    assert same["share"].isna().all() and set(same["reason"]) == {reward_parts.UNCLEAR}


# ---- whole studies -----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    cfg = small_config(seeds=(42, 123))
    paths = write_study(tmp_path, cfg)
    reply_rows.write(paths, cfg)
    return results.load(paths, cfg)


def test_gains_of_a_study(study):
    table = gains.relevance_controlled(study)
    assert len(table) == 4 * 2 and list(table.columns[:3]) == ["method", "score", "raw"] and "relevance" in table
    assert gains.length_controlled(study)["raw"].tolist() == pytest.approx(table["raw"].tolist())
    for by in ("length", "relevance"):
        inside = matched.of_study(study, by)
        assert len(inside) == 4 * 2 and set(inside["by"]) == {by} and inside["covered"].between(0, 1).all()


def test_components_of_a_study(study):
    with pytest.raises(UserError, match="components.csv missing: grpo"):
        reward_parts.decompose(study)
    posts = study.people.index
    for method, seed in {cell[:2] for cell in study.frames}:
        learned = 0.5 if method == "grpo" else 0.1
        rows = [{"prompt_id": p, "temperature": t, "reward": learned + 0.01 * i + (seed or 0) / 1e4, "learned": learned,
                 "floor": 0.0, "without_floor": learned} for i, p in enumerate(posts)
                for t in ([np.nan] if method == "human" else [0.7, 1.0])]
        components.save(pd.DataFrame(rows), study.paths.evaluation(method, seed))
    table = reward_parts.decompose(study)
    assert list(table["method"].unique()) == ["lambda0", "polychromic", "grpo", "hybrid"]
    grpo = table[table["method"].eq("grpo")].set_index("component")
    assert grpo.loc["learned", "share"] == pytest.approx(1) and grpo.loc["reward", "gain"] == pytest.approx(0.4)
    file = study.paths.evaluation("grpo", 42) / components.FILE
    file.write_text(file.read_text().replace("learned", "polite"))
    with pytest.raises(UserError, match="another reward"):
        reward_parts.read(study)
