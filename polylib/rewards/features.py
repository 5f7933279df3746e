"""What a reply looks like, in numbers: length, marks, words of certain kinds, overlap with its post,
sentiment.

Sentence embeddings are blind to these (a witty and a weak reply to one post are near in meaning), so every
learned reward reads them too. Each feature is a count, a share or a flag that a person can check by hand."""

import re
from functools import lru_cache

import numpy as np
import regex

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+(?:[.,:]\d+)*")
LINK = re.compile(r"(?:https?|www\.)\S*|\b[\w-]+\.(?:com|net|org|io|co)\b(?:/\S*)?", re.I)
HASHTAG = re.compile(r"(?<!\w)#\w+")
MENTION = re.compile(r"(?<!\w)@\w+")
EMOJI = regex.compile(r"(?=\p{Extended_Pictographic}|\p{Regional_Indicator})\X")

LEXICONS = {  # share of a reply's words that are in each
    "first": frozenset("i me my mine myself i'm i've i'd i'll we us our ours we're we've".split()),
    "second": frozenset("you your yours yourself you're you've you'd you'll u ur".split()),
    "past": frozenset(
        "was were had did went said told took got came made gave found thought knew saw left kept put".split()
    ),
    "contrast": frozenset(
        "but though although however actually unless except rather instead yet".split()
    ),
    "negation": frozenset(
        "no not never nobody nothing none don't doesn't didn't won't can't isn't wasn't wouldn't".split()
    ),
    "modal": frozenset("would could should might may can will must".split()),
    "warm": frozenset(
        "thank thanks thankyou congrats congratulations proud love lovely hope sorry hugs well brilliant".split()
    ),
}
QUESTION = frozenset("what why how who when where which whose did does do is are".split())
FUNCTION = frozenset(
    """a an the and or but of to in on at by for from with as is are was were be been it its this that
    these those i you he she we they me my your his her our their so if not no do does did have has had
    will would can could there here what when who how why than then just about into over out up down all
    any some""".split()
)

# Whole replies, or nearly, that fit under any post.
GENERIC = re.compile(
    r"""\b(?: so\ true | this\ is\ so | love\ (?:this|it|that) | great\ (?:post|point|thread|stuff)
    | nice\ (?:one|post) | well\ said | well\ done | agreed? | couldn['’]?t\ agree\ more
    | thanks\ for\ (?:sharing|posting) | same(?:\ here)? | relatable | facts | exactly | lol
    | lmao | haha+ | wow | amazing | awesome | interesting | totally | absolutely
    | good\ (?:point|luck|for\ you|one|stuff) | 100\s?% | fair\ (?:point|enough) | this[.!]*$
    | mood | no\ way | omg | cool | nice | yes+ | yep | nope | ok(?:ay)? | true | who\ knows
    | it\ is\ what )\b""",
    re.I | re.X,
)
PROMO = re.compile(
    r"""\b(?: check\ (?:out|my) | link\ in | dm\ (?:me|us|for) | discount | promo | giveaway | %\ off
    | sign\ up | follow\ (?:me|us|for) | subscribe
    | free\ (?:trial|shipping|guide|course|ebook|delivery) | use\ code | code\ [A-Z0-9]{4,}
    | click | limited | order\ now | my\ (?:course|channel|page|shop|book|newsletter)
    | shop\ (?:now|our) | offer | sale | today\ only | bio )\b""",
    re.I | re.X,
)

NAMES = tuple(
    """log_chars log_words word_length long_words sentences words_per_sentence question ends_question
    exclamation comma period ellipsis dash colon quote paren digits caps all_caps lower_start no_end
    emoji hashtags links mentions first second starts_first past contrast negation modal
    starts_question_word warm function_words type_token repeated_char generic generic_share promo copy1
    copy3 content_overlap length_ratio vader vader_gap vader_neg vader_pos""".split()
)


def words(text: str) -> list[str]:
    """Lower-case word and number tokens of a text, links, tags and mentions left out; typographic apostrophes
    folded."""
    bare = MENTION.sub(" ", HASHTAG.sub(" ", LINK.sub(" ", text)))
    return [token.replace("’", "'") for token in WORD.findall(bare.lower())]


def surface(posts: list[str], replies: list[str]) -> np.ndarray:
    """Surface features (N, len(NAMES)) float64 of each reply under its post, columns in the order of `NAMES`.

    Counts grow with length, so most are per word or log1p; nothing is standardised here."""
    rows = [_row(post, reply) for post, reply in zip(posts, replies, strict=True)]
    return np.array([[row[name] for name in NAMES] for row in rows], dtype=np.float64).reshape(
        -1, len(NAMES)
    )


def _row(post: str, reply: str) -> dict[str, float]:
    of_post, tokens, polarity = _post(post), words(reply), sentiment(reply)
    n, chars, end = len(tokens), len(reply), reply.rstrip()
    per_word = 1 / max(n, 1)
    kinds, grams = set(tokens), ngrams(tokens, 3)
    content = kinds - FUNCTION
    first = tokens[0] if tokens else ""
    letters = sum(map(str.isalpha, reply))
    sentences = max(len(re.findall(r"[.!?…]+(?=\s|$)", reply)), 1)
    generic = GENERIC.findall(reply)
    shares = {
        name: sum(token in lexicon for token in tokens) * per_word
        for name, lexicon in (LEXICONS | {"function_words": FUNCTION}).items()
    }
    # fmt: off
    return {
        "log_chars": np.log1p(chars), "log_words": np.log1p(n),
        "word_length": sum(map(len, tokens)) * per_word,
        "long_words": sum(len(t) > 6 for t in tokens) * per_word, "sentences": np.log1p(sentences),
        "words_per_sentence": n / sentences, "question": "?" in reply, "ends_question": end.endswith("?"),
        "exclamation": np.log1p(reply.count("!")), "comma": reply.count(",") * per_word,
        "period": np.log1p(reply.count(".")), "ellipsis": "..." in reply or "…" in reply,
        "dash": bool(re.search(r"\s[-–—]\s|—", reply)), "colon": ":" in reply,
        "quote": bool(re.search(r"[\"“”]|(?<!\w)['‘]\w", reply)),
        "paren": "(" in reply, "digits": sum(t[0].isdigit() for t in tokens) * per_word,
        "caps": sum(map(str.isupper, reply)) / max(letters, 1),
        "all_caps": np.log1p(len(re.findall(r"\b[A-Z]{3,}\b", reply))),
        "lower_start": next(filter(str.isalpha, reply), "A").islower(),
        "no_end": not end.endswith((".", "!", "?", "…", '"', "”", ")")),
        "emoji": np.log1p(len(EMOJI.findall(reply))), "hashtags": np.log1p(len(HASHTAG.findall(reply))),
        "links": np.log1p(len(LINK.findall(reply))), "mentions": np.log1p(len(MENTION.findall(reply))),
        **shares, "starts_first": first in LEXICONS["first"], "starts_question_word": first in QUESTION,
        "type_token": len(kinds) * per_word, "repeated_char": bool(re.search(r"(\w)\1{2,}|([!?])\2{1,}", reply)),
        "generic": len(generic), "generic_share": min(1.0, sum(map(len, generic)) / max(chars, 1)),
        "promo": len(PROMO.findall(reply)), "copy1": len(kinds & of_post["words"]) / max(len(kinds), 1),
        "copy3": len(grams & of_post["grams"]) / max(len(grams), 1),
        "content_overlap": len(content & of_post["content"]) / max(len(content), 1),
        "length_ratio": np.log1p(chars) - of_post["log_chars"], "vader": polarity["compound"],
        "vader_gap": abs(polarity["compound"] - of_post["compound"]), "vader_neg": polarity["neg"],
        "vader_pos": polarity["pos"],
    }
    # fmt: on


def ngrams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(tokens[i:] for i in range(n))))


@lru_cache(maxsize=50_000)
def sentiment(text: str) -> dict[str, float]:
    """VADER polarity of a text: neg, neu, pos in [0, 1] and compound in [-1, 1] (Hutto & Gilbert 2014)."""
    return _vader().polarity_scores(text[:2000])  # its cost grows with the square of the length


@lru_cache(maxsize=1)
def _vader():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=4096)
def _post(post: str) -> dict:
    tokens = words(post)
    return {
        "words": set(tokens),
        "grams": ngrams(tokens, 3),
        "content": set(tokens) - FUNCTION,
        "log_chars": np.log1p(len(post)),
        "compound": sentiment(post)["compound"],
    }
