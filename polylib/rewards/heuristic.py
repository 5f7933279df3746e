"""A reward that needs no training labels: a weighted mean of bounded components, each with a shape fitted to
people.

Relevance, length, sentiment fit, variety, punctuation, specificity and toxicity, all in [0, 1], 1 = as people
write. Scales come from human training replies, so that "too long" or "off the point" mean what they mean in
this corpus."""

import hashlib
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from polylib import run
from polylib.config import UserError
from polylib.rewards import calibration, features
from polylib.settings import HeuristicPart

COMPONENTS = get_args(HeuristicPart)  # in the order in which `components` computes them

# Tiers of harm: a threat or a slur ends the component, an insult costs most of it. Swearing is not harm
# ("hell yeah this slaps"): it is reported as `profanity` and weighs only if params say so. Slurs are kept as
# hashes of the word.
THREAT = re.compile(
    r"\b(?:kill yourself|kys|i(?:'ll| will) (?:kill|find|hurt) you|hope (?:you|they) (?:all )?die|go die|"
    r"(?:you|they) (?:all )?(?:deserve|need) to (?:die|be shot|be hanged)|shoot (?:you|them all))\b"
)
INSULT = re.compile(
    r"\b(?:you(?:'re|r| are)? (?:an? |all |such |so |just )*(?:idiots?|morons?|stupid|dumb|pathetic|losers?|"
    r"clowns?|trash|scum|vermin|disgusting|worthless|liars?)|shut up|idiots?|morons?|imbeciles?|"
    r"scum(?:bags?)?|vermin|nobody asked|piece of (?:shit|crap|trash))\b"
)
PROFANITY = re.compile(
    r"\b(?:(?:mother)?f+u+c+k\w*|(?:bull)?shit\w*|bitch\w*|bastards?|ass(?:hole|holes)?|damn\w*|hell|crap\w*|piss\w*|"
    r"bollocks|wtf|cunts?|dick(?:head)?s?|wank\w*)\b"
)
SLURS = frozenset(
    """
    044eb98b18769b88 08a841e996781e9e 0ce875d620076b53 120f6e5b4ea32f65 16ea09fc78ca83ca 17a110e533284872
    1e02eec4f1095143 22fc75e65a0e9d34 268651b3ece98010 341d56384afc0f47 3b1e0d7c5dd45583 402f7ebd98864afe
    45cd3e1bb472d8e2 5b3ae48be122f7ed 7122c9a14ba2d20e 8f5083e3e5c7dc89 98b52c4b6b7d1f48 c3de533e9b7fe63b
    eef3bd091670c344 f9d0d9b18ae9033a
""".split()
)  # first 16 hex digits of sha256


class HeuristicReward:
    """reward(posts, replies) -> (N,) float64 in [0, 1]: weighted mean of `components`.

    `weights` maps component names to non-negative weights; a component without weight is still reported."""

    name = "heuristic"

    def __init__(self, encoder, weights: dict[str, float]):
        if not sum(weights.values()) > 0:
            raise UserError("reward_model.heuristic: weights must not all be 0")
        self.encoder, self.weights, self.scales = encoder, dict(weights), {}

    def fit(self, rows: pd.DataFrame) -> "HeuristicReward":
        """Take the components' scales, and the mean and sd of the whole, from human replies (tweet, reply[,
        engagement, reply_likes, tweet_id]).

        Length is fitted to replies in the upper half of their post by engagement where that is known: the commonest
        short replies are not the ones to aim at. Equally liked replies share their average rank: by the median's
        value, all replies of a post whose larger half nobody liked would be in its upper half."""
        posts, replies = list(rows["tweet"]), list(rows["reply"])
        cosine = self.cosine(posts, replies)
        shuffled = self.cosine(posts, list(np.roll(np.array(replies, object), len(replies) // 2)))
        good = _upper_half(rows) if "engagement" in rows else np.ones(len(rows), dtype=bool)
        log_chars = np.log1p([len(reply) for reply in replies])[good]
        mood, marks = _moods(posts, replies), _marks(replies)
        low, high = float(np.median(shuffled)), float(np.quantile(cosine, 0.75))
        self.scales = {
            "cosine_low": low,
            "cosine_high": max(high, low + 0.05),
            "cosine_echo": min(max(float(np.quantile(cosine, 0.99)), low + 0.1), 0.95),
            "length_mean": float(np.median(log_chars)),
            "length_sd": max(float(np.subtract(*np.quantile(log_chars, [0.84, 0.16])) / 2), 0.1),
            "mood_mean": float(mood.mean()),
            "mood_sd": max(float(mood.std()), 0.1),
            **{
                f"mark_{name}": max(float(np.quantile(marks[name], 0.9)), floor)
                for name, floor in (
                    ("punctuation", 0.05),
                    ("caps", 0.05),
                    ("emoji", 0.5),
                    ("tags", 0.5),
                )
            },
        }
        total = self(posts, replies)
        self.scales |= {"mean": float(total.mean()), "sd": float(total.std()) or 1.0}
        return self

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        parts = self.components(posts, replies)
        return sum(weight * parts[name].to_numpy() for name, weight in self.weights.items()) / sum(
            self.weights.values()
        )

    def standardised(self, posts: list[str], replies: list[str]) -> np.ndarray:
        """The same, with mean 0 and sd 1 over the human replies it was fitted to."""
        return (self(posts, replies) - self.scales["mean"]) / self.scales["sd"]

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """Columns `COMPONENTS`, each in [0, 1]."""
        s, posts, replies = self.scales, list(posts), list(replies)
        cosine, marks = self.cosine(posts, replies), _marks(replies)
        overlap = features.surface(posts, replies)
        copied, content, generic, promo = (
            overlap[:, features.NAMES.index(name)]
            for name in ("copy3", "content_overlap", "generic_share", "promo")
        )
        near = np.clip((cosine - s["cosine_low"]) / (s["cosine_high"] - s["cosine_low"]), 0, 1)
        # Repeating the post is not answering it: no credit for a cosine beyond people's replies, for its
        # trigrams, or for using nothing but its words.
        own = (
            np.clip((1 - cosine) / (1 - s["cosine_echo"]), 0, 1)
            * (1 - copied)
            * (1 - np.clip(2 * content - 1, 0, 1))
        )
        chars = np.log1p([len(reply) for reply in replies])
        excess = sum(
            np.clip(marks[name] / s[f"mark_{name}"] - 1, 0, None)
            for name in ("punctuation", "caps", "emoji", "tags")
        )
        return pd.DataFrame(
            {
                "relevance": near * own,
                "length": np.exp(-0.5 * ((chars - s["length_mean"]) / s["length_sd"]) ** 2),
                "sentiment": np.exp(
                    -0.5 * ((_moods(posts, replies) - s["mood_mean"]) / s["mood_sd"]) ** 2
                ),
                "variety": np.array([_fresh(reply) for reply in replies], dtype=float),
                "punctuation": np.exp(-excess),
                "specificity": (1 - generic)
                * 0.5**promo,  # what fits under any post, or sells something, says little
                "toxicity": np.array([_harmless(reply) for reply in replies], dtype=float),
                "profanity": np.array(
                    [0.0 if PROFANITY.search(reply.lower()) else 1.0 for reply in replies],
                    dtype=float,
                ),
            },
            columns=list(COMPONENTS),
        )

    def cosine(self, posts: list[str], replies: list[str]) -> np.ndarray:
        """Cosine (N,) of each post and its reply."""
        product = self.encoder.encode(posts).astype(np.float64) * self.encoder.encode(replies)
        return product.sum(axis=1)  # row by row, so that one reply and a batch give the same bits

    def save(self, folder: Path) -> None:
        run.write_json(
            Path(folder) / "heuristic.json", {"weights": self.weights, "scales": self.scales}
        )


def load(folder: Path, encoder) -> HeuristicReward:
    stored = json.loads((Path(folder) / "heuristic.json").read_text())
    reward = HeuristicReward(encoder, stored["weights"])
    reward.scales = stored["scales"]
    return reward


def _upper_half(rows: pd.DataFrame) -> np.ndarray:
    """Whether (N,) a reply's rank in its post by engagement, equal likes tied, is the middle one or above."""
    likes, values = rows["reply_likes"].to_numpy(float), rows["engagement"].to_numpy(float)
    tied = pd.Series(calibration.tied(values, likes, rows["tweet_id"]))
    own = tied.groupby(rows["tweet_id"].to_numpy())
    return (own.rank() >= (own.transform("size") + 1) / 2).to_numpy()


def _moods(posts: list[str], replies: list[str]) -> np.ndarray:
    """Reply minus half the post's polarity: people answer gloom with less gloom, not with a mirror of it."""
    return np.array(
        [
            features.sentiment(r)["compound"] - 0.5 * features.sentiment(p)["compound"]
            for p, r in zip(posts, replies)
        ]
    )


def _marks(replies: list[str]) -> dict[str, np.ndarray]:
    size = np.array([max(len(reply), 10) for reply in replies])
    return {
        "punctuation": np.array([sum(not (c.isalnum() or c.isspace()) for c in r) for r in replies])
        / size,
        "caps": np.array([sum(map(str.isupper, r)) for r in replies]) / size,
        "emoji": np.array([float(len(features.EMOJI.findall(r))) for r in replies]),
        "tags": np.array(
            [
                float(len(features.HASHTAG.findall(r)) + len(features.LINK.findall(r)))
                for r in replies
            ]
        ),
    }


def _fresh(reply: str) -> float:
    """Share of distinct word pairs times that of distinct content words: 1 for nothing said twice, at any
    length."""
    tokens = features.words(reply)
    content = [token for token in tokens if token not in features.FUNCTION]
    return float(bool(tokens)) * _distinct(list(zip(tokens, tokens[1:]))) * _distinct(content)


def _distinct(items: list) -> float:
    return len(set(items)) / len(items) if items else 1.0


def _harmless(reply: str) -> float:
    text = " ".join(features.words(reply))
    if THREAT.search(text) or any(
        hashlib.sha256(word.encode()).hexdigest()[:16] in SLURS for word in text.split()
    ):
        return 0.0
    return 0.3 if INSULT.search(text) else 1.0
