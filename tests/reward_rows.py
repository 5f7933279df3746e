"""Small threads with planted signals, and an encoder without a model, for the tests of the rewards."""

from __future__ import annotations

import hashlib
import re
from functools import cache

import numpy as np
import pandas as pd

from polylib.config import RewardModelConfig

WEIGHTS = {
    "relevance": 0.3,
    "length": 0.2,
    "sentiment": 0.1,
    "variety": 0.1,
    "punctuation": 0.1,
    "toxicity": 0.2,
}
FAST = RewardModelConfig(
    epochs=40,
    negatives=0,
    lr=3e-3,
    hidden=16,
    weight_decay=1e-2,
    members=2,
    learned_weight=0.6,
    heuristic_weight=0.4,
    coherence_weight=0.0,
    relevance_floor=0.0,
    attack_pieces=20,
    preflight_posts=4,
    preflight_samples=8,
    heuristic=WEIGHTS,
)
THINGS = (
    "kettle bicycle garden parrot violin ladder teapot lantern anchor pillow cactus tunnel".split()
)
PLAIN = "it is what people keep near the old wooden door".split()


class BagOfWords:
    """Unit vectors (N, 24): sums of one fixed random direction a word, so shared words mean a high cosine."""

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.array(
            [
                sum((self._word(w) for w in re.findall(r"\w+", text.lower())), self._word(""))
                for text in texts
            ]
        )
        vectors = vectors.reshape(-1, 24)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    @staticmethod
    @cache
    def _word(word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(size=24) * (0.1 if word == "" else 1.0)


def threads(
    posts: int, seed: int = 0, effect: float = 1.5, fame: float = 0.0, fame_shows: bool = False
) -> pd.DataFrame:
    """`posts` threads of 5 replies. A reply with a question draws e^effect times the likes; posts' popularity
    varies by e^1. Followers multiply likes by followers^fame; with `fame_shows` the better followed half shouts
    (!), which does nothing by itself. Splits 60/15/10/15; engagement is the true log-rate without post,
    followers and delay, plus noise."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(posts):
        thing, level = rng.choice(THINGS), rng.normal(3.0, 1.0)
        for r in range(5):
            asks, log_followers = bool(rng.random() < 0.5), rng.normal(6, 1.5)
            shouts = log_followers > 6 if fame_shows else bool(rng.random() < 0.5)
            words = list(rng.choice(PLAIN, size=rng.integers(4, 9))) + [thing]
            text = " ".join(words) + (" why?" if asks else ".") + ("!" if shouts else "")
            rate = np.exp(level + effect * asks + fame * (log_followers - 6))
            rows.append(
                {
                    "tweet_id": f"p{p}",
                    "thread_id": f"p{p}",
                    "tweet": f"my {thing} number {p} fell down the stairs",
                    "reply_id": f"p{p}-{r}",
                    "reply": text,
                    "reply_likes": int(rng.poisson(rate)),
                    "latent": effect * asks,
                    "reply_author_followers": np.round(np.exp(log_followers)),
                    "reply_time_diff_seconds": np.round(np.exp(rng.normal(7, 1))),
                    "asks": asks,
                    "shouts": shouts,
                }
            )
    rows = pd.DataFrame(rows)
    share = rows["tweet_id"].str[1:].astype(int) / posts
    rows["split"] = np.select(
        [share < 0.6, share < 0.75, share < 0.85], ["train", "validation", "test"], "judge"
    )
    rows["engagement"] = (
        rows["latent"]
        - rows.groupby("tweet_id")["latent"].transform("mean")
        + rng.normal(0, 0.1, len(rows))
    )
    return rows
