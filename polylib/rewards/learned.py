"""The engagement model: which of the replies under one post would collect the larger share of its likes?

Likes of reply i under post j are taken as Poisson(exp(a_j + r(x, y) + o_ij)). Given a post's total, its
counts are multinomial with softmax_i(r + o): the post's popularity a_j cancels exactly (McFadden 1974; for
two replies this is Bradley-Terry with soft labels). Only shares of likes enter, each post once, so
over-dispersed totals carry no weight and multiplying a post's likes by any number changes nothing. o is what
the author's followers and the delay explain by themselves; its coefficients come from other threads
(cross-fitting) and it is dropped when a reply is scored. Each post counts once: a thread of a thousand replies is one
term of the mean, and so is a thread of two.

Left out on purpose: products and differences of the embeddings and n-gram inputs (no gain on held-out threads
over form and cosine, and n-grams are the judge's), tempered shares (likes^t, t < 1: less accurate for every t
tried), weights of posts by their total likes (no gain beyond noise on the corpus and on real threads), wider or
linear networks (no gain beyond noise on the corpus, not tried elsewhere), Bradley-Terry on pairs and squared error of
likes over the post's likes (no gain beyond noise on the corpus and on two real data sets), a penalty on the members'
disagreement (never used)."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save

from polylib import run
from polylib.config import RewardModelConfig, UserError
from polylib.rewards import features
from polylib.rewards.conditional import Threads, negatives, nll, offsets

DROPOUT = 0.3
PARENTS_PER_BATCH = 32
PATIENCE = 8  # epochs without a better validation loss
COMPONENTS = (
    16  # principal directions kept of post and reply; more does worse on held-out corpus threads
)
CLIP = 4.0  # a policy's odd reply must not buy reward by leaving the range seen in training
CENTRE = 1e-2  # pull towards 0: the softmax does not fix the level f(post) of the scores


class EngagementReward:
    """reward(posts, replies) -> (N,) float64: ensemble mean, mean 0 and sd 1 over the human training replies.

    card: blocks, hidden, members, features, negatives, cut_to_zero; mean and sd of the ensemble mean in its own units,
    centre and spread of what is then left."""

    name = "learned"

    def __init__(
        self,
        encoder,
        transform: dict[str, dict[str, np.ndarray]],
        members: list[torch.nn.Module],
        card: dict,
    ):
        self.encoder, self.transform, self.members, self.card = encoder, transform, members, card

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        return self._standardised(self._scores(posts, replies))

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """Columns `learned` and `learned_sd`, the members' disagreement in sds of human replies."""
        scores = self._scores(posts, replies)
        return pd.DataFrame(
            {"learned": self._standardised(scores), "learned_sd": scores.std(axis=0)}
        )

    def _scores(self, posts: list[str], replies: list[str]) -> np.ndarray:
        """Standardised score of every member (M, N)."""
        x = torch.from_numpy(apply_inputs(self.transform, blocks(self.encoder, posts, replies)))
        return (_raw(self.members, x) - self.card["mean"]) / self.card["sd"]

    def _standardised(self, scores: np.ndarray) -> np.ndarray:
        return (scores.mean(axis=0) - self.card["centre"]) / self.card["spread"]

    def save(self, folder: Path) -> None:
        """weights.safetensors (input transform and members) and card.json."""
        tensors = {
            f"inputs.{block}.{key}": value
            for block, parts in self.transform.items()
            for key, value in parts.items()
        }
        for i, member in enumerate(self.members):
            tensors |= {
                f"member{i}.{key}": value.numpy() for key, value in member.state_dict().items()
            }
        content = save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
        run.atomic_write(Path(folder) / "weights.safetensors", content)
        run.write_json(Path(folder) / "card.json", self.card)


def load(folder: Path, encoder) -> EngagementReward:
    """Read what `save` wrote. Raises UserError if another version of the code fitted it."""
    card = json.loads((Path(folder) / "card.json").read_text())
    if card["features"] != list(features.NAMES):
        raise UserError(
            f"{folder}: fitted with other surface features than this version computes; run reward_model again"
        )
    tensors = load_file(Path(folder) / "weights.safetensors")
    transform = {
        block: {key: tensors[f"inputs.{block}.{key}"] for key in ("mean", "basis")}
        for block in card["blocks"]
    }
    members = []
    for i in range(card["members"]):
        state = {
            key.partition(".")[2]: torch.from_numpy(value)
            for key, value in tensors.items()
            if key.startswith(f"member{i}.")
        }
        member = head(state["1.weight"].shape[1], card["hidden"])
        member.load_state_dict(state)
        members.append(member.eval())
    return EngagementReward(encoder, transform, members, card)


def fit(
    train: pd.DataFrame, validation: pd.DataFrame, encoder, cfg: RewardModelConfig, seed: int
) -> EngagementReward:
    """Fit the ensemble on training threads, each member stopped by the loss on validation threads.

    Rows need tweet_id, thread_id, tweet, reply, reply_likes; reply_author_followers and reply_time_diff_seconds may be
    null. Raises UserError if no training post has two replies and a like, or no validation post two replies of
    different likes."""
    data, held = (
        _with_negatives(train, offsets(train), cfg, seed),
        _with_negatives(validation, offsets(validation, train), cfg, seed + 1),
    )
    unlike = validation.groupby("tweet_id")["reply_likes"].nunique().gt(1).any()
    if not (data[1].informative and held[1].informative and unlike):
        raise UserError(
            "the engagement model needs posts with two replies and a like in train, and in validation two that differ"
        )
    raw = blocks(encoder, list(data[0]["tweet"]), list(data[0]["reply"]))
    transform = fit_inputs({block: values[: len(train)] for block, values in raw.items()})
    x = torch.from_numpy(apply_inputs(transform, raw))
    raw = blocks(encoder, list(held[0]["tweet"]), list(held[0]["reply"]))
    x_held = torch.from_numpy(apply_inputs(transform, raw))
    members = [
        fit_member(x, data[1], x_held, held[1], cfg, seed * 1000 + i) for i in range(cfg.members)
    ]
    card = {
        "blocks": list(transform),
        "hidden": cfg.hidden,
        "members": cfg.members,
        "features": list(features.NAMES),
        "negatives": cfg.negatives,
        "cut_to_zero": int((train["reply_likes"] < 0).sum()),  # in shares of likes
        "mean": 0.0,
        "sd": 1.0,
        "centre": 0.0,
        "spread": 1.0,
    }
    reward = EngagementReward(encoder, transform, members, card)
    own = _raw(members, x[: len(train)])  # people's replies alone set mean and sd
    card["mean"], card["sd"] = float(own.mean()), float(own.mean(axis=0).std()) or 1.0
    mean = reward._standardised((own - card["mean"]) / card["sd"])
    card["centre"], card["spread"] = float(mean.mean()), float(mean.std()) or 1.0
    return reward


def loss(
    score: torch.Tensor, data: Threads, rows: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """Scalar loss of the scores (n,) of replies `rows` (n,) of `data`, `group` (n,) numbering their posts."""
    mean = torch.zeros(int(group.max()) + 1).index_add(0, group, score) / torch.bincount(group)
    return nll(score + data.offset[rows], data.share[rows], group) + CENTRE * mean.square().mean()


def fit_member(
    x: torch.Tensor,
    data: Threads,
    x_held: torch.Tensor,
    held: Threads,
    cfg: RewardModelConfig,
    seed: int,
) -> torch.nn.Module:
    """One network of the ensemble: AdamW on minibatches of posts, kept at its best loss on held-out threads.

    x (N, d) and x_held (M, d) are the inputs of the rows of `data` and `held`. Raises FloatingPointError if the
    held-out loss is never finite."""
    order, everything = np.random.default_rng(seed), held.batch(np.arange(len(held.sizes)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = head(x.shape[1], cfg.hidden)
        optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
        best, best_loss, waited = None, np.inf, 0
        for _ in range(cfg.epochs):
            net.train()
            parents = order.permutation(len(data.sizes))
            for start in range(0, len(parents), PARENTS_PER_BATCH):
                rows, group = data.batch(parents[start : start + PARENTS_PER_BATCH])
                optimizer.zero_grad()
                loss(net(x[rows]).squeeze(1), data, rows, group).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                rows, group = everything
                value = float(loss(net(x_held[rows]).squeeze(1), held, rows, group))
            waited += 1
            if value < best_loss:
                best, best_loss, waited = copy.deepcopy(net.state_dict()), value, 0
            if waited >= PATIENCE:
                break
    if best is None:
        raise FloatingPointError(
            "the engagement model's validation loss was never finite; lower reward_model.lr"
        )
    net.load_state_dict(best)
    return net.eval()


def head(width: int, hidden: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Dropout(DROPOUT),
        torch.nn.Linear(width, hidden),
        torch.nn.GELU(),
        torch.nn.Dropout(DROPOUT),
        torch.nn.Linear(hidden, 1),
    )


def _with_negatives(
    rows: pd.DataFrame, offset: np.ndarray, cfg: RewardModelConfig, seed: int
) -> tuple[pd.DataFrame, Threads]:
    """The rows with their contrastive negatives below them, and their grouping. Offset 0 is a post's mean."""
    if cfg.negatives:
        added = negatives(rows, cfg.negatives, seed)
        rows = pd.concat([rows, added], ignore_index=True)
        offset = np.concatenate([offset, np.zeros(len(added))])
    return rows, Threads(rows, offset)


def _raw(members: list[torch.nn.Module], x: torch.Tensor) -> np.ndarray:
    """Members' own scores (M, N) float64."""
    with torch.no_grad():
        return torch.stack([member(x).squeeze(1) for member in members]).double().numpy()


def blocks(encoder, posts: list[str], replies: list[str]) -> dict[str, np.ndarray]:
    """Embedding of the post (N, d), of the reply (N, d), and surface features with their cosine (N, f + 1)."""
    post, reply = encoder.encode(list(posts)), encoder.encode(list(replies))
    cosine = (post * reply).sum(axis=1, keepdims=True)
    form = np.hstack([features.surface(list(posts), list(replies)), cosine])
    return {"post": post, "reply": reply, "form": form}


def fit_inputs(raw: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{block: mean (d,), basis (d, k)}. Surface features to unit variance each; embedding blocks to their
    leading principal directions, whose relative sizes are kept and whose overall sd is 1."""
    transform = {}
    for block, values in raw.items():
        values = values.astype(np.float64)
        mean, centred = values.mean(axis=0), values - values.mean(axis=0)
        if block == "form":
            sd = centred.std(axis=0)
            basis = np.diag(np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-6))
        else:
            basis = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :COMPONENTS]
            basis = basis / max((centred @ basis).std(), 1e-6)
        transform[block] = {"mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}
    return transform


def apply_inputs(transform: dict, raw: dict[str, np.ndarray]) -> np.ndarray:
    """The network's input (N, sum of k), float32, clipped to +-CLIP."""
    parts = [
        (raw[block].astype(np.float32) - parts["mean"]) @ parts["basis"]
        for block, parts in transform.items()
    ]
    return np.clip(np.concatenate(parts, axis=1), -CLIP, CLIP)
