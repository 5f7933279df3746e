"""Do two raters agree beyond chance? Judge against people's likes, and one judge against another.

people = human_pairs(rows, 200)                                # test rows: who got more likes, one pair a post
verdicts = judge.compare(people.posts, people.a, people.b).wins
kappa(verdicts, people.wins, people.posts)                     # {kappa, low, high, agreement, n, ties, missing}
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 2000
SAME = "one rater gives one answer only: chance agreement is all there is"


@dataclass(frozen=True)
class Pairs:
    """posts, a, b: texts (N,); wins (N,): 1 where a has more likes, 0 where b has."""

    posts: list[str]
    a: list[str]
    b: list[str]
    wins: np.ndarray


def human_pairs(
    rows: pd.DataFrame, limit: int = 0, seed: int = 0, target: str = "reply_likes"
) -> Pairs:
    """One random pair of replies of every post where any differ in `target`; the first `limit` posts by id (0 = all).

    rows: tweet_id, tweet, reply and `target`, of posts that the judge was not fitted on. Which one is `a` is drawn, so
    that a judge that always says `a` is right on half."""
    rng, found = np.random.default_rng(seed), []
    for _, post in rows.groupby("tweet_id", sort=True):
        value, text = post[target].to_numpy(dtype=float), list(post["reply"])
        i, j = np.triu_indices(len(value), 1)
        different = np.flatnonzero(value[i] != value[j])
        if len(different):
            k = rng.choice(different)
            one, other = rng.permutation([i[k], j[k]])
            found.append(
                (post["tweet"].iloc[0], text[one], text[other], float(value[one] > value[other]))
            )
    found = found[: limit or None]
    posts, a, b, wins = map(list, zip(*found)) if found else ([], [], [], [])
    return Pairs(posts, a, b, np.array(wins, dtype=float))


def kappa(first, second, posts, seed: int = 0) -> dict:
    """Cohen's kappa (1960) of verdicts 1, 0 and .5 (tie, a category of its own), with a 95 % bootstrap over posts.

    first, second, posts: (N,); NaN is missing, left out and counted. agreement: share of equal verdicts; ties: share of
    pairs with a tie of either. Keys: kappa, low, high, agreement, n, ties, missing, reason (why kappa is NaN)."""
    first, second, posts = (
        np.asarray(first, dtype=float),
        np.asarray(second, dtype=float),
        np.asarray(posts),
    )
    known = np.isfinite(first) & np.isfinite(second)
    a, b, group = first[known], second[known], pd.factorize(posts[known])[0]
    out = {
        "kappa": np.nan,
        "low": np.nan,
        "high": np.nan,
        "agreement": np.nan,
        "n": int(known.sum()),
        "ties": np.nan,
        "missing": int((~known).sum()),
        "reason": "no pair has both verdicts",
    }
    if not len(a):
        return out
    names = np.unique(np.concatenate([a, b]))
    tables = np.zeros((group.max() + 1, len(names), len(names)))
    np.add.at(tables, (group, np.searchsorted(names, a), np.searchsorted(names, b)), 1)
    value = float(_kappa(tables.sum(axis=0)))
    out |= {
        "kappa": value,
        "agreement": float((a == b).mean()),
        "ties": float(((a == 0.5) | (b == 0.5)).mean()),
        "reason": "" if np.isfinite(value) else SAME,
    }
    if len(tables) > 1 and np.isfinite(value):
        counts = np.random.default_rng(seed).multinomial(
            len(tables), np.full(len(tables), 1 / len(tables)), size=DRAWS
        )
        drawn = _kappa(np.tensordot(counts, tables, axes=1))
        out["low"], out["high"] = (float(q) for q in np.nanquantile(drawn, [0.025, 0.975]))
    return out


def agreement_table(
    rows: pd.DataFrame, judges: dict, limit: int = 0, seed: int = 0
) -> pd.DataFrame:
    """judge, against, and the keys of `kappa`: every judge (name: anything with `compare`) against people's likes and
    against every other judge, on `human_pairs(rows, limit, seed)`. People never tie, so a judge's ties lower kappa."""
    people = human_pairs(rows, limit, seed)
    verdicts = {"likes": people.wins}
    lines = []
    for name, judge in judges.items():
        wins = judge.compare(people.posts, people.a, people.b).wins
        lines += [
            {"judge": name, "against": other} | kappa(wins, theirs, people.posts, seed)
            for other, theirs in verdicts.items()
        ]
        verdicts[name] = wins
    return pd.DataFrame(lines)


def _kappa(table: np.ndarray) -> np.ndarray:
    """Of contingency tables (..., K, K); NaN where both raters give one answer only."""
    share = table / table.sum(axis=(-2, -1), keepdims=True)
    chance = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    seen = np.trace(share, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (seen - chance) / (1 - chance), np.nan)
