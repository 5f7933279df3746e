"""The judge: a second opinion on engagement that no policy is ever trained against.

It differs from the proxy in everything a policy could exploit: fitted on the judge split alone, on word and
character n-grams instead of sentence embeddings, with its own few surface counts, by kernel regression on
controlled engagement instead of a network on shares of likes. Scores are scaled so that their differences
within a post are log-odds: P(a beats b) = sigmoid(judge(a) - judge(b)), the scale fitted on out-of-fold
predictions. Replies of other posts and shuffled words are among its examples at a fixed low value: people's replies
are all on topic and in order, so that without them it could not tell (it costs about a point of pair accuracy).

Stored as the regression's support vectors (safetensors) and the two vocabularies (JSON), so loading runs no
code from the file and takes no second fit; refitting on load would need the judge's rows beside every saved
judge."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save

from polylib import run
from polylib.config import UserError
from polylib.rewards import calibration
from polylib.rewards.conditional import negatives

WORD_OR_MARK = r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]"
TFIDF = {  # both see the reply only; relevance enters through the overlap counts below
    "word": {"analyzer": "word", "token_pattern": WORD_OR_MARK, "ngram_range": (1, 2), "min_df": 3},
    "char": {"analyzer": "char_wb", "lowercase": False, "ngram_range": (2, 4), "min_df": 4},
}
MISPLACED = re.compile(r"[.!?]\s+[a-z]")  # a sentence that ends before its last word
MAX_TERMS = 8000  # of each vocabulary, commonest first
DIMENSIONS = 30  # kept of each n-gram block
MAX_ROWS = 6000  # of the judge split that are fitted: kernel regression grows with the square
FOLDS = 4
C, EPSILON = 1.0, 0.2  # this and the next chosen on other simulated data sets than the one reported
COUNT_WEIGHT = 4.0  # the counts' weight in the kernel's distance
NEGATIVES = 1  # of each kind a post: replies of other posts, and own replies with shuffled words
NEGATIVE_TARGET = -1.0  # what such a reply is worth, in sds of controlled engagement within a post


class Judge:
    """judge(posts, replies) -> (N,) float64, mean 0 over the judge split's replies, in log-odds units.

    `pair_accuracy` is its out-of-fold accuracy within posts of the judge split, averaged over posts, `pairs` how
    many pairs it rests on."""

    name = "judge"

    def __init__(self, vectorizers: dict, arrays: dict[str, np.ndarray], card: dict[str, float]):
        self.vectorizers, self.arrays, self.card = vectorizers, arrays, card
        self.pair_accuracy, self.pairs = card["pair_accuracy"], card["pairs"]

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        raw = self._regress(_inputs(self.vectorizers, self.arrays, posts, replies))
        return (raw - self.card["mean"]) / self.card["scale"]

    def _regress(self, x: np.ndarray) -> np.ndarray:
        support, dual = self.arrays["support"], self.arrays["dual"]
        out = np.empty(len(x))
        for start in range(0, len(x), 1024):  # a block of the kernel matrix at a time
            part = x[start : start + 1024]
            distance = (part**2).sum(1)[:, None] + (support**2).sum(1) - 2 * part @ support.T
            out[start : start + 1024] = (
                np.exp(-self.card["gamma"] * distance) @ dual + self.card["intercept"]
            )
        return out

    def save(self, folder: Path) -> None:
        folder = Path(folder)
        tensors = {key: np.ascontiguousarray(value) for key, value in self.arrays.items()}
        run.atomic_write(folder / "judge.safetensors", save(tensors))
        vocabulary = {name: list(v.get_feature_names_out()) for name, v in self.vectorizers.items()}
        run.write_json(folder / "judge.json", {"card": self.card, "vocabulary": vocabulary})


def load(folder: Path) -> Judge:
    from sklearn.feature_extraction.text import TfidfVectorizer

    stored = json.loads((Path(folder) / "judge.json").read_text(encoding="utf-8"))
    arrays, vectorizers = load_file(Path(folder) / "judge.safetensors"), {}
    for name, settings in TFIDF.items():  # not the file's order: JSON keys come back sorted
        vocabulary = stored["vocabulary"][name]
        vectorizers[name] = TfidfVectorizer(**settings, sublinear_tf=True, vocabulary=vocabulary)
        vectorizers[name].idf_ = arrays[f"{name}.idf"]
    return Judge(vectorizers, arrays, stored["card"])


def fit(rows: pd.DataFrame, seed: int) -> Judge:
    """Fit on the judge split: tweet_id, thread_id, tweet, reply, reply_likes and `engagement` (likes
    controlled for post, followers and delay). Posts whose replies were all liked alike are left out: there
    the control is all that remains.

    Raises UserError with fewer than 8 posts that have replies of different engagement."""
    rows = _sample(rows[rows.groupby("tweet_id")["reply_likes"].transform("nunique") > 1], seed)
    if rows["tweet_id"].nunique() < 8:
        raise UserError(
            f"split judge has only {rows['tweet_id'].nunique()} posts whose replies differ in likes; "
            "use more data or a larger data.judge"
        )
    target = _target(rows)
    held, fold = np.zeros(len(rows)), pd.factorize(rows["thread_id"])[0] % FOLDS
    for k in range(FOLDS):
        out = fold == k
        part = _fit_regression(rows[~out], target[~out], seed)
        held[out] = part._regress(
            _inputs(part.vectorizers, part.arrays, rows["tweet"][out], rows["reply"][out])
        )
    margin, weight = calibration.margins(
        held, rows["engagement"].to_numpy(float), rows["reply_likes"].to_numpy(), rows["tweet_id"]
    )
    judge = _fit_regression(rows, target, seed)
    judge.card |= {
        "mean": float(
            judge._regress(
                _inputs(judge.vectorizers, judge.arrays, rows["tweet"], rows["reply"])
            ).mean()
        ),
        "scale": calibration.temperature(margin, weight),
        "pair_accuracy": calibration.accuracy(margin, weight),
        "pairs": len(margin),
    }
    return Judge(judge.vectorizers, judge.arrays, judge.card)


def _fit_regression(rows: pd.DataFrame, target: np.ndarray, seed: int) -> Judge:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import SVR

    replies, vectorizers, arrays = list(rows["reply"]), {}, {}
    added = negatives(rows, NEGATIVES, seed)
    for name, settings in TFIDF.items():
        vectorizers[name] = TfidfVectorizer(**settings, sublinear_tf=True, max_features=MAX_TERMS)
        counts = vectorizers[name].fit_transform(replies)
        svd = TruncatedSVD(min(DIMENSIONS, *(n - 1 for n in counts.shape)), random_state=seed).fit(
            counts
        )
        arrays[f"{name}.idf"] = vectorizers[name].idf_
        arrays[f"{name}.basis"] = svd.components_.T / svd.transform(counts).std()
    counts = _counts(vectorizers, list(rows["tweet"]), replies)
    arrays["counts.mean"], arrays["counts.sd"] = counts.mean(0), np.maximum(counts.std(0), 1e-6)
    x = _inputs(vectorizers, arrays, [*rows["tweet"], *added["tweet"]], [*replies, *added["reply"]])
    target = np.concatenate([target, np.full(len(added), NEGATIVE_TARGET)])
    gamma = 1 / (x.shape[1] * x.var())  # sklearn's "scale"; the saved judge needs the number
    svr = SVR(C=C, epsilon=EPSILON, gamma=gamma).fit(x, target)
    arrays["support"], arrays["dual"] = svr.support_vectors_, svr.dual_coef_[0]
    return Judge(
        vectorizers,
        arrays,
        {
            "gamma": float(gamma),
            "intercept": float(svr.intercept_[0]),
            "mean": 0.0,
            "scale": 1.0,
            "pair_accuracy": 0.0,
            "pairs": 0,
        },
    )


def _inputs(vectorizers: dict, arrays: dict, posts, replies) -> np.ndarray:
    posts, replies = list(posts), list(replies)
    blocks = [
        vectorizer.transform(replies) @ arrays[f"{name}.basis"]
        for name, vectorizer in vectorizers.items()
    ]
    counts = np.clip(
        (_counts(vectorizers, posts, replies) - arrays["counts.mean"]) / arrays["counts.sd"], -4, 4
    )
    return np.hstack([*blocks, COUNT_WEIGHT * counts])


def _counts(vectorizers: dict, posts: list[str], replies: list[str]) -> np.ndarray:
    """The judge's own view of form, order and overlap with the post (N, 19); shares no code with the proxy's
    features. Last come the cosines of post and reply on both vocabularies."""
    table = []
    for post, reply in zip(posts, replies):
        here, there = (set(re.findall(r"[^\W\d_]{4,}", text.lower())) for text in (reply, post))
        tokens = reply.split()
        stems, post_stems = {word[:5] for word in here}, {word[:5] for word in there}
        lower = f" {reply.lower()} "
        table.append(
            [
                np.sqrt(len(reply)),
                len(tokens),
                len(reply) / max(len(tokens), 1),
                reply.count("?"),
                reply.count("!"),
                sum(reply.count(c) for c in ".;:") / max(len(tokens), 1),
                reply.count(",") / max(len(tokens), 1),
                sum(ord(c) > 0x2190 for c in reply),
                reply.count("#") + reply.count("http") + reply.count("@"),
                sum(token.isupper() and len(token) > 1 for token in tokens),
                sum(map(str.isdigit, reply)),
                lower.count(" i ")
                + lower.count(" my ")
                + lower.count(" we ")
                + lower.count(" our "),
                lower.count(" you ") + lower.count(" your "),
                len(stems & post_stems) / max(len(stems), 1),
                reply[:1].islower(),
                reply.rstrip()[-1:] in ".!?…",
                len(MISPLACED.findall(reply)),
            ]
        )
    same = [
        np.asarray(
            vectorizer.transform(posts).multiply(vectorizer.transform(replies)).sum(axis=1)
        ).ravel()
        for vectorizer in vectorizers.values()
    ]
    return np.hstack([np.array(table, dtype=np.float64).reshape(-1, 17), np.stack(same, axis=1)])


def _target(rows: pd.DataFrame) -> np.ndarray:
    """Controlled engagement, the same for a post's equally liked replies (see calibration.tied; a regression needs
    values, so their mean and no ranks), centred within the post, over its sd and clipped: one viral reply is not
    ten good ones."""
    values = rows["engagement"] - rows.groupby("tweet_id")["engagement"].transform("mean")
    values = calibration.tied(
        values.to_numpy(dtype=float), rows["reply_likes"].to_numpy(), rows["tweet_id"]
    )
    return np.clip(values / max(float(values.std(ddof=1)), 1e-9), -3, 3)


def _sample(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Whole threads in random order until MAX_ROWS is reached."""
    threads = np.random.default_rng(seed).permutation(np.sort(rows["thread_id"].unique()))
    if len(rows) <= MAX_ROWS:
        return rows.reset_index(drop=True)
    sizes = rows.groupby("thread_id").size()[threads].cumsum()
    kept = threads[: max(1, int((sizes <= MAX_ROWS).sum()))]
    return rows[rows["thread_id"].isin(kept)].reset_index(drop=True)
