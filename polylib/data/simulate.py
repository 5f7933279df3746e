"""Simulated engagement for the bundled corpus: a declared generative model, not data about people.

For reply i of style s under post j on topic t (natural logs; every number is a field of `Simulator`):

    quality     q_ij = style[s] + topic_t + interaction_{t,s} + noise_ij                     (the secret)
    followers   log F_ij ~ N(followers_median_log + followers_of_style[s], followers_sd)     confounder
    delay       log T_ij ~ N(delay_median_log + delay_of_style[s], delay_sd), seconds        confounder
    popularity  p_j ~ N(0, popularity_sd), with the post author's followers mixed in         confounder
    mean        log m_ij = base + quality_slope q_ij + p_j
                           + followers_slope (log F_ij - followers_median_log)
                           + delay_slope (log T_ij - delay_median_log)
    likes       y_ij ~ Poisson(m_ij G_ij), G_ij ~ Gamma(dispersion, 1/dispersion): variance m + m^2/dispersion

Followers and delay change the likes and lean on style, so likes alone overrate the styles of well-followed
and early authors: what a reward has to undo. q is drawn from style and topic, not from the words; a model
sees it only as far as style shows in the text. Style, topic and q leave this module in `truth` alone. Handles
are invented, dates arbitrary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.data import read
from polylib.data import text as texts
from polylib.run import UserError

STYLES = (
    "witty",
    "story",
    "insight",
    "question",
    "support",
    "pushback",
    "generic",
    "promo",
    "offtopic",
)


@dataclass(frozen=True)
class Simulator:
    """Parameters of the generative model in the module's docstring; written to the manifest as they are."""

    style: Mapping[str, float] = field(
        default_factory=lambda: {
            "witty": 1.0,
            "story": 0.8,
            "insight": 0.4,
            "question": 0.3,
            "support": 0.1,
            "pushback": 0.0,
            "generic": -1.0,
            "promo": -1.5,
            "offtopic": -1.25,
        }
    )
    topic_sd: float = 0.2
    interaction_sd: float = 0.3  # which styles work depends on the topic
    noise_sd: float = 0.3
    followers_of_style: Mapping[str, float] = field(
        default_factory=lambda: {
            "promo": 0.8,
            "insight": 0.3,
            "witty": 0.15,
            "generic": -0.15,
            "support": -0.15,
        }
    )
    followers_median_log: float = 6.2  # about 490 followers
    followers_sd: float = 1.3
    delay_of_style: Mapping[str, float] = field(
        default_factory=lambda: {
            "generic": -0.4,
            "promo": -0.4,
            "witty": -0.1,
            "story": 0.3,
            "insight": 0.3,
        }
    )
    delay_median_log: float = 7.8  # about 40 minutes
    delay_sd: float = 1.3
    post_followers_median_log: float = 8.0
    post_followers_sd: float = 1.2
    post_followers_slope: float = 0.4  # of popularity on the post author's log followers
    popularity_sd: float = 0.6  # of what remains
    post_likes_log: float = 4.6  # about 100 likes on the median post
    base: float = 2.2  # about 9 likes for quality 0 at the medians
    quality_slope: float = 1.0
    followers_slope: float = 0.3
    delay_slope: float = -0.25
    dispersion: float = 3.0
    retweet_share: float = 0.08  # retweets per like


def simulate(
    corpus_path: str | Path, seed: int, simulator: Simulator | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Corpus with nested replies -> (rows in the schema of `read.COLUMNS`, truth[reply_id, style, latent]).

    rows carry no style, topic or quality. The same corpus (in any order) and seed give the same bytes.
    Raises UserError naming file, line and field of a malformed corpus line.
    """
    sim = simulator or Simulator()
    flat = _flatten(Path(corpus_path))
    rng = np.random.default_rng(seed)
    posts = _posts(flat, sim, rng)
    log_followers, log_delay, latent = _replies(flat, sim, rng)
    log_mean = (
        sim.base
        + sim.quality_slope * latent
        + posts["popularity"].to_numpy()
        + sim.followers_slope * (log_followers - sim.followers_median_log)
        + sim.delay_slope * (log_delay - sim.delay_median_log)
    )
    likes = _counts(np.exp(log_mean), sim.dispersion, rng)
    delay = np.ceil(np.exp(log_delay))
    created = posts["created"] + pd.to_timedelta(delay, unit="s")
    rows = pd.DataFrame(
        {
            "tweet_id": flat["tweet_id"],
            "tweet": flat["tweet"],
            "tweet_author": posts["author"],
            "tweet_likes": posts["likes"],
            "tweet_retweets": posts["retweets"],
            "tweet_created_at": _iso(posts["created"]),
            "reply_id": flat["reply_id"],
            "reply": flat["reply"],
            "reply_author": [f"reader{n:05d}" for n in rng.permutation(len(flat))],
            "reply_author_followers": np.round(np.exp(log_followers)),
            "reply_likes": likes,
            "reply_retweets": rng.poisson(sim.retweet_share * likes),
            "reply_created_at": _iso(created),
            "reply_time_diff_seconds": delay,
            "collected_at": _iso(posts["created"] + pd.Timedelta(days=60)),
            "tweet_author_followers": posts["followers"],
            "lang": "en",
            "source": "simulated",
            "thread_id": flat["tweet_id"],
        }
    )
    rows = read.typed(rows)
    return rows, pd.DataFrame(
        {"reply_id": flat["reply_id"], "style": flat["style"], "latent": latent}
    )


def _flatten(path: Path) -> pd.DataFrame:
    flat = []
    for number, record in read.records(path):
        if isinstance(record, read.Broken):
            raise UserError(
                f"{path}, row {number}: {record.problem}; compare polylib/data/CORPUS.md"
            )
        try:
            flat += [
                (
                    record["tweet_id"],
                    record["topic"],
                    texts.normalise(record["tweet"]),
                    r["reply_id"],
                    r["style"],
                    texts.normalise(r["reply"]),
                )
                for r in record["replies"]
            ]
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}, row {number}: not a post with tweet_id, topic, tweet and replies of "
                f"reply_id, style, reply ({error!r}); compare polylib/data/CORPUS.md"
            ) from error
    flat = pd.DataFrame(flat, columns=["tweet_id", "topic", "tweet", "reply_id", "style", "reply"])
    unknown = sorted(set(flat["style"]) - set(STYLES))
    if unknown or flat["reply_id"].duplicated().any():
        what = f"unknown style {unknown[0]!r}" if unknown else "a reply_id occurs twice"
        raise UserError(f"{path}: {what}; compare polylib/data/CORPUS.md")
    return flat.sort_values(["tweet_id", "reply_id"], ignore_index=True)


def _posts(flat: pd.DataFrame, sim: Simulator, rng: np.random.Generator) -> pd.DataFrame:
    """Draws for each post, repeated for its replies: one line a row of `flat`."""
    at, ids = pd.factorize(flat["tweet_id"])
    n = len(ids)
    excess = rng.normal(0, sim.post_followers_sd, n)
    popularity = sim.post_followers_slope * excess + rng.normal(0, sim.popularity_sd, n)
    likes = _counts(np.exp(sim.post_likes_log + popularity), sim.dispersion, rng)
    start = pd.Timestamp("2024-01-01", tz="UTC")
    posts = pd.DataFrame(
        {
            "author": [f"poster{k:04d}" for k in rng.permutation(n)],
            "popularity": popularity,
            "likes": likes,
            "followers": np.round(np.exp(sim.post_followers_median_log + excess)),
            "retweets": rng.poisson(sim.retweet_share * likes),
            "created": start + pd.to_timedelta(rng.integers(0, 300 * 86400, n), unit="s"),
        }
    )
    return posts.iloc[at].reset_index(drop=True)


def _replies(flat: pd.DataFrame, sim: Simulator, rng: np.random.Generator):
    """log followers, log delay (seconds) and latent quality, each (N,)."""
    topic, topics = pd.factorize(flat["topic"], sort=True)
    style = flat["style"].map({name: k for k, name in enumerate(STYLES)}).to_numpy()
    topic_effect = rng.normal(0, sim.topic_sd, len(topics))
    interaction = rng.normal(0, sim.interaction_sd, (len(topics), len(STYLES)))
    of_style = {
        kind: np.array([effect.get(name, 0.0) for name in STYLES])[style]
        for kind, effect in (
            ("quality", sim.style),
            ("followers", sim.followers_of_style),
            ("delay", sim.delay_of_style),
        )
    }
    latent = (
        of_style["quality"]
        + topic_effect[topic]
        + interaction[topic, style]
        + rng.normal(0, sim.noise_sd, len(flat))
    )
    log_followers = (
        sim.followers_median_log
        + of_style["followers"]
        + rng.normal(0, sim.followers_sd, len(flat))
    )
    log_delay = sim.delay_median_log + of_style["delay"] + rng.normal(0, sim.delay_sd, len(flat))
    return log_followers, log_delay, latent


def _counts(mean: np.ndarray, dispersion: float, rng: np.random.Generator) -> np.ndarray:
    """Negative binomial as gamma-Poisson: variance mean + mean^2 / dispersion."""
    return rng.poisson(mean * rng.gamma(dispersion, 1 / dispersion, len(mean)))


def _iso(times: pd.Series) -> pd.Series:
    return times.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
