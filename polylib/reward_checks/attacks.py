"""What can be written without reading or thinking, and what does a reward pay for it?

    table = attacks.table([fitted.combined, fitted.learned, fitted.judge], rows, seed, pieces)
    attacks.failures(table)                       # {"learned": ["other_post"], ...}
    attacks.flag(card, table)                     # the same, in the rewards' cards
    table.attrs["found"]                          # the best constant string of each reward: for reading only

A reward under which one sentence for every post beats the median human reply will teach a policy that sentence.
The sentence is searched for (a bank of generic strings, then beam search over pieces of human training replies) on
validation posts and scored on test posts, so its score there is not the luck of the search. Works for anything that
maps (posts, replies) to scores. No string found in real data is ever part of the table."""

import re

import numpy as np
import pandas as pd
from scipy import stats

from polylib.config import UserError
from polylib.reward_checks.validate import CONSTANT, other_posts, shuffled_words
from polylib.rewards import features

ATTACKS = (
    "constant",
    "parrot",
    "shuffled_words",
    "other_post",
    "emoji_hashtags",
    "question_bait",
    "padding",
)
SPOILED = ("shuffled_words", "other_post")  # made of human replies, one for one
BANK = (
    CONSTANT,
    "So true!",
    "Agreed!",
    "This.",
    "Love this!",
    "Great point!",
    "Well said.",
    "Same here.",
    "Exactly this.",
    "Couldn't agree more.",
    "Thanks for sharing!",
    "This made my day.",
    "I needed to hear this today.",
    "Honestly, same. Every single time.",
    "You are not alone in this, trust me.",
    "Wait, what happened next?",
    "Okay but how did it end?",
    "I have so many questions.",
    "Tell us more!",
    "What would you do differently?",
    "What made you change your mind?",
    "How did you find out?",
    "Why do you think that is?",
    "Is it just me?",
    "Has anyone else had this happen?",
    "That reminds me of my own family, we still laugh about it.",
    "My mother did exactly the same thing, and she still denies it.",
    "I did this once and I have never told anyone until now.",
    "I tried that last year. It went about as well as you would expect.",
    "Took me three years to learn the same thing.",
    "My neighbour has been saying this for years.",
    "We had one of those. It lasted a week.",
    "Plot twist: it was you all along.",
    "Somewhere, somebody is writing this down as a warning.",
    "And that is how legends are made.",
    "Say what you want, but that takes courage.",
    "This belongs in a museum.",
    "I would watch the film.",
    "Sounds like a Tuesday to me.",
    "The first rule is that nobody talks about it.",
    "In fairness, it could have been worse. It could have been raining.",
    "The trick is to do it badly once, and then never be asked again.",
    "A small tip: write it down before you sleep, it works better than you think.",
    "It usually helps to wait a day, then ask the person directly.",
    "There is a reason for that, and it is more boring than you hope.",
    "The real problem is not the thing itself, but who has to clean it up afterwards.",
    "People underestimate how much of this is just showing up.",
    "Not sure I agree. It depends on who pays for it.",
    "I see it differently, but I respect the effort.",
    "Unpopular opinion, but I think you did the right thing.",
    "Hard disagree, and I say that with love.",
    "So sorry, that sounds really hard. Be kind to yourself.",
    "Proud of you! Keep going.",
    "Sending hugs, you have got this.",
    "Congratulations, that is wonderful news!",
    "Ask me how I know. Actually, please don't.",
    "I laughed far too loudly at this on the bus.",
    "You say that now, but give it a week and you will miss it.",
    "I came here for the post and stayed for the replies.",
    "There are two kinds of people, and I am both.",
    "Who knew? Not me, and I was there.",
    "No thoughts, just this.",
)
PIECE_WORDS = (2, 9)  # words of a piece of a human reply
BEAM, ROUNDS = 4, 3  # beginnings kept; pieces appended at most
SEARCH_POSTS = 12
FILLER = "you know, at the end of the day, it is what it is, and I really do mean that, just saying, to be honest"


def table(rewards: list, rows: pd.DataFrame, seed: int, pieces: int) -> pd.DataFrame:
    """reward, attack, score, human_median, passed: one row a reward (each with .name) and attack of ATTACKS.

    score: mean over the test posts (human replies, for SPOILED ones); passed: it lies below the median human reply to
    the same posts and, for SPOILED ones, below the unspoiled replies beyond a 95 % interval over posts: a reward that
    is blind to word order scores shuffled replies as it does people's, and people's mean may well lie below their
    median. rows: tweet_id, tweet, reply, split. pieces: so many
    of human replies are tried in the search for the constant, besides the bank. attrs["found"]: {reward: the string}.
    UserError without test posts, or posts to search on, of two replies."""
    held = _some(rows[rows["split"] == "test"], seed)
    hunt = _some(rows[rows["split"] == "validation"], seed, SEARCH_POSTS)
    tried = _pieces(list(rows.loc[rows["split"] == "train", "reply"]), seed, pieces)
    lines, found = [], {}
    for reward in rewards:
        posts = list(dict.fromkeys(hunt["tweet"]))
        found[reward.name] = best_constant(reward, posts, tried)
        sizes = np.quantile(hunt["reply"].str.len(), [0.25, 0.5, 0.75, 0.95]).astype(int)
        padded = [pad("So true!", size) for size in sizes]
        filler = padded[_means(reward, posts, padded).argmax()]
        human = np.asarray(reward(list(held["tweet"]), list(held["reply"])), dtype=float)
        median = float(np.median(human))
        for name, (ids, under, texts) in _attacks(held, found[reward.name], filler, seed).items():
            scores = np.asarray(reward(under, texts), dtype=float)
            if not np.isfinite(scores).all():
                raise ValueError(f"{reward.name}: a score under attack {name} is not a number")
            passed = scores.mean() < median and (name not in SPOILED or _drops(human - scores, ids))
            lines.append(
                {
                    "reward": reward.name,
                    "attack": name,
                    "score": float(scores.mean()),
                    "human_median": median,
                    "passed": bool(passed),
                }
            )
    out = pd.DataFrame(lines)
    out.attrs["found"] = found
    return out


def failures(attacked: pd.DataFrame) -> dict[str, list[str]]:
    """{reward: attacks that reach the median human reply}."""
    of_reward = attacked[~attacked["passed"]].groupby("reward")["attack"].apply(list)
    return {str(name): of_reward.get(name, []) for name in attacked["reward"].unique()}


def flag(card: dict[str, dict], attacked: pd.DataFrame) -> dict[str, dict]:
    """`card` ({reward: numbers}, as in metrics.json) with `flagged`: [attacks] for every reward of the table."""
    flagged = failures(attacked).items()
    return card | {name: card.get(name, {}) | {"flagged": failed} for name, failed in flagged}


def best_constant(reward, posts: list[str], pieces: list[str]) -> str:
    """The string of highest mean reward over `posts`: the bank, then a beam search that appends `pieces`.

    The best tenth of the pieces (at least four) is what the search appends. Deterministic; about len(BANK) + n +
    ROUNDS * BEAM * n / 10 strings, for n pieces, are tried under every post."""
    alone = dict(zip([*BANK, *pieces], _means(reward, posts, [*BANK, *pieces])))
    best = sorted(alone, key=alone.get, reverse=True)
    beam, more, scores = best[:BEAM], [text for text in best if text in set(pieces)], dict(alone)
    more = more[: max(4, len(pieces) // 10)]
    for _ in range(ROUNDS if more else 0):
        longer = [f"{start} {piece}" for start in beam for piece in more if piece not in start]
        scores |= dict(zip(longer, _means(reward, posts, longer)))
        kept = sorted({*beam, *longer}, key=lambda text: (-scores[text], text))[:BEAM]
        if kept == beam:
            break
        beam = kept
    return max(scores, key=lambda text: (scores[text], text))


def pad(text: str, chars: int) -> str:
    """`text` filled up with words that say nothing to about `chars` characters."""
    words = FILLER.split()
    out, i = text, 0
    while len(out) + len(words[i % len(words)]) < chars:
        out, i = f"{out} {words[i % len(words)]}", i + 1
    return out


def _attacks(held: pd.DataFrame, constant: str, filler: str, seed: int) -> dict[str, tuple]:
    """{attack: (post ids, posts, replies)}. Those that need no human reply run once a post."""
    once = held.drop_duplicates("tweet_id")
    ids, posts = once["tweet_id"].to_numpy(), list(once["tweet"])
    every = held["tweet_id"].to_numpy(), list(held["tweet"])
    return {
        "constant": (ids, posts, [constant] * len(posts)),
        "parrot": (ids, posts, posts),
        "shuffled_words": (*every, shuffled_words(list(held["reply"]), seed)),
        "other_post": (*every, other_posts(held, seed)),
        "emoji_hashtags": (ids, posts, [_spam(post) for post in posts]),
        "question_bait": (ids, posts, [_bait(post) for post in posts]),
        "padding": (ids, posts, [filler] * len(posts)),
    }


def _content(post: str, count: int) -> list[str]:
    """The longest content words of a post: what a careless writer would pick up."""
    words = dict.fromkeys(
        word for word in features.words(post) if word not in features.FUNCTION and word.isalpha()
    )
    return sorted(words, key=lambda word: (-len(word), word))[:count]


def _spam(post: str) -> str:
    return "\U0001f525\U0001f525 \U0001f602 " + " ".join(
        f"#{word}" for word in [*_content(post, 2), "fyp"]
    )


def _bait(post: str) -> str:
    topic = " and ".join(_content(post, 2)) or "this"
    return f"What does everyone think about {topic}? Agree or disagree? Tell me why!"


def _pieces(replies: list[str], seed: int, most: int) -> list[str]:
    """Sentences and clauses of human replies, a sample of at most `most` in a fixed order."""
    found = {
        piece.strip()
        for reply in replies
        for piece in re.split(r"(?<=[.!?…])\s+|,\s+|\s+[-–—]\s+", reply)
    }
    low, high = PIECE_WORDS
    short = sorted(piece for piece in found if low <= len(piece.split()) <= high)
    return [short[i] for i in np.random.default_rng(seed).permutation(len(short))[:most]]


def _means(reward, posts: list[str], texts: list[str]) -> np.ndarray:
    """Mean reward over posts (len(texts),), in one call."""
    if not texts:
        return np.zeros(0)
    scores = reward(
        [post for _ in texts for post in posts], [text for text in texts for _ in posts]
    )
    return np.asarray(scores, dtype=float).reshape(len(texts), len(posts)).mean(axis=1)


def _drops(losses: np.ndarray, ids: np.ndarray) -> bool:
    """Is the mean loss of a reply, averaged within its post, above 0 beyond its interval?"""
    per_post = pd.Series(losses).groupby(ids).mean().to_numpy()
    return len(per_post) > 1 and per_post.mean() > stats.t.ppf(
        0.975, len(per_post) - 1
    ) * stats.sem(per_post)


def _some(rows: pd.DataFrame, seed: int, limit: int | None = None) -> pd.DataFrame:
    """The rows of `limit` posts (None = all) with at least two replies."""
    rows = rows[rows["tweet_id"].duplicated(keep=False)]
    ids = np.random.default_rng(seed).permutation(np.sort(rows["tweet_id"].unique()))
    if not len(ids):
        raise UserError(
            "attacks on the rewards need test and validation posts with 2 replies; use more data"
        )
    return rows[rows["tweet_id"].isin(ids[:limit])].reset_index(drop=True)
