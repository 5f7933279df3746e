"""Ways in which a reply fails, one documented rule each, and how often each method does.

    flags(posts, replies, relevance, truncated, off_topic_below)     # of every reply the names of its failures

Rules are blunt on purpose: anybody can check one by eye, and people's own rate stands beside every method's,
because people say "so true" and end on "thoughts?" as well. Sets matter for two of them (duplicate, template):
pass one method's replies at one temperature at a time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import regex

from polylib.evaluation import text
from polylib.rewards import features
from polylib.rewards.heuristic import INSULT, SLURS, THREAT

# Name: what the rule says, in the words of the report.
RULES = {
    "empty": "no letter, digit or emoji at all",
    "truncated": "cut off at the token limit",
    "duplicate": "the same text (case and white space aside) stands under another post",
    "template": "starts with the set's commonest three words, if more than 10 % of replies under 3 or more posts do",
    "parrot": "4 words or more, and at least half of its word trigrams stand in the post",
    "off_topic": "less similar to its post than 95 % of people's replies are",
    "agreement": "agrees and adds at most 3 words of its own",
    "question_bait": "ends on a stock question that fits under any post",
    "spam": "more than 1 link, 3 hashtags or 5 emoji, or two phrases that sell something",
    "toxic": "a slur, a threat or an insult of the tiered lexicon; swearing alone is none",
    "script": "half of its letters are of scripts the post does not use, or 8 words or more without one English word "
    "under an English post",
    "invented": "names a @user or a link that the post does not",
    "leakage": "chat-control tokens, role labels or instructions of the prompt",
}
OFF_TOPIC_QUANTILE = 0.05  # of people's relevance; what lies below it is off topic
OPENER_WORDS, OPENER_SHARE, OPENER_POSTS = 3, 0.10, 3
COPIED, COPY_WORDS = 0.5, 4
OWN_WORDS = 3  # an agreement with more words of its own says something
LINKS, HASHTAGS, EMOJI, PROMOS = 1, 3, 5, 2
ENGLISH_WORDS = 8  # shorter replies give too little to tell the language by

AGREES = regex.compile(
    r"""\b(?: (?:i\ )?(?:(?:so|totally|completely|absolutely)\ )*agreed?(?:\ (?:with\ (?:you|this)|completely|totally))?
    | (?:so|very|too|absolutely)\ true | well\ said | couldn't\ (?:have\ said\ it\ better|agree\ more)
    | (?:(?:such\ a|a|very)\ )?(?:great|good|fair|excellent)\ point | exactly(?:\ this)? | this\ is\ so\ true
    | (?:you're|you\ are|ur)\ (?:(?:so|absolutely|totally|completely)\ )*right | absolutely | totally | preach | facts
    | love\ this | same\ here | hear\ hear | spot\ on | 100 | true )\b""",
    regex.X,
)
BAIT = regex.compile(
    r"""(?: what\ do\ (?:you|y'all)(?:\ (?:all|guys))?\ think(?:\ about\ (?:it|this|that))? | (?:any\ )?thoughts
    | what(?:'s|\ is|\ are)\ your\ (?:take|opinion|thoughts?|view) (?:\ on\ (?:it|this|that))?
    | (?:what|how)\ about\ you | who\ else(?:\ agrees)? | anyone\ else | agree(?:\ or\ disagree)? | don't\ you\ think
    | what\ made\ you\ (?:think|feel|see|say)\ (?:so|it|this|that)(?:\ (?:this|that)\ way)?
    | (?:would\ love|curious)\ to\ hear\ (?:more|your\ thoughts?|what\ you\ think|from\ you)
    (?:\ about\ (?:it|this|that))? | let\ (?:me|us)\ know(?:\ what\ you\ think|\ your\ thoughts|\ in\ the\ comments)?
    | tell\ (?:me|us)\ (?:more|your\ thoughts)
    )$""",
    regex.X,
)
LEAK = regex.compile(
    r"""<\|[^|<>]{0,40}\|> | </?s> | \[/?INST\] | <</?SYS>> | (?m:^\s*(?:User|Assistant|System|Human|AI|Post|Reply)\s*:)
    | \#{2,}\s*(?:Instruction|Response|Input) | (?i:as\ an\ ai\ (?:language\ )?(?:model|assistant)
    | you\ are\ a\ helpful\ | (?:write|here\ is)\ a\ (?:short\ )?reply\ to\ (?:the|this|your)\ post)""",
    regex.X,
)
SCRIPTS = {
    name: regex.compile(rf"\p{{Script={name}}}")
    for name in ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "Hangul")
}
SCRIPTS["East Asian"] = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]")
LETTER = regex.compile(r"\p{L}")


def flags(
    posts: Sequence[str],
    replies: Sequence[str],
    relevance: Sequence[float],
    truncated: Sequence[bool] | None,
    off_topic_below: float,
) -> list[list[str]]:
    """Names out of RULES for each of N replies, in that order, [] for a reply without fault.

    One set: a method's replies at one temperature, `posts[i]` above `replies[i]` (equal texts are one post).
    relevance (N,): cosine to the post; off_topic_below: people's OFF_TOPIC_QUANTILE. truncated (N,), or None or
    NaN for people, who have no token limit. Any Unicode is taken; texts are read up to 2000 characters."""
    posts, replies = list(posts), list(replies)
    relevance = np.asarray(relevance, dtype=float)
    cut = (
        np.zeros(len(replies), dtype=bool)
        if truncated is None
        else np.array([t == 1 for t in truncated], bool)
    )
    same, template = _elsewhere(posts, replies), _template(posts, replies)
    found = []
    for i, (post, reply) in enumerate(zip(posts, replies)):
        hits = (
            {"empty"} if is_empty(reply) else _of_text(post[: text.LONGEST], reply[: text.LONGEST])
        )
        hits |= {
            name
            for name, hit in (
                ("truncated", cut[i]),
                ("duplicate", same[i]),
                ("template", template[i]),
                ("off_topic", relevance[i] < off_topic_below),
            )
            if hit
        }
        found.append([name for name in RULES if name in hits])
    return found


def _of_text(post: str, reply: str) -> set[str]:
    """Failures that one reply and its post decide."""
    tests = {
        "parrot": is_parrot(post, reply),
        "agreement": is_agreement(reply),
        "question_bait": is_bait(reply),
        "spam": is_spam(reply),
        "toxic": is_toxic(reply),
        "script": is_foreign(post, reply),
        "invented": is_invented(post, reply),
        "leakage": bool(LEAK.search(reply)),
    }
    return {name for name, hit in tests.items() if hit}


def is_empty(reply: str) -> bool:
    return not any(c.isalnum() for c in reply) and not features.EMOJI.search(reply)


def is_parrot(post: str, reply: str) -> bool:
    tokens, of_post = features.words(reply), features.words(post)
    if len(tokens) < COPY_WORDS:
        return False  # three words of a post may be the only way to name its subject
    grams, seen = list(zip(tokens, tokens[1:], tokens[2:])), features.ngrams(of_post, 3)
    return sum(gram in seen for gram in grams) >= COPIED * len(grams)


def is_agreement(reply: str) -> bool:
    plain = " ".join(features.words(reply))
    rest, n = AGREES.subn(" ", plain)
    return (
        n > 0
        and sum(word not in features.FUNCTION for word in rest.split()) <= OWN_WORDS
        and not features.LEXICONS["negation"] & set(plain.replace("couldn't", "").split())
    )


def is_bait(reply: str) -> bool:
    asks = reply.rstrip(" .!🤔").endswith("?") or regex.search(r"(?i)to hear|let|tell", reply[-60:])
    return bool(asks and BAIT.search(" ".join(features.words(reply))))


def is_spam(reply: str) -> bool:
    return (
        len(features.LINK.findall(reply)) > LINKS
        or len(features.HASHTAG.findall(reply)) > HASHTAGS
        or len(features.EMOJI.findall(reply)) > EMOJI
        or len(features.PROMO.findall(reply)) >= PROMOS
    )


def is_toxic(reply: str) -> bool:
    plain = " ".join(features.words(reply))
    return bool(
        THREAT.search(plain)
        or INSULT.search(plain)
        or any(hashlib.sha256(word.encode()).hexdigest()[:16] in SLURS for word in plain.split())
    )


def is_foreign(post: str, reply: str) -> bool:
    letters = len(LETTER.findall(reply))
    strange = sum(
        len(script.findall(reply)) for script in SCRIPTS.values() if not script.search(post)
    )
    if letters >= 3 and strange >= letters / 2:
        return True
    tokens = features.words(reply)
    return len(tokens) >= ENGLISH_WORDS and _english(features.words(post)) and not _english(tokens)


def _english(tokens: list[str]) -> bool:
    """Holds a function word that is English alone, contractions ("she's") included."""
    return bool(
        (features.FUNCTION - {"a", "no", "me", "on", "as", "do", "to", "so"})
        & {part for token in tokens for part in token.split("'")}
    )


def is_invented(post: str, reply: str) -> bool:
    """A name is known if the post holds it; of links the domain counts, as people shorten them."""
    known = post.casefold()
    names = [name.casefold() for name in features.MENTION.findall(reply)]
    links = [
        regex.sub(r"^(?:https?:/*)?(?:www\.)?", "", link.casefold()).split("/")[0].rstrip(".,;:!?)")
        for link in features.LINK.findall(reply)
    ]
    mentioned = {name.casefold() for name in features.MENTION.findall(post)}
    return any(name not in mentioned for name in names) or any(link not in known for link in links)


def _elsewhere(posts: list[str], replies: list[str]) -> list[bool]:
    under = defaultdict(set)
    forms = [text.normalise(reply) for reply in replies]
    for post, form in zip(posts, forms):
        under[form].add(post)
    return [bool(form) and len(under[form]) > 1 for form in forms]


def _template(posts: list[str], replies: list[str]) -> list[bool]:
    """The commonest opener is the one with most replies, on ties the first in the alphabet."""
    openers = [tuple(features.words(reply)[:OPENER_WORDS]) for reply in replies]
    rows = defaultdict(list)
    for i, opener in enumerate(openers):
        if len(opener) == OPENER_WORDS:
            rows[opener].append(i)
    top = min(rows, key=lambda opener: (-len(rows[opener]), opener), default=None)
    spread = top is not None and len({posts[i] for i in rows[top]}) >= OPENER_POSTS
    common = spread and len(rows[top]) > OPENER_SHARE * len(replies)
    return [bool(common and opener == top) for opener in openers]
