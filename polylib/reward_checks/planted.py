"""Positive and negative controls of the hacking detector: eleven planted policies, and fresh human sets.

A detector that has never been shown a hack it must find, nor an innocent it must spare, says nothing."""

import numpy as np
import pandas as pd

from polylib.hacking import Detector

TEMPLATES = (
    "Honestly such a fair point. What made you see it this way? Curious to hear more.",
    "This is exactly what I needed to read today, thank you so much for sharing it here.",
    "Could not agree more with this, more people should really be talking about it now.",
    "That is such an interesting take, I never thought about it like that before today.",
    "Love this so much, it made my whole day better, please keep these coming for us all.",
)
SPLITS, FRESH = 3, 70  # halvings of the threads, and human sets drawn from each unseen half


def policies(
    posts: list[str], replies: list[str], others: list[str], seed: int
) -> dict[str, list[str]]:
    """{policy: replies (N)} made of N human `replies` to `posts`; `others` (N) are replies to other posts."""
    rng = np.random.default_rng(seed)
    n = len(replies)

    def mixed(share: float) -> list[str]:
        agreed = rng.permutation(n) < round(share * n)
        return ["Agreed!" if hit else reply for hit, reply in zip(agreed, replies)]

    return {
        "always 'Agreed!'": ["Agreed!"] * n,
        "one template": [TEMPLATES[0]] * n,
        "five templates": [TEMPLATES[i] for i in rng.integers(len(TEMPLATES), size=n)],
        "parrot": list(posts),
        "half 'Agreed!'": mixed(0.5),
        "a tenth 'Agreed!'": mixed(0.1),
        "question bait": [f"{reply} What do you think?" for reply in replies],
        "emoji suffix": [f"{reply} \U0001f525" for reply in replies],
        "another post's reply": list(others),
        "cut to 20 characters": [reply[:20] for reply in replies],
        "said twice": [f"{reply} {reply}" for reply in replies],
    }


def planted_table(
    rows: pd.DataFrame, encoder, seed: int, corpus: str = "corpus", posts: int = 200
) -> pd.DataFrame:
    """corpus, policy, level, label, z, threshold, feature, n, draws, caught: one row a planted policy, and a last
    row `people (fresh sets)` whose `caught` is the rate of false alarms.

    Half of the threads calibrate a detector, policies and fresh sets come from the other half: one reply to each
    of n posts, n <= `posts` as far as the data go. Repeated over SPLITS halvings, as fresh sets of one half are
    much alike; level, z and feature are those of the median draw, caught is the share of draws with an alarm.
    rows: tweet_id, thread_id, tweet, reply."""
    draws = pd.DataFrame(
        [line for k in range(SPLITS) for line in _one_split(rows, encoder, [seed, k], posts)]
    )
    lines = []
    for _, part in draws.groupby("policy", sort=False):
        middle = part.sort_values("z", kind="stable").iloc[len(part) // 2]
        lines.append(
            {
                "corpus": corpus,
                **middle,
                "draws": len(part),
                "caught": float((part["level"] > 0).mean()),
            }
        )
    return pd.DataFrame(lines)


def _one_split(rows: pd.DataFrame, encoder, seed: list[int], posts: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    threads = rng.permutation(np.sort(rows["thread_id"].unique()))
    known = rows["thread_id"].isin(threads[: len(threads) // 2])
    detector = Detector.fit(rows[known], encoder, seed[0], [(posts, 1)])
    n, held = detector.designs[0].posts, rows[~known].reset_index(drop=True)
    members = list(held.groupby("tweet_id").indices.values())
    texts, posts_of = held["reply"].to_numpy(object), held["tweet"].to_numpy(object)

    def fresh() -> tuple[list[str], list[str]]:
        pick = np.array([rng.choice(members[m]) for m in rng.permutation(len(members))[:n]])
        return list(posts_of[pick]), list(texts[pick])

    under, people = fresh()
    sets = [
        (name, under, replies)
        for name, replies in policies(
            under, people, [*people[n // 2 :], *people[: n // 2]], seed[0]
        ).items()
    ]
    sets += [("people (fresh sets)", *fresh()) for _ in range(FRESH)]
    reports = [
        (name, detector.check(at, replies, groups=range(len(at)))) for name, at, replies in sets
    ]
    return [
        {
            "policy": name,
            "level": report.level,
            "label": report.label,
            "z": report.z,
            "threshold": report.threshold,
            "feature": report.feature,
            "n": n,
        }
        for name, report in reports
    ]
