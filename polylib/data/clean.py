"""Clean rows, and a table of what was rejected, why and how much. Order of rows in the file changes nothing.

Each rejected reply carries the first reason of REASONS that holds for it. Text is compared through `text.key`
(words only), never changed, with one exception: leading @mentions of a reply are addressing, not content (a
model would learn to write "@user @user"), so they are cut; the manifest counts how often.
"""

from __future__ import annotations

import re

import emoji
import numpy as np
import pandas as pd

from polylib.config import DataConfig
from polylib.data import text as texts
from polylib.run import UserError

REASONS = {
    "too_short": "fewer than min_chars characters",
    "too_long": "more than max_chars characters",
    "post_too_long": "its post has more than MAX_POST characters (10,000)",
    "language": "not in `language`, by the lang column or, where that says nothing, by script and stop words",
    "links": "more than max_links links",
    "hashtags": "more than max_hashtags hashtags",
    "emoji": "more than max_emoji emoji",
    "spam_words": "contains one of spam_words as a whole word or phrase",
    "self_reply": "written by the author of the post",
    "retweet_style": "a retweet or a quoted tweet, not a reply",
    "copies_post": "4-gram cosine with the post of at least near_duplicate",
    "repeated_text": "the same words in more than bot_repetition threads (numbers ignored)",
    "repeating_author": "its author repeats own texts more than bot_repetition times",
    "duplicate": "same words as an earlier reply anywhere",
    "near_duplicate": "4-gram cosine with an earlier reply of its thread of at least near_duplicate",
    "too_few_replies": "its post has fewer than min_replies replies left",
    "subsampled": "its post is not among the max_posts drawn by seeded hash",
}
EXAMPLES = 3
MAX_POST = 10_000  # characters; a prompt is cut far below
# what files write for a language besides the two-letter code; Twitter's q.. stand for media, tags and the like
LANGUAGES = {
    "english": "en",
    "eng": "en",
    "german": "de",
    "deu": "de",
    "ger": "de",
    "french": "fr",
    "fra": "fr",
    "fre": "fr",
    "spanish": "es",
    "spa": "es",
    "portuguese": "pt",
    "por": "pt",
    "italian": "it",
    "ita": "it",
}
NO_LANGUAGE = frozenset(
    "und zxx mul mis unknown undefined none null nan n/a na art qam qct qht qme qst".split()
)
_HASHTAG = re.compile(r"(?<!\w)#\w+")
_ADDRESSING = re.compile(r"^(?:\.?@\w+[\s,:]*)+")
_RETWEET = re.compile(r"^(?:rt|mt)\b(?:\s*:|\s+@)|[\"“”‘'«]\s*@\w+\s*:|\brt\s+@\w+", re.IGNORECASE)
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about all am an and any are as at be been but by can could did do does for from get got had has
    have he her his how i if in is it its just like me my no not now of on one or our out she so some
    that the their them then there they this to too up was we were what when where who why will with
    would you your""",
    )
)


def strip_addressing(reply: str) -> str:
    """The reply without the @mentions before its first word; a reply of mentions only becomes empty."""
    return _ADDRESSING.sub("", reply)


def looks_english(reply: str) -> bool:
    """Cheap guess for files without a lang column: at least 80 % of the letters are ASCII and, from eight
    words on, at least one is an English function word. Short replies in another Latin-script language
    pass."""
    letters = [c for c in reply if c.isalpha()]
    if sum(c.isascii() for c in letters) < 0.8 * len(letters):
        return False
    words = re.findall(r"[a-z]+", reply.lower())
    return len(words) < 8 or not _STOPWORDS.isdisjoint(words)


def clean(rows: pd.DataFrame, data: DataConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply every rule of REASONS with the thresholds of `cfg.data`.

    Returns (rows sorted by thread, post and reply id; rejects with columns reason, count, examples, the last
    a list of up to three replies). len(rows) + rejects["count"].sum() is the number of rows that came in.
    Raises UserError when `language` cannot be checked or when no row is left.
    """
    rows = rows.sort_values(["thread_id", "tweet_id", "reply_id"], ignore_index=True)
    rows["reply"] = [strip_addressing(r) for r in rows["reply"]]
    reason = np.full(len(rows), "", dtype=object)

    def reject(name: str, mask: np.ndarray) -> None:
        reason[(reason == "") & np.asarray(mask, dtype=bool)] = name

    for name, mask in _content_rules(rows, data).items():
        reject(name, mask)
    keys = np.array([texts.key(r) for r in rows["reply"]], dtype=object)
    of_posts = texts.vectors([texts.key(post) for post in rows["tweet"]])
    reject("copies_post", texts.row_cosine(texts.vectors(keys), of_posts) >= data.near_duplicate)
    _bot_rules(rows, keys, data, reject, reason)
    _duplicate_rules(rows, keys, data, reject, reason)
    left = pd.Series(reason == "").groupby(rows["tweet_id"]).transform("sum")
    reject("too_few_replies", left < data.min_replies)
    if data.max_posts:
        reject("subsampled", ~rows["tweet_id"].isin(_sample_posts(rows[reason == ""], data)))
    return _finish(rows, reason)


def _content_rules(rows: pd.DataFrame, data: DataConfig) -> dict:
    """For each rule that a reply breaks by itself, which rows do: a mask (N,)."""
    replies, length = rows["reply"].tolist(), rows["reply"].str.len()
    words = "|".join(re.escape(w.casefold()) for w in data.spam_words) or "(?!)"  # nothing matches
    spam = re.compile(rf"(?<!\w)(?:{words})(?!\w)")  # whole words: "ser" must not reject "user"
    own = rows["reply_author"].notna() & (rows["reply_author"] == rows["tweet_author"])
    return {
        "too_short": length < max(1, data.min_chars),
        "too_long": length > data.max_chars,
        "post_too_long": rows["tweet"].str.len() > MAX_POST,
        "language": ~_in_language(rows, data.language),
        "links": [len(texts.LINK.findall(r)) > data.max_links for r in replies],
        "hashtags": [len(_HASHTAG.findall(r)) > data.max_hashtags for r in replies],
        "emoji": [not r.isascii() and emoji.emoji_count(r) > data.max_emoji for r in replies],
        "spam_words": [bool(spam.search(r.casefold())) for r in replies],
        "self_reply": own,
        "retweet_style": [bool(_RETWEET.search(r)) for r in replies],
    }


def _in_language(rows: pd.DataFrame, language: str) -> np.ndarray:
    if language == "any":
        return np.ones(len(rows), dtype=bool)
    missing = rows["lang"].isna().sum()
    if language != "en" and missing:
        raise UserError(
            f"data.language is {language!r}, but {missing} rows have no lang; without "
            "that column only English can be checked: add it, or set language: any to keep all"
        )
    codes = rows["lang"].fillna("und").str.lower().str.extract("([^-_]*)")[0]  # en-GB is en
    codes = codes.str.strip().replace(LANGUAGES)
    guess = codes.isin(NO_LANGUAGE) & (language == "en")
    english = [g and looks_english(reply) for g, reply in zip(guess, rows["reply"], strict=True)]
    return np.where(guess, english, codes == language.lower())


def _bot_rules(rows: pd.DataFrame, keys: np.ndarray, data, reject, reason: np.ndarray) -> None:
    alive = reason == ""
    table = pd.DataFrame(
        {
            "words": [re.sub(r"\d+", "0", k) for k in keys],
            "thread": rows["thread_id"],
            "author": rows["reply_author"],
        }
    )[alive]
    threads = table.groupby("words")["thread"].nunique()
    stock = threads[threads > data.bot_repetition].index
    reject("repeated_text", table["words"].reindex(rows.index).isin(stock))
    known = table.dropna(subset="author")
    repeats = known.duplicated(["author", "words"]).groupby(known["author"]).sum()
    reject(
        "repeating_author", rows["reply_author"].isin(repeats[repeats > data.bot_repetition].index)
    )


def _duplicate_rules(
    rows: pd.DataFrame, keys: np.ndarray, data, reject, reason: np.ndarray
) -> None:
    # Earliest first: the first writer is the original, and keeping the best liked copy inflates engagement.
    when = rows["reply_time_diff_seconds"].fillna(np.inf).to_numpy()
    order = np.lexsort((rows["reply_id"].to_numpy(dtype=str), when))
    alive = pd.DataFrame({"key": keys, "post": rows["tweet_id"]}).iloc[order]
    alive = alive[reason[order] == ""]
    reject("duplicate", rows.index.isin(alive.index[alive.duplicated("key")]))
    alive = alive[~alive.duplicated("key")]
    i, j = texts.similar_pairs(alive["key"].tolist(), data.near_duplicate)
    post = alive["post"].to_numpy()
    later = j[post[i] == post[j]]  # i < j in order of place
    reject("near_duplicate", rows.index.isin(alive.index[later]))


def _sample_posts(rows: pd.DataFrame, data) -> pd.Index:
    """max_posts posts, threads in hash order and whole as far as the number allows."""
    posts = rows.drop_duplicates("tweet_id")
    order = pd.DataFrame(
        {
            "thread": texts.seeded_hash(posts["thread_id"], data.split_seed),
            "post": texts.seeded_hash(posts["tweet_id"], data.split_seed),
        },
        index=posts["tweet_id"],
    )
    return order.sort_values(["thread", "post"]).index[: data.max_posts]


def _finish(rows: pd.DataFrame, reason: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    counted = [
        (name, len(part), part.iloc[:EXAMPLES].tolist())
        for name in REASONS
        if len(part := rows.loc[reason == name, "reply"])
    ]
    rejects = pd.DataFrame(counted, columns=["reason", "count", "examples"])
    kept = rows[reason == ""].reset_index(drop=True)
    if kept.empty:
        worst = rejects.sort_values("count").iloc[-1]
        raise UserError(
            f"cleaning left none of {len(rows)} rows; most fell to {worst['reason']!r} "
            f"({REASONS[worst['reason']]}): loosen it under data: in params"
        )
    return kept, rejects
