"""Replies grouped by their post: the likelihood of likes given each post's total, what followers and delay explain of
them by themselves, and replies that nobody wrote under the post.

People's replies are all on topic and in order, so a reward fitted to them alone never learns that this is worth
anything. Replies of other posts and replies with their words shuffled are added to a post with no likes
(and none has more than the post's worst reply, where scores go below 0)."""

import numpy as np
import pandas as pd
import torch

FOLDS = 5
SHUFFLED_WORDS = 3  # at least; the order of two words can be right by chance half of the time


class Threads:
    """Replies grouped by parent: share of the parent's likes and offset, both (N,), in the order of `rows`. A score
    below 0 has no share: it counts 0."""

    def __init__(self, rows: pd.DataFrame, offset: np.ndarray):
        group = pd.factorize(rows["tweet_id"])[0]
        liked = np.maximum(rows["reply_likes"].to_numpy(dtype=float), 0)
        total = np.bincount(group, liked)[group]
        self.share = torch.from_numpy(
            np.divide(liked, total, out=np.zeros_like(liked), where=total > 0)
        ).float()
        self.offset = torch.from_numpy(offset).float()
        self.sizes = np.bincount(group)
        self.members = np.split(np.argsort(group, kind="stable"), np.cumsum(self.sizes)[:-1])
        self.informative = int(((self.sizes > 1) & (np.bincount(group, liked) > 0)).sum())

    def batch(self, parents: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers of these parents' replies, and for each row which of the parents it belongs to."""
        rows = np.concatenate([self.members[p] for p in parents])
        return torch.from_numpy(rows), torch.from_numpy(
            np.repeat(np.arange(len(parents)), self.sizes[parents])
        )


def nll(score: torch.Tensor, share: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """-sum_i share_i log softmax_within_group(score)_i, mean over groups. All (N,); groups are numbered
    0..G-1. Groups without likes have share 0 and add nothing to the sum."""
    groups = int(group.max()) + 1
    top = score.new_full((groups,), -torch.inf).scatter_reduce(0, group, score.detach(), "amax")
    total = score.new_zeros(groups).index_add(0, group, torch.exp(score - top[group]))
    return -(share * (score - top[group] - torch.log(total)[group])).sum() / groups


def offsets(rows: pd.DataFrame, reference: pd.DataFrame | None = None) -> np.ndarray:
    """Log-rate (N,) that followers and delay explain by themselves, mean 0 within each parent; 0 where both
    are null.

    The coefficients of [log1p followers, log1p delay, its square] maximise the same conditional likelihood,
    without any text. With `reference` they come from there; without, by cross-fitting: a thread's
    coefficients never saw it."""
    if reference is not None:
        return _nuisance(rows) @ _nuisance_fit(reference)
    fold = pd.factorize(rows["thread_id"])[0] % FOLDS
    offset, z = np.zeros(len(rows)), _nuisance(rows)
    for k in np.unique(fold):
        others = rows[fold != k]
        if len(others):
            offset[fold == k] = z[fold == k] @ _nuisance_fit(others)
    return offset


def _nuisance(rows: pd.DataFrame) -> np.ndarray:
    """(N, 3), centred within the parent. A null takes its parent's mean, so it neither gains nor loses."""
    frame = pd.DataFrame(index=range(len(rows)))
    for column, name in (
        ("reply_author_followers", "followers"),
        ("reply_time_diff_seconds", "delay"),
    ):
        known = rows[column] if column in rows else pd.Series(np.nan, index=rows.index)
        frame[name] = np.log1p(pd.to_numeric(known).astype(float).clip(lower=0).to_numpy())
    frame["delay2"] = (
        frame["delay"] - 7.0
    ) ** 2  # 7 = 18 minutes: keeps the square from repeating the linear term
    centred = frame - frame.groupby(rows["tweet_id"].to_numpy()).transform("mean")
    return centred.fillna(0.0).to_numpy()


def _nuisance_fit(rows: pd.DataFrame) -> np.ndarray:
    """Newton's method on the convex conditional likelihood; the small ridge decides columns that do not
    vary."""
    z, data = _nuisance(rows), Threads(rows, np.zeros(len(rows)))
    group, share = pd.factorize(rows["tweet_id"])[0], data.share.double().numpy()
    liked = np.bincount(group, share)[group]  # 1 for parents with a like, else 0
    beta = np.zeros(z.shape[1])
    for _ in range(20):
        rate = np.exp(np.clip(z @ beta, -30, 30))
        p = liked * rate / np.bincount(group, rate)[group]
        zbar = np.stack([np.bincount(group, p * column) for column in z.T], axis=1)[group]
        gradient = z.T @ (share - p) - beta
        hessian = (z - zbar).T @ ((z - zbar) * p[:, None]) + np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta += step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-8:
            break
    return beta


def negatives(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """For every post of `rows`, up to n replies of other threads and up to n of its own with the words shuffled.

    Columns tweet_id, thread_id, tweet, reply, reply_likes = 0 (the post's lowest score
    if that is below) and kind (shuffled_post | shuffled_words); followers and delay are absent, so they neither help
    nor harm. Fewer than n where a post has fewer replies of three words, or there is no other thread."""
    rng, lines = np.random.default_rng(seed), []
    threads, replies = rows["thread_id"].to_numpy(), rows["reply"].to_numpy(dtype=object)
    likes = rows["reply_likes"].to_numpy()
    context = ["tweet_id", "thread_id", "tweet"]
    for own in rows.groupby("tweet_id", sort=True).indices.values():
        post = rows.iloc[own[0]][context].to_dict()
        drawn = rng.integers(len(rows), size=8 * n)
        foreign = [replies[k] for k in drawn if threads[k] != post["thread_id"]][:n]
        long = [k for k in own if len(set(replies[k].split())) >= SHUFFLED_WORDS]
        chosen = rng.choice(long, size=min(n, len(long)), replace=False) if long else []
        worst = min(0, int(likes[own].min()))
        mixed = [_shuffled(replies[k], rng) for k in chosen]
        for kind, texts in (("shuffled_post", foreign), ("shuffled_words", mixed)):
            lines += [post | {"reply": text, "reply_likes": worst, "kind": kind} for text in texts]
    return pd.DataFrame(lines, columns=[*context, "reply", "reply_likes", "kind"])


def _shuffled(reply: str, rng: np.random.Generator) -> str:
    """The words in another order than they came in."""
    words = reply.split()
    while (order := rng.permutation(words).tolist()) == words:
        pass
    return " ".join(order)
