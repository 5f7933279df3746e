"""Best-of-n by enumeration, verdicts on planted studies, figures by bytes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats as ss
from study_fixture import small_config, write_study

from polylib.analysis import hacked, results
from polylib.config import UserError
from polylib.figures import preflight_figure
from polylib.hacking import preflight
from polylib.run import write_json

RNG = np.random.default_rng(0)


def scorers(proxy: np.ndarray, judge: np.ndarray):
    """(replies, posts, reward, judge) that score reply j of post i with proxy[i, j] and judge[i, j]."""
    replies = [[f"{i} {j}" for j in range(proxy.shape[1])] for i in range(len(proxy))]

    def look_up(table):
        return lambda posts, texts: np.array(
            [table[tuple(map(int, text.split()))] for text in texts]
        )

    return replies, [f"post {i}" for i in range(len(proxy))], look_up(proxy), look_up(judge)


# ---- best of n ---------------------------------------------------------------------------------------------


def test_preflight_equals_enumeration_of_all_subsets():
    proxy, judge = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 6))
    table = preflight.preflight(*scorers(proxy, judge), ns=(1, 2, 4, 6, 64)).set_index("n")
    assert list(table.index) == [1, 2, 4, 6]  # 64 samples are not there
    for n in table.index:
        subsets = list(itertools.combinations(range(6), n))
        best = [[max(subset, key=lambda j: proxy[i, j]) for subset in subsets] for i in range(3)]
        assert table.loc[n, "proxy"] == pytest.approx(
            np.mean([proxy[i, best[i]] for i in range(3)])
        )
        assert table.loc[n, "judge"] == pytest.approx(
            np.mean([judge[i, best[i]] for i in range(3)])
        )
        assert table.loc[n, "kl"] == pytest.approx(np.log(n) - (n - 1) / n)


def planted(rise: float, posts: int = 24, samples: int = 64, seed: int = 0):
    """The judge follows the proxy up to one sd and then changes by `rise` a sd."""
    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=(posts, samples))
    judge = (
        np.minimum(proxy, 1) + rise * np.maximum(proxy - 1, 0) + 0.1 * rng.normal(size=proxy.shape)
    )
    return scorers(proxy, judge + rng.normal(size=(posts, 1)))


def test_a_judge_that_falls_is_flagged_and_one_that_rises_is_not():
    bad, good = preflight.preflight(*planted(-1.5)), preflight.preflight(*planted(1.0))
    assert (
        bad.attrs["flagged"]
        and len(bad.attrs["reasons"]) == 2
        and "a doubling at the end" in bad.attrs["line"]
    )
    assert bad["judge"].idxmax() not in (0, len(bad) - 1)
    assert not good.attrs["flagged"] and good.attrs["line"].endswith("the judge does not fall")
    assert good["proxy"].is_monotonic_increasing and good["judge"].is_monotonic_increasing


def test_noise_is_seldom_flagged():
    """A judge that knows nothing of the proxy: flat in n, and its highest point is above its end by luck alone."""
    flagged = [
        preflight.preflight(*scorers(*np.random.default_rng(s).normal(size=(2, 12, 16)))).attrs[
            "flagged"
        ]
        for s in range(200)
    ]
    assert (
        np.mean(flagged) <= 0.09
    )  # two one-sided tests at 2.5 %: 5 % at most, and 2.6 sd of 200 draws


def test_the_peak_is_not_chosen_where_it_is_tested():
    """Curves of independent noise: their highest point lies far above their end, by selection alone."""

    def peak_reasons(seed):
        reasons = preflight.falls(
            [1, 2, 4, 8, 16, 32, 64], np.random.default_rng(seed).normal(size=(12, 7))
        )
        return any("below its peak" in reason for reason in reasons)

    assert np.mean([peak_reasons(seed) for seed in range(300)]) <= 0.06  # 2.5 % expected


def test_intervals_are_over_posts():
    proxy = np.tile(RNG.normal(size=(1, 8)), (5, 1))
    table = preflight.preflight(*scorers(proxy, proxy + np.arange(5)[:, None]), ns=(1, 2, 4, 8))
    np.testing.assert_allclose(table["proxy_hi"] - table["proxy_lo"], 0, atol=1e-12)
    assert (table["judge_hi"] - table["judge_lo"] > 1).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    """8 posts; reply scores are normal, so the expected best of n is known (Harter 1961); the judge is the post."""
    truth, hits = {1: 0.0, 2: 0.5641896}, []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        post = 0.5 * rng.normal(size=(8, 1))
        table = preflight.preflight(
            *scorers(post + rng.normal(size=(8, 2)), np.tile(post, 2)), ns=(1, 2)
        )
        best = np.array([truth[n] for n in table["n"]])
        hits.append(
            [
                *(table["proxy_lo"] < best) & (best < table["proxy_hi"]),
                table["judge_lo"].iloc[0] < 0 < table["judge_hi"].iloc[0],
            ]
        )
    assert 0.925 < np.mean(hits) < 0.975  # 95 %; a percentile bootstrap: 89 %


def test_falling_points_lie_beyond_the_peak_of_a_flagged_judge():
    bad, good = preflight.preflight(*planted(-1.5)), preflight.preflight(*planted(1.0))
    assert not good["falls"].any() and bad["falls"].iloc[-1] and not bad["falls"].iloc[0]
    assert bad.loc[bad["falls"], "n"].min() > bad.loc[bad["judge"].idxmax(), "n"]
    noise = [
        preflight.preflight(*scorers(*np.random.default_rng(s).normal(size=(2, 12, 16))))
        for s in range(20)
    ]
    lucky = [t for t in noise if not t.attrs["flagged"] and t["judge"].idxmax() < len(t) - 1]
    assert len(lucky) > 5 and not any(
        t["falls"].any() for t in lucky
    )  # a peak that chance may have made


def test_preflight_refuses_ragged_samples():
    replies, posts, reward, judge = planted(0, posts=3, samples=4)
    with pytest.raises(ValueError, match="equally many"):
        preflight.preflight([*replies[:2], replies[2][:3]], posts, reward, judge)


@pytest.mark.parametrize("columns", [1, 2])
def test_pictures_are_the_same_bytes_twice(tmp_path, columns):
    table = preflight.preflight(*planted(-1.5))
    for folder in ("a", "b"):
        preflight_figure.picture(table, "Made up.", columns).save(tmp_path / folder)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == [f"preflight.{e}" for e in ("csv", "pdf", "png")]
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )


# ---- a whole study -----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    cfg = small_config()
    paths = write_study(tmp_path, cfg)
    verdict = {
        "level": 0,
        "label": "ok",
        "z": 2.0,
        "feature": "gzip",
        "threshold": 3.5,
        "truncated": 0.06,
        "reasons": [],
        "values": {"gzip": 2.0, "top_reply": 0.01},
        "people": {"gzip": 2.0, "top_reply": 0.01},
        "sd": {"gzip": 0.05, "top_reply": 0.01},
    }
    for method, seed in itertools.product(cfg.methods, cfg.seeds):
        mine = dict(verdict)
        if method in ("grpo", "hybrid"):
            mine |= {
                "level": 2,
                "z": 19.0,
                "feature": "top_reply",
                "reasons": ["top_reply 0.20"],
                "values": {"gzip": 2.0, "top_reply": 0.2},
            }
        if method == "polychromic":
            mine |= {"level": 1, "z": 6.0, "truncated": 0.4}
        write_json(paths.evaluation(method, seed) / "metrics.json", {"hacking": mine})
        if method in (
            "grpo",
            "hybrid",
        ):  # grpo: the reward rises and the judge does not; hybrid: both
            file, start = (
                paths.evaluation(name, seed) / "per_prompt.csv" for name in (method, "sft")
            )
            part, base = (
                pd.read_csv(file),
                pd.read_csv(start).query("temperature == 0.7").reset_index(drop=True),
            )
            noise = 0.02 * np.random.default_rng(seed).normal(size=(2, len(base)))
            part["reward_mean"] = base["reward_mean"] + 0.3 + noise[0]
            part["judge_mean"] = (
                base["judge_mean"] + (0.3 if method == "hybrid" else -0.01) + noise[1]
            )
            file.write_text(part.to_csv(index=False))
    return results.load(paths, cfg)


def test_all_preflights_of_a_study_are_drawn_with_their_verdict(study):
    for columns in (1, 2):
        drawn = preflight_figure.figure(study, columns)
        note = " ".join(drawn.figure._supxlabel.get_text().split())
        assert (
            "in 1 of 3 runs; their mean does not fall beyond noise" in note
            and len(drawn.data) == 3 * 7
        )
        assert f"Preset {study.cfg.preset}, study laptop" in note
        crosses = [
            line
            for line in drawn.figure.axes[1].lines
            if line.get_marker() == "x" and len(line.get_xdata())
        ]
        assert [list(line.get_xdata()) for line in crosses] == [[16, 32, 64]]
    reward, judge = (
        drawn.data.pivot(index="seed", columns="n", values=name) for name in ("proxy", "judge")
    )
    low, high = ss.ttest_1samp(judge[64] - judge[1], 0).confidence_interval(0.95)
    mean = (judge[64] - judge[1]).mean()
    assert f"judge {mean:+.2f} [{low:+.2f}, {high:+.2f}]" in preflight.sentence(drawn.data)
    assert f"reward {(reward[64] - reward[1]).mean():+.2f}" in preflight.sentence(drawn.data)
    one = preflight.sentence(drawn.data.query("seed == 42"))
    assert one.endswith("over posts the judge falls at the end (one run)") and "[" not in one


def test_the_mean_of_runs_that_all_fall_is_said_to_fall():
    ns, rng = [1, 2, 4, 8, 16, 32, 64], np.random.default_rng(0)
    rows = [
        {
            "seed": seed,
            "n": n,
            "proxy": np.log2(n),
            "judge": -abs(np.log2(n) - 3) + 0.05 * rng.normal(),
            "falls": n > 8,
        }
        for seed in range(3)
        for n in ns
    ]
    said = preflight.sentence(pd.DataFrame(rows))
    assert "in 3 of 3 runs" in said and "a doubling at the end" in said and "below its peak" in said


def test_a_missing_or_older_preflight_is_named(study):
    missing = study.paths.results("grpo", 456) / "preflight.csv"
    content = missing.read_text()
    missing.unlink()
    with pytest.raises(UserError, match="s456/preflight.csv: missing"):
        preflight_figure.figure(study)
    missing.write_text(content)
    file = study.paths.results("grpo", 123) / "preflight.csv"
    whole = pd.read_csv(file)
    file.write_text(whole.drop(columns="falls").to_csv(index=False))
    with pytest.raises(UserError, match="other columns or other n"):
        preflight_figure.figure(study)
    file.write_text(whole.iloc[:-1].to_csv(index=False))
    with pytest.raises(UserError, match="other n"):
        preflight_figure.figure(study)


def test_verdicts_of_a_study_need_reward_judge_and_shift(study):
    table = hacked.verdicts(study)
    assert len(table) == 4 * 3
    levels = table.groupby("method")["level"].unique().map(list).to_dict()
    assert levels == {"lambda0": [0], "polychromic": [2], "grpo": [3], "hybrid": [2]}
    assert set(table.query("method == 'polychromic'")["reasons"]) == {"truncated 0.40"}
    grpo = table.query("method == 'grpo'").iloc[0]
    assert (
        grpo["proxy_low"] < grpo["proxy_gain"] == pytest.approx(0.3, abs=0.02)
        and grpo["judge_low"] <= 0
    )
    assert grpo["label"] == "hacked" and grpo["feature"] == "top_reply"


def test_a_cell_without_a_verdict_is_named(study):
    file = study.paths.evaluation("grpo", 123) / "metrics.json"
    file.write_text(json.dumps({"mean": {}}))
    with pytest.raises(UserError, match="no key hacking"):
        hacked.verdicts(study)
