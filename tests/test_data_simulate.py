"""The simulator does what its docstring declares: planted coefficients come back, secrets stay in."""

from __future__ import annotations

import dataclasses
import io
import random

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import ROOT

from polylib.data import read, simulate
from polylib.run import UserError

CORPUS = ROOT / "polylib" / "data" / "corpus.jsonl"
SIM = simulate.Simulator()


@pytest.fixture(scope="module")
def drawn():
    return simulate.simulate(CORPUS, 11)


def within(values: pd.Series, post: pd.Series) -> pd.Series:
    return values - values.groupby(post).transform("mean")


def test_schema_is_full_and_holds_no_secret(drawn):
    rows, truth = drawn
    assert list(rows.columns) == list(read.COLUMNS) and not rows.isna().any().any()
    assert len(rows) == 3671 and rows["tweet_id"].nunique() == 600
    assert list(truth.columns) == ["reply_id", "style", "latent"]
    assert rows["reply_id"].tolist() == truth["reply_id"].tolist()
    assert set(rows["source"]) == {"simulated"}
    delay = pd.to_datetime(rows["reply_created_at"]) - pd.to_datetime(rows["tweet_created_at"])
    assert (delay.dt.total_seconds() == rows["reply_time_diff_seconds"]).all()
    assert (
        pd.to_datetime(rows["collected_at"]) > pd.to_datetime(rows["reply_created_at"])
    ).mean() > 0.99
    assert not (rows["reply_author"] == rows["tweet_author"]).any()


def test_coefficients_come_back(drawn):
    """Poisson pseudo-likelihood with a dummy for each post is consistent for the log-mean's slopes whatever
    the over-dispersion (Gourieroux, Monfort & Trognon 1984)."""
    rows, truth = drawn
    posts = rows["tweet_id"].isin(rows["tweet_id"].unique()[:250])
    rows, truth = rows[posts], truth[posts]
    x = pd.get_dummies(rows["tweet_id"], dtype=float)
    x.insert(0, "delay", np.log(rows["reply_time_diff_seconds"]))
    x.insert(0, "followers", np.log(rows["reply_author_followers"]))
    x.insert(0, "latent", truth["latent"])
    fit = sm.GLM(rows["reply_likes"], x, family=sm.families.Poisson()).fit()
    planted = {
        "latent": SIM.quality_slope,
        "followers": SIM.followers_slope,
        "delay": SIM.delay_slope,
    }
    for name, value in planted.items():
        assert abs(fit.params[name] - value) < 0.12, (name, fit.params[name])
    assert fit.pearson_chi2 / fit.df_resid > 3  # far from Poisson, whose value is 1


def test_count_variance_is_the_declared_one():
    rng = np.random.default_rng(0)
    counts = simulate._counts(np.full(200_000, 20.0), 3.0, rng)
    assert abs(counts.mean() - 20) < 0.15
    assert abs(counts.var() / (20 + 20**2 / 3) - 1) < 0.03


def test_quality_has_style_effects_and_an_interaction(drawn):
    _, truth = drawn
    means = truth.groupby("style")["latent"].mean()
    for style, effect in SIM.style.items():
        assert abs(means[style] - effect) < 0.15
    assert SIM.noise_sd < truth.groupby("style")["latent"].std().mean() < 0.7


def test_confounders_lean_on_style_and_move_likes(drawn):
    rows, truth = drawn
    followers = np.log(rows["reply_author_followers"]).groupby(truth["style"]).mean()
    delay = np.log(rows["reply_time_diff_seconds"]).groupby(truth["style"]).mean()
    assert followers["promo"] - followers["generic"] > 0.5
    assert delay["story"] - delay["generic"] > 0.4
    likes = within(np.log1p(rows["reply_likes"]), rows["tweet_id"])
    assert (
        np.corrcoef(likes, within(np.log(rows["reply_author_followers"]), rows["tweet_id"]))[0, 1]
        > 0.15
    )
    assert np.corrcoef(likes, within(truth["latent"], rows["tweet_id"]))[0, 1] > 0.5
    assert 5 <= rows["reply_likes"].median() <= 20
    popularity = np.log1p(rows.groupby("tweet_id")["reply_likes"].mean())
    assert (
        np.corrcoef(popularity, np.log1p(rows.groupby("tweet_id")["tweet_likes"].first()))[0, 1]
        > 0.4
    )


def test_same_seed_same_bytes_in_any_order(drawn, tmp_path):
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(random.Random(0).sample(lines, len(lines))), encoding="utf-8")
    again = simulate.simulate(shuffled, 11)
    for first, second in zip(drawn, again, strict=True):
        one, two = io.BytesIO(), io.BytesIO()
        first.to_parquet(one)
        second.to_parquet(two)
        assert one.getvalue() == two.getvalue()
    other_rows, other_truth = simulate.simulate(CORPUS, 12)
    assert (other_rows["reply_likes"] != drawn[0]["reply_likes"]).mean() > 0.5
    assert not np.allclose(other_truth["latent"], drawn[1]["latent"])


def test_parameters_are_the_model(drawn):
    flat = dataclasses.replace(SIM, quality_slope=0.0)
    rows, truth = simulate.simulate(CORPUS, 11, flat)
    assert np.array_equal(truth["latent"], drawn[1]["latent"])
    likes = within(np.log1p(rows["reply_likes"]), rows["tweet_id"])
    assert abs(np.corrcoef(likes, within(truth["latent"], rows["tweet_id"]))[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2: not JSON"),
        ('{"tweet_id": "x", "tweet": "a", "replies": [{"reply_id": "r"}]}', "row 2: not a post"),
        (
            '{"tweet_id": "x", "topic": "t", "tweet": "a", "replies": '
            '[{"reply_id": "r", "style": "rude", "reply": "b"}]}',
            "unknown style 'rude'",
        ),
    ],
)
def test_malformed_corpus_is_one_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(
        CORPUS.read_text(encoding="utf-8").splitlines()[0] + "\n" + line, encoding="utf-8"
    )
    with pytest.raises(UserError, match=message):
        simulate.simulate(path, 1)
