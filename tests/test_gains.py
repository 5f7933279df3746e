"""The reward's parts against the reward itself with weights at 0, and their shares against planted causes."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import reward_rows
from study_fixture import small_config, write_study

from polylib import run, stats
from polylib.analysis import results, reward_parts
from polylib.config import UserError
from polylib.evaluation import components
from polylib.rewards import CombinedReward, HeuristicReward


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
    said = pd.DataFrame(
        {
            "post_id": part["tweet_id"],
            "post": part["tweet"],
            "temperature": 0.7,
            "reply": part["reply"] + extra,
        }
    )
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
    other.weights = type(
        "Changing", (dict,), {"items": lambda self: {"learned": 0.5, "heuristic": 0.5}.items()}
    )(other.weights)
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
    same = reward_parts.shares(
        table.assign(method=np.where(table["seed"] == 2, "grpo", "sft"), seed=1)
        .query("seed == 1")
        .drop_duplicates(["method", "prompt_id"]),
        "grpo",
    )
    assert same["share"].isna().all() and set(same["reason"]) == {reward_parts.UNCLEAR}


# ---- whole studies -----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    cfg = small_config(seeds=(42, 123))
    paths = write_study(tmp_path, cfg)
    return results.load(paths, cfg)


def test_components_of_a_study(study):
    with pytest.raises(UserError, match="components.csv missing: grpo"):
        reward_parts.decompose(study)
    posts = study.people.index
    for method, seed in {cell[:2] for cell in study.frames}:
        learned = 0.5 if method == "grpo" else 0.1
        rows = [
            {
                "prompt_id": p,
                "temperature": t,
                "reward": learned + 0.01 * i + (seed or 0) / 1e4,
                "learned": learned,
                "floor": 0.0,
                "without_floor": learned,
            }
            for i, p in enumerate(posts)
            for t in ([np.nan] if method == "human" else [0.7, 1.0])
        ]
        file = study.paths.evaluation(method, seed) / components.FILE
        run.write_csv(file, pd.DataFrame(rows))
    table = reward_parts.decompose(study)
    assert list(table["method"].unique()) == ["lambda0", "polychromic", "grpo", "hybrid"]
    grpo = table[table["method"].eq("grpo")].set_index("component")
    assert grpo.loc["learned", "share"] == pytest.approx(1) and grpo.loc[
        "reward", "gain"
    ] == pytest.approx(0.4)
    file = study.paths.evaluation("grpo", 42) / components.FILE
    file.write_text(file.read_text().replace("learned", "polite"))
    with pytest.raises(UserError, match="another reward"):
        reward_parts.read(study)
