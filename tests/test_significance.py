"""Registration, significance table, decision guide and runs needed, on invented studies with planted answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from study_fixture import small_config, write_study

from polylib import stats
from polylib.analysis import (
    decision,
    effects,
    equivalence,
    preregistration,
    results,
    significance,
    variance,
)
from polylib.figures import significance_table
from polylib.run import Paths, UserError

KEY = ["judge_mean"]
FILE = ROOT / "params" / "preregistration" / "laptop.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    cfg = small_config()
    return results.load(write_study(tmp_path_factory.mktemp("study"), cfg), cfg)


@pytest.fixture
def register(study, tmp_path):
    """register(change) -> the committed registration, fitted to the invented study and then changed."""

    def make(change=lambda values: None):
        values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
        values |= {
            "prompts": 24,
            "temperatures": [0.85, 1.0],
            "settings": preregistration.settings_hash(study.cfg),
        }
        change(values)
        folder = tmp_path / "params" / "preregistration"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "laptop.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return preregistration.load(Paths("laptop", tmp_path))

    return make


@pytest.fixture(scope="module")
def table(study):
    return significance.table(study, preregistration.load(Paths("laptop", ROOT)))


def planted(study, method, metric, gain, noise=0.01, seed=0):
    """The study with `method` at SFT's values + gain, the same in every run up to `noise`; all others at SFT's."""
    rng, t = np.random.default_rng(seed), study.cfg.sampling.temperature
    frames = dict(study.frames)
    for name, s, temperature in frames:
        if name in study.cfg.methods and temperature == t and name != "sft":
            sft = study.frames["sft", s, t][metric]
            value = sft + (gain if name == method else 0.0) + noise * rng.standard_normal(len(sft))
            frames[name, s, t] = frames[name, s, t].assign(**{metric: value})
    return dataclasses.replace(study, frames=frames)


# ---- registration ----------------------------------------------------------------------------------------------------


def test_the_committed_registration_loads_and_names_the_code_s_tests():
    found = preregistration.load(Paths("laptop", ROOT))
    assert found.date == "2026-11-29" and found.tests == preregistration.TESTS
    assert found.multiplicity == preregistration.MULTIPLICITY
    assert [(q.method, q.kind, q.metric) for q in found.primary.values()] == [
        ("polychromic", "matched", "judge_mean"),
        ("grpo", "difference", "judge_mean"),
        ("hybrid", "matched", "judge_mean"),
    ]
    assert preregistration.load(Paths("smoke", ROOT)) is None


def test_a_study_run_as_registered_has_no_deviation(study, register):
    assert preregistration.deviations(study, register()).empty


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("seeds", [42, 123, 456, 7], "seeds"),
        ("methods", ["sft", "polychromic", "grpo", "hybrid"], "methods"),
        ("prompts", 36, "posts"),
        ("samples", 4, "replies a post"),
        ("temperature", 1.0, "sampling temperature"),
        ("temperatures", [0.5], "temperatures of the control"),
        ("tests", {"difference": "Welch"}, "test: difference"),
        ("multiplicity", {"primary": "none"}, "multiplicity: primary"),
        ("settings", {"grpo": "0"}, "settings: grpo"),
    ],
)
def test_every_departure_is_stated(study, register, key, value, what):
    found = preregistration.deviations(study, register(lambda values: values.update({key: value})))
    assert what in set(found["what"]) and found.notna().all(axis=None)


def test_missing_metrics_and_dropped_posts_are_departures(study, register):
    frames = {key: frame.drop(columns="diversity_tfidf") for key, frame in study.frames.items()}
    gone = preregistration.deviations(dataclasses.replace(study, frames=frames), register())
    assert list(gone["what"]) == ["metric diversity_tfidf"]
    key = ("grpo", 42, 0.7)
    holes = study.frames[key].assign(
        judge_mean=study.frames[key]["judge_mean"].where(np.arange(24) >= 5)
    )
    found = preregistration.deviations(
        dataclasses.replace(study, frames=study.frames | {key: holes}), register()
    )
    assert (
        list(found["what"]) == ["posts dropped: better, judge_mean"]
        and found["found"].iloc[0] == "21%"
    )
    assert "not registered" in preregistration.deviations(study, None)["found"].iloc[0]


def test_changed_settings_change_their_section_alone(study):
    cfg = study.cfg
    other = dataclasses.replace(cfg, grpo=dataclasses.replace(cfg.grpo, kappa=0.2))
    a, b = preregistration.settings_hash(cfg), preregistration.settings_hash(other)
    assert {name for name in a if a[name] != b[name]} == {"grpo"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("alpha"), "alpha: field required"),
        (lambda v: v.update(colour=1), "colour: unexpected keyword"),
        (lambda v: v.update(study="gpu"), "named after laptop"),
        (lambda v: v["primary"]["better"].pop("metric"), "primary.better.metric: field required"),
        (lambda v: v["primary"]["better"].update(method="ppo"), "better.method ppo"),
        (lambda v: v["primary"]["better"].update(kind="matched"), "better needs `equal`"),
        (lambda v: v.update(control="grpo"), "control: input should be 'sft'"),
        (
            lambda v: v["equivalence"]["quality_kept"].update(margin=0.0),
            "quality_kept.margin: input should be greater than 0",
        ),
        (lambda v: v.update(tests="t"), "tests: input should be a valid dictionary"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(register, change, message):
    with pytest.raises(UserError, match=message) as caught:
        register(change)
    assert "\n" not in str(caught.value)


# ---- significance table ----------------------------------------------------------------------------------------------


def test_registered_questions_come_first_and_families_are_adjusted_apart(study, table):
    assert list(table["family"][:4]) == ["primary"] * 3 + ["equivalence"]
    primary, rest = (table[table["family"].eq(name)] for name in ("primary", "exploratory"))
    assert primary["p_adjusted"].to_numpy() == pytest.approx(
        stats.adjust(primary["method_p"], "holm"), nan_ok=True
    )
    assert rest["p_adjusted"].to_numpy() == pytest.approx(
        stats.adjust(rest["method_p"], "fdr_bh"), nan_ok=True
    )
    assert set(primary["adjustment"]) == {"Holm"} and set(rest["adjustment"]) == {
        "Benjamini-Hochberg"
    }
    keys = ["kind", "metric", "equal", "method"]
    assert not table.duplicated(
        keys
    ).any()  # a registered comparison is not tested again among the rest
    compared = effects.compared(study)
    assert set(compared) <= set(table["metric"])
    assert len(table) == len(compared) * 4 + 8 + 2  # wording diversity at equal ..., and "kept"
    assert (table.loc[table["effect"].isna(), "reason"] != "").all()
    assert set(table["signs_floor"].dropna()) == {0.25} and set(table["ranks_floor"].dropna()) == {
        0.1
    }


def test_its_rows_are_the_comparisons(study, table):
    row = table[table["question"].eq("better")].iloc[0]
    a, b = effects.pair(study.cells("judge_mean"), "grpo")
    assert (row["effect"], row["method_low"], row["checkpoints_p"]) == pytest.approx(
        ((a - b).mean(), stats.method_claim(a - b, (a, b)).low, stats.checkpoints_claim(a - b).p)
    )
    row = table[table["question"].eq("both")].iloc[0]
    m = effects.matched(study, "judge_mean", "diversity", "hybrid")
    assert (row["effect"], row["method_p"]) == pytest.approx((m["effect"], m["method_p"]))
    row = table[table["kind"].eq("equivalence")].iloc[0]
    a, b = effects.pair(study.cells("judge_mean"), "polychromic")
    assert (
        row["method_p"] == pytest.approx(equivalence.method(a, b, 0.12).p) and row["margin"] == 0.12
    )


def test_verdicts_follow_planted_effects(study, register):
    better = significance.table(
        planted(study, "grpo", "judge_mean", 0.3), register(), KEY
    ).set_index("question")
    assert (
        better.loc["better", "verdict"] == "above"
        and better.loc["quality_kept", "verdict"] == "equivalent"
    )
    worse = significance.table(
        planted(study, "grpo", "judge_mean", -0.3), register(), KEY
    ).set_index("question")
    assert worse.loc["better", "verdict"] == "below"
    lost = significance.table(
        planted(study, "polychromic", "judge_mean", -0.3), register(), KEY
    ).set_index("question")
    assert lost.loc["quality_kept", "verdict"] == "not established"


def test_saved_forms_hold_floors_and_no_nan(study, table, tmp_path):
    significance_table.save(table, study, tmp_path)
    tex, csv = (
        (tmp_path / f"table_significance.{e}").read_text(encoding="utf-8") for e in ("tex", "csv")
    )
    assert "nan" not in tex.lower() and "Neither can reach .05 here" in tex and "(0.25)" in tex
    assert (
        tex.count(r"\\") == 2 + 4 - 1 and len(csv.splitlines()) == len(table) + 1
    )  # .tex: registered families alone
    first = csv
    significance_table.save(table, study, tmp_path)
    assert (tmp_path / "table_significance.csv").read_text(encoding="utf-8") == first
    free = significance.table(study, None, KEY)
    assert set(free["family"]) == {"exploratory"}


def replies_of(study):
    """Replies as `replies.load` gives them: three a post, methods apart by .2."""
    rng, rows = np.random.default_rng(3), []
    for method, seed, t in study.frames:
        if t == study.cfg.sampling.temperature:
            for post in study.people.index:
                rows += [
                    {
                        "method": method,
                        "seed": seed,
                        "post_id": post,
                        "sample": i,
                        "judge": value,
                        "reward": value,
                        "relevance": value,
                    }
                    for i, value in enumerate(rng.normal(size=3) + 0.5 * (method == "grpo"))
                ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_the_test_as_asked_pools_all_values(study):
    frame = replies_of(study)
    asked = significance.as_asked(study, frame).set_index(["metric", "method", "sample"])
    row = asked.loc[("judge_mean", "grpo", "replies")]
    mine, other = (frame.loc[frame["method"].eq(m), "judge"].to_numpy() for m in ("grpo", "sft"))
    assert row["n"] == 2 * 3 * 24 * 3
    assert row["delta"] == pytest.approx(np.sign(mine[:, None] - other[None]).mean())
    means = asked.loc[("judge_mean", "grpo", "means of posts and runs")]
    assert (
        means["n"] == 2 * 3 * 24
        and means["p"] < 0.05
        and ("diversity", "grpo", "replies") not in asked.index
    )


# ---- decision guide --------------------------------------------------------------------------------------------------


def test_a_method_that_wins_is_chosen_with_its_number(study):
    row = (
        decision.guide(planted(study, "grpo", "judge_mean", 0.3))
        .set_index("metric")
        .query("equal == ''")
    )
    assert row.loc["judge_mean", "choose"] == "grpo" and "+0.300" in row.loc[
        "judge_mean", "because"
    ].replace("0.299", "0.300")
    assert row.loc["judge_mean", "low"] > 0 and row.loc["judge_mean", "p_holm"] < 0.05
    own, sft = (
        study.costs.loc[study.costs["stage"].eq(name), "seconds"].mean() / 60
        for name in ("grpo", "sft")
    )
    assert row.loc["judge_mean", "minutes"] == pytest.approx(own + sft)  # GRPO starts from SFT


def test_no_winner_and_losers_mean_nothing_established(study):
    for gain in (0.0, -0.3):
        found = decision.guide(planted(study, "grpo", "judge_mean", gain, noise=0.05)).query(
            "equal == ''"
        )
        row = found.set_index("metric").loc["judge_mean"]
        assert row["choose"] == "sft" and row["because"].startswith(decision.NOTHING)


def test_a_hacked_method_is_out_whatever_its_numbers(study):
    verdicts = pd.DataFrame(
        {"method": ["grpo", "grpo", "hybrid"], "label": ["shifted", "hacked", "suspicious"]}
    )
    out = decision.hacked(verdicts)
    row = (
        decision.guide(planted(study, "grpo", "judge_mean", 0.3), out)
        .set_index("metric")
        .query("equal == ''")
    )
    assert out == ["grpo"] and row.loc["judge_mean", "choose"] == "sft"
    assert row["excluded"].eq("grpo (hacked)").all() and not row["choose"].eq("grpo").any()


def test_fewer_is_better_where_it_is_and_equals_are_not_ranked(study):
    less = decision.guide(planted(study, "hybrid", "truncated", -0.05, noise=0.001)).set_index(
        "metric"
    )
    assert less.loc["truncated", "choose"] == "hybrid" and less.loc["truncated", "gain"] > 0
    both = planted(study, "grpo", "relevance", 0.2)
    frames = {
        key: frame.assign(
            relevance=both.frames["grpo", *key[1:]]["relevance"] + 1e-4 * np.arange(24)
        )
        if key[0] == "hybrid"
        else frame
        for key, frame in both.frames.items()
    }
    row = (
        decision.guide(dataclasses.replace(both, frames=frames))
        .set_index("metric")
        .loc["relevance"]
    )
    assert row["choose"] == "hybrid" and "not separated from GRPO" in row["versus"]
    assert "minutes a run" in row["versus"]


def test_one_run_a_method_establishes_nothing(tmp_path):
    cfg = small_config(seeds=(42,))
    one = results.load(write_study(tmp_path, cfg), cfg)
    found = significance.table(one, preregistration.load(Paths("laptop", ROOT)), KEY)
    assert found["verdict"].eq("not established").all() and found["method_p"].isna().all()
    assert found["reason"].ne("").all() and found["checkpoints_p"].notna().any()
    assert "nan" not in significance_table.shown(found).to_string().lower()
    guide = decision.guide(one)
    assert (
        guide["choose"].eq("sft").all() and guide["because"].str.startswith(decision.NOTHING).all()
    )
    assert {"seeds"} <= set(
        preregistration.deviations(one, preregistration.load(Paths("laptop", ROOT)))["what"]
    )


# ---- runs needed -----------------------------------------------------------------------------------------------------


def test_a_sentence_says_how_many_runs_find_an_effect(study):
    said = variance.sentence(study, "judge_mean", (0.0001, 0.2))
    assert "0.0001 with over 50, 0.2 with" in said and "24 posts" in said
    for cfg in (
        dataclasses.replace(study.cfg, seeds=(42,)),
        dataclasses.replace(study.cfg, methods=("sft",)),
    ):
        with pytest.raises(UserError, match="two runs of two methods"):
            variance.sentence(dataclasses.replace(study, cfg=cfg), "judge_mean")


def test_registered_margin_is_people_s_own_scatter():
    """From the committed people row: a Gaussian's best of two exceeds its mean by sd / sqrt(pi)."""
    file = ROOT / "results" / "laptop" / "evaluation" / "human" / "per_prompt.csv"
    if not file.is_file():
        pytest.skip("no committed laptop study")
    people = pd.read_csv(file)
    sd, half = np.sqrt(np.pi) * (people["max@2"] - people["max@1"]), people["n_samples"] // 2
    noise = np.sqrt((sd**2 * 2 / half).sum()) / len(people)
    margin = preregistration.load(Paths("laptop", ROOT)).equivalence["quality_kept"].margin
    assert margin == pytest.approx(noise, abs=0.03)
