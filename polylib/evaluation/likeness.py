"""Do a model's replies look like people's? A classifier that tries to tell, and a distance between distributions.

    likeness.measure(own, test_posts, cfg.evaluation.seed)      # section `likeness` of metrics.json
    likeness.people(test_posts, cfg.evaluation.seed)            # people against people, the same code

C2ST, the classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): area under the ROC curve of a
logistic regression on held-out posts; .5 = cannot be told apart, 1 = always. MMD^2 (Gretton et al. 2012, eq. 3):
unbiased squared distance of mean embeddings, RBF kernel; 0 = same distribution, negative values are its noise. Both
look at the wording (TF-IDF of character 3- to 5-grams, reduced by SVD), which no policy was trained on and which hardly
sees length.

Replies to one post resemble one another, so the post is the unit: a draw takes one human and one model reply of each,
posts fall into folds whole, and permutations exchange labels within a post only. They move the whole set of labels, not
those of one draw: a test that permutes every draw by itself takes ten draws of one reply for ten replies.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from polylib.evaluation.text import LONGEST
from polylib.metrics import Undefined

DIMENSIONS = 20  # of the reduced TF-IDF: a fold of the smallest study trains on some 50 replies
FOLDS = 5
DRAWS = 10  # of one human and one model reply a post, for C2ST; MMD averages over all in closed form
PERMUTATIONS = 199  # smallest p .005
RIDGE = 1.0  # L2 penalty, scikit-learn's C = 1
STEPS = 12  # of Newton's method at most; it doubles its digits at each


def measure(replies: pd.DataFrame, posts: list, seed: int) -> dict:
    """C2ST and MMD^2 of `replies` (post_id, reply; one temperature) against all human replies to the same `posts`.

    Returns c2st_auc, c2st_p, mmd2, mmd2_p (permutation, one-sided: more different than chance), posts, human_replies,
    model_replies, dimensions, permutations; {"value": None, "reason": ...} where they are not defined. The same seed
    gives the same numbers. Raises ValueError for replies at several temperatures."""
    if "temperature" in replies and replies["temperature"].nunique(dropna=False) > 1:
        raise ValueError("likeness is that of one temperature; pass the rows of one")
    said = {post: list(part["reply"]) for post, part in replies.groupby("post_id")}
    groups = [(list(post.replies), said[post.id]) for post in posts if post.id in said and len(post.replies)]
    return _compare(groups, seed)


def people(posts: list, seed: int) -> dict:
    """`measure` of people against people: the replies to each post (two or more) split into halves at random."""
    rng, groups = np.random.default_rng(seed), []
    for post in posts:
        order = rng.permutation(len(post.replies))
        half = len(order) // 2
        if half:
            groups.append(([post.replies[i] for i in order[:half]], [post.replies[i] for i in order[half:]]))
    return _compare(groups, seed)


def _compare(groups: list[tuple[list[str], list[str]]], seed: int) -> dict:
    sizes = {"posts": len(groups), "human_replies": sum(len(a) for a, _ in groups),
             "model_replies": sum(len(b) for _, b in groups)}
    try:
        vectors = embed([text for human, model in groups for text in (*human, *model)], seed)
        post = np.repeat(np.arange(len(groups)), [len(a) + len(b) for a, b in groups])
        human = np.concatenate([np.arange(len(a) + len(b)) < len(a) for a, b in groups])
        orders = shuffles(post, PERMUTATIONS, seed)
        auc, auc_p = c2st(vectors, post, human, orders, seed)
        distance, distance_p = mmd2(vectors, post, human, orders)
    except Undefined as error:
        nothing = {"value": None, "reason": str(error)}
        return dict.fromkeys(("c2st_auc", "c2st_p", "mmd2", "mmd2_p"), nothing) | sizes
    return {"c2st_auc": auc, "c2st_p": auc_p, "mmd2": distance, "mmd2_p": distance_p, **sizes,
            "dimensions": vectors.shape[1], "permutations": PERMUTATIONS}


def embed(texts: list[str], seed: int) -> np.ndarray:
    """(N, d) float64, d <= DIMENSIONS: TF-IDF of character n-grams, truncated SVD. Fitted on all `texts` without regard
    to who wrote them, so that permutations of the labels leave it as it is. Undefined for fewer than 4 texts."""
    if len(texts) < 4:
        raise Undefined("fewer than 4 replies")
    counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    try:
        table = counts.fit_transform([text[:LONGEST] for text in texts])
    except ValueError:  # scikit-learn's empty vocabulary
        raise Undefined("no reply has a letter") from None
    size = min(DIMENSIONS, len(texts) - 1, table.shape[1] - 1)
    if size < 1:
        raise Undefined("the replies have no two n-grams")
    return TruncatedSVD(size, random_state=seed).fit_transform(table)


def shuffles(post: np.ndarray, number: int, seed: int) -> np.ndarray:
    """(1 + number, N) orders of the N replies, shuffled within each post; the first leaves them as they are."""
    keys = np.random.default_rng(seed).random((number + 1, len(post)))
    keys[0] = np.arange(len(post)) / len(post)
    return np.lexsort((keys, np.broadcast_to(post, keys.shape)), axis=-1)


def c2st(vectors: np.ndarray, post: np.ndarray, human: np.ndarray, orders: np.ndarray, seed: int,
         draws: int = DRAWS) -> tuple[float, float]:
    """(AUC on held-out posts, mean over folds and draws; permutation p).

    vectors (N, d), post (N,) 0, 0, ..., 1, ... ascending, human (N,) bool, orders (B, N) from `shuffles`. Undefined for
    fewer than 2 FOLDS posts: a fold then holds one pair."""
    n = post.max() + 1 if len(post) else 0
    if n < 2 * FOLDS:
        raise Undefined(f"C2ST needs {2 * FOLDS} posts, found {n}")
    spread = vectors.std(axis=0)
    x = (vectors - vectors.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    x = np.column_stack([x, np.ones(len(x))])
    rng = np.random.default_rng(seed)
    fold = rng.permutation(n) % FOLDS
    slots = [[np.flatnonzero((post == i) & (human == side)) for i in range(n)] for side in (True, False)]
    total = np.zeros(len(orders))
    for _ in range(draws):
        pick = [np.array([rng.choice(places) for places in side]) for side in slots]
        a, b = (x[orders[:, side]] for side in pick)  # (B, n, d + 1) replies in the human and in the model slots
        for k in range(FOLDS):
            train, test = fold != k, fold == k
            w = fit(np.concatenate([a[:, train], b[:, train]], axis=1), np.repeat([1.0, 0.0], train.sum()))
            gap = np.einsum("bnd,bd->bn", a[:, test], w)[:, :, None] - np.einsum("bnd,bd->bn", b[:, test], w)[:, None]
            total += ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(1, 2))
    auc = total / (draws * FOLDS)
    return float(auc[0]), _p(auc)


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """B logistic regressions at once: x (B, n, d), the last column ones and not penalised, y (n,) 0 or 1 -> (B, d).

    Newton's method on the negative log-likelihood + RIDGE/2 |w|^2. Raises FloatingPointError if it does not settle."""
    penalty = RIDGE * np.append(np.ones(x.shape[-1] - 1), 0.0)
    w = np.zeros((len(x), x.shape[-1]))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(np.matmul(x, w[..., None])[..., 0], -30, 30)))
        gradient = np.matmul((p - y)[:, None], x)[:, 0] + penalty * w
        if np.abs(gradient).max() < 1e-6:
            return w
        curvature = np.matmul(np.swapaxes(x * (p * (1 - p))[..., None], 1, 2), x) + np.diag(penalty)
        w = w - np.linalg.solve(curvature, gradient[..., None])[..., 0]
    raise FloatingPointError(f"C2ST: Newton's method has not settled, gradient {np.abs(gradient).max():.2g}")


def mmd2(vectors: np.ndarray, post: np.ndarray, human: np.ndarray, orders: np.ndarray) -> tuple[float, float]:
    """(unbiased MMD^2, permutation p); arguments as `c2st`. Mean over all draws of one human reply x_i and one model
    reply y_i a post of sum_{i != j} [k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)] / (n (n - 1)).

    Pairs of one post are left out altogether: they resemble one another whoever wrote them. k(x, y) =
    exp(-|x - y|^2 / 2 s^2), s the median distance of two replies. Undefined for one post, or replies all alike."""
    n = post.max() + 1 if len(post) else 0
    if n < 2:
        raise Undefined(f"MMD needs 2 posts, found {n}")
    square = (vectors**2).sum(axis=1)
    squared = np.maximum(square[:, None] + square[None] - 2 * vectors @ vectors.T, 0)
    distances = squared[np.triu_indices(len(vectors), 1)]
    positive = distances[distances > 1e-12]
    if not len(positive):
        raise Undefined("all replies are alike")
    kernel = np.exp(-squared / (2 * np.median(np.sqrt(positive)) ** 2))
    kernel[post[:, None] == post[None]] = 0.0
    sides = [np.bincount(post, human == side, minlength=n)[post] for side in (True, False)]
    sign = np.where(human, 1 / np.maximum(sides[0], 1), -1 / np.maximum(sides[1], 1))
    weights = np.zeros(orders.shape)
    np.put_along_axis(weights, orders, np.broadcast_to(sign, orders.shape), axis=1)
    values = ((weights @ kernel) * weights).sum(axis=1) / (n * (n - 1))
    return float(values[0]), _p(values)


def _p(values: np.ndarray) -> float:
    """Share of arrangements at least as extreme as the first, itself among them."""
    return float((values >= values[0] - 1e-12).mean())
