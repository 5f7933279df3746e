"""Splits by thread, the two-phase halves, and engagement with post, followers and delay taken out.

Threads that share a (nearly) equal post or reply travel together, so that no text of one split has a near
copy in another. The control for followers and delay never sees a text.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import Ridge
from sklearn.preprocessing import SplineTransformer

from polylib.config import DataConfig
from polylib.data import text as texts
from polylib.data.pairs import signed_log
from polylib.run import UserError

SPLITS = ("train", "validation", "test", "judge")
FOLDS = 5
QUARTILES = (0.25, 0.5, 0.75)


def assign(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Add split, phase, engagement and quartile to clean rows; deterministic in split_seed, blind to row
    order.

    split: train | validation | test | judge, whole clusters of threads, by the fractions of `cfg.data`.
    phase: sft | rl for train ("" elsewhere), halves of each quartile's clusters.
    engagement: see `controlled_engagement`; mean 0 within every post.
    quartile: 1-4, one value a thread, of its mean signed_log(likes) against the quartile edges of all training
    threads (computed before the halves are drawn, so that balance between them can fail and be seen). Raises
    UserError when the fractions do not add up to 1 or there are fewer clusters than splits."""
    wanted = np.array([data.train, data.validation, data.test, data.judge])
    if abs(wanted.sum() - 1) > 1e-6 or (wanted < 0).any() or data.train <= 0:
        raise UserError(
            f"data: train, validation, test, judge are {wanted.tolist()}; they must add up to 1"
        )
    rows = rows.sort_values(["thread_id", "tweet_id", "reply_id"], ignore_index=True)
    cluster = clusters(rows, data.near_duplicate)
    sizes = rows.groupby(cluster)["thread_id"].nunique()
    if len(sizes) < 2 * (wanted > 0).sum():
        raise UserError(
            f"only {len(sizes)} independent threads are left for {(wanted > 0).sum()} splits; "
            "use more data or loosen the thresholds under data: in params"
        )
    split_of = _fill(sizes, wanted, data.split_seed)
    rows["split"] = cluster.map(split_of.map(lambda at: SPLITS[at]))
    rows["engagement"] = controlled_engagement(rows, cluster, data.split_seed)
    rows["quartile"] = _quartiles(rows)
    rows["phase"] = _phases(rows, cluster, data.split_seed)
    return rows


def clusters(rows: pd.DataFrame, near_duplicate: float) -> pd.Series:
    """The cluster of every row, named by its smallest thread id: connected components of threads over exact
    and near duplicates among all posts and replies."""
    table = pd.DataFrame(
        {
            "text": np.concatenate(
                [rows["tweet"].to_numpy(dtype=object), rows["reply"].to_numpy(dtype=object)]
            ),
            "thread": np.tile(pd.factorize(rows["thread_id"])[0], 2),
        }
    )
    table = table.drop_duplicates(["text", "thread"])
    word, keys = pd.factorize(np.array([texts.key(t) for t in table["text"]], dtype=object))
    i, j = texts.similar_pairs(keys.tolist(), near_duplicate)
    threads = rows["thread_id"].nunique()
    # bipartite graph: nodes are threads, then texts; a thread touches its texts, near texts touch each other
    head = np.concatenate([table["thread"].to_numpy(), threads + i])
    tail = np.concatenate([threads + word, threads + j])
    nodes = threads + len(keys)
    graph = coo_matrix((np.ones(len(head), dtype=np.int8), (head, tail)), shape=(nodes, nodes))
    label = connected_components(graph, directed=False)[1][:threads]
    of_row = pd.Series(label[pd.factorize(rows["thread_id"])[0]], index=rows.index)
    return rows["thread_id"].groupby(of_row).transform("min")


def controlled_engagement(rows: pd.DataFrame, cluster: pd.Series, seed: int) -> np.ndarray:
    """Within-post residual of `signed_log` likes after author followers and delay, shape (N,), natural-log units.

    y_ij = a_j + b log1p(followers_ij) + g(log1p delay_ij) + e_ij with a fixed effect a_j for each post,
    removed by centring y and covariates within posts (Frisch & Waugh 1933); g a cubic spline with knots at
    delay quantiles. Every e_ij comes from a fit that did not see its thread (cross-fitting, Chernozhukov et
    al. 2018): training rows from the other folds of training clusters, all other rows from all training rows.
    A covariate that is never known is left out; where one is missing, its centred value is 0. A post with a
    single reply has engagement 0."""
    train = (rows["split"] == "train").to_numpy()
    y = _centred(signed_log(rows["reply_likes"])[:, None], rows["tweet_id"])[:, 0]
    x = _covariates(rows, train)
    if x.shape[1] == 0:
        return y
    x = _centred(x, rows["tweet_id"])
    fold = np.where(train, (texts.seeded_hash(cluster, seed + 1) * FOLDS).astype(int), FOLDS)
    residual = y.copy()  # where nothing can be fitted
    for held in range(FOLDS + 1):
        at, fit = fold == held, train & (fold != held)
        if at.any() and fit.any():
            # a touch of ridge, because the centred spline basis is nearly collinear
            model = Ridge(alpha=0.01, fit_intercept=False).fit(x[fit], y[fit])
            residual[at] = y[at] - model.predict(x[at])
    return _centred(residual[:, None], rows["tweet_id"])[:, 0]


def _covariates(rows: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """Columns (N, c), NaN where unknown; nothing here comes from a text."""
    columns = []
    followers = np.log1p(rows["reply_author_followers"].to_numpy(dtype=float))
    delay = np.log1p(rows["reply_time_diff_seconds"].to_numpy(dtype=float))
    if np.isfinite(followers[train]).any():
        columns.append(followers[:, None])
    known = np.isfinite(delay)
    if np.unique(delay[train & known]).size >= 10:  # fewer distinct delays cannot carry a spline
        spline = SplineTransformer(
            n_knots=5, degree=3, knots="quantile", extrapolation="constant", include_bias=False
        )
        spline.fit(delay[train & known, None])
        basis = np.full((len(rows), spline.n_features_out_), np.nan)
        basis[known] = spline.transform(delay[known, None])
        columns.append(basis)
    elif np.isfinite(delay[train]).any():
        columns.append(delay[:, None])
    return np.hstack(columns) if columns else np.zeros((len(rows), 0))


def _centred(x: np.ndarray, group: pd.Series) -> np.ndarray:
    frame = pd.DataFrame(x, index=group.index)
    return (frame - frame.groupby(group).transform("mean")).fillna(0.0).to_numpy()


def _fill(sizes: pd.Series, wanted: np.ndarray, seed: int) -> pd.Series:
    """Cluster -> index into SPLITS: large clusters first, then hash order, each to the split that lacks
    most."""
    order = np.lexsort(
        (texts.seeded_hash(sizes.index, seed), -sizes.to_numpy() * (sizes.to_numpy() > 1))
    )
    lacking = wanted * sizes.sum()
    chosen = np.empty(len(sizes), dtype=int)
    for at in order:
        chosen[at] = np.argmax(lacking)
        lacking[chosen[at]] -= sizes.iloc[at]
    return pd.Series(chosen, index=sizes.index)


def _quartiles(rows: pd.DataFrame) -> np.ndarray:
    level = pd.Series(signed_log(rows["reply_likes"])).groupby(rows["thread_id"].to_numpy()).mean()
    train = rows.loc[rows["split"] == "train", "thread_id"].unique()
    edges = np.quantile(level[train], QUARTILES)
    return 1 + np.searchsorted(edges, level[rows["thread_id"]].to_numpy(), side="left")


def _phases(rows: pd.DataFrame, cluster: pd.Series, seed: int) -> np.ndarray:
    """Alternate sft, rl over the clusters of each quartile in hash order; whole clusters, so the halves share
    no near duplicates either."""
    train = rows["split"] == "train"
    quartile = rows[train].groupby(cluster[train])["quartile"].median().round().astype(int)
    order = pd.DataFrame(
        {"quartile": quartile, "hash": texts.seeded_hash(quartile.index, seed + 2)}
    )
    order = order.sort_values(["quartile", "hash"])
    # alternating through the sorted list keeps each quartile and the whole balanced to within one cluster
    phase = pd.Series(np.where(np.arange(len(order)) % 2, "rl", "sft"), index=order.index)
    return np.where(train, cluster.map(phase), "")


def assert_disjoint(rows: pd.DataFrame, near_duplicate: float = 0.9) -> None:
    """AssertionError naming the first thread, exact or near duplicate text that two splits share."""
    splits = rows.groupby("thread_id")["split"].nunique()
    if (splits > 1).any():
        raise AssertionError(f"thread {splits[splits > 1].index[0]} is in more than one split")
    table = pd.concat(
        [
            rows[["split", "tweet"]].rename(columns={"tweet": "text"}),
            rows[["split", "reply"]].rename(columns={"reply": "text"}),
        ]
    ).drop_duplicates()
    table["key"] = [texts.key(t) for t in table["text"]]
    table = table.drop_duplicates(["split", "key"], ignore_index=True)
    i, j = texts.similar_pairs(table["key"].tolist(), near_duplicate)
    split = table["split"].to_numpy()
    across = split[i] != split[j]
    if across.any():
        a, b = i[across][0], j[across][0]
        raise AssertionError(
            f"{across.sum()} near duplicates across splits, the first "
            f"{table['text'][a][:60]!r} in {split[a]} and "
            f"{table['text'][b][:60]!r} in {split[b]}"
        )
