"""The engagement model: which of the replies under one post would collect the larger share of its likes?

Likes of reply i under post j are taken as Poisson(exp(a_j + r(x, y) + o_ij)). Given a post's total, its
counts are multinomial with softmax_i(r + o): the post's popularity a_j cancels exactly (McFadden 1974; for
two replies this is Bradley-Terry with soft labels). Only shares of likes enter, each post once, so
over-dispersed totals carry no weight and multiplying a post's likes by any number changes nothing. o is what
the author's followers and the delay explain by themselves; its coefficients come from other threads
(cross-fitting) and it is dropped when a reply is scored.

Left out on purpose: products and differences of the embeddings and n-gram inputs (no gain on held-out threads
over form and cosine, and n-grams are the judge's), tempered shares (likes^t, t < 1: less accurate for every t
tried)."""

from __future__ import annotations

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
from polylib.rewards.conditional import Threads, nll, offsets

COMPONENTS = 16  # principal directions kept of each embedding: on held-out corpus threads 32 and 64 do worse
CLIP = 4.0  # a policy's odd reply must not buy reward by leaving the range seen in training
DROPOUT = 0.3
PARENTS_PER_BATCH = 32
PATIENCE = 8  # epochs without a better validation likelihood
CENTRE = 1e-2  # pull of each post's mean score towards 0: the likelihood leaves a term f(post) free


class EngagementReward:
    """reward(posts, replies) -> (N,) float64: ensemble mean, mean 0 and sd 1 over the human training
    replies."""

    name = "learned"

    def __init__(
        self,
        encoder,
        inputs: dict[str, dict[str, np.ndarray]],
        members: list[torch.nn.Module],
        mean: float,
        sd: float,
    ):
        self.encoder, self.inputs, self.members, self.mean, self.sd = encoder, inputs, members, mean, sd

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        return self._scores(posts, replies).mean(axis=0)

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """Columns `learned` and `learned_sd`, the members' disagreement in the same units."""
        scores = self._scores(posts, replies)
        return pd.DataFrame({"learned": scores.mean(axis=0), "learned_sd": scores.std(axis=0)})

    def _scores(self, posts: list[str], replies: list[str]) -> np.ndarray:
        x = torch.from_numpy(_transform(self.inputs, _blocks(self.encoder, posts, replies)))
        with torch.no_grad():
            raw = torch.stack([member(x).squeeze(1) for member in self.members])
        return (raw.double().numpy() - self.mean) / self.sd

    def save(self, folder: Path) -> None:
        """weights.safetensors (input transform and members) and card.json (shapes and standardisation)."""
        tensors = {
            f"inputs.{block}.{key}": value for block, parts in self.inputs.items() for key, value in parts.items()
        }
        for i, member in enumerate(self.members):
            tensors |= {f"member{i}.{key}": value.numpy() for key, value in member.state_dict().items()}
        run.atomic_write(
            Path(folder) / "weights.safetensors",
            save({k: np.ascontiguousarray(v) for k, v in tensors.items()}),
        )
        run.write_json(
            Path(folder) / "card.json",
            {
                "blocks": list(self.inputs),
                "hidden": self.members[0][1].out_features,
                "members": len(self.members),
                "mean": self.mean,
                "sd": self.sd,
                "features": list(features.NAMES),
            },
        )


def load(folder: Path, encoder) -> EngagementReward:
    """Read what `save` wrote. Raises UserError if it was fitted with another list of surface features."""
    card = json.loads((Path(folder) / "card.json").read_text())
    if card["features"] != list(features.NAMES):
        raise UserError(
            f"{folder}: fitted with other surface features than this version computes; run reward_model again"
        )
    tensors = load_file(Path(folder) / "weights.safetensors")
    inputs = {block: {key: tensors[f"inputs.{block}.{key}"] for key in ("mean", "basis")} for block in card["blocks"]}
    members = []
    for i in range(card["members"]):
        state = {
            key.partition(".")[2]: torch.from_numpy(value)
            for key, value in tensors.items()
            if key.startswith(f"member{i}.")
        }
        member = _head(state["1.weight"].shape[1], card["hidden"])
        member.load_state_dict(state)
        members.append(member.eval())
    return EngagementReward(encoder, inputs, members, card["mean"], card["sd"])


def fit(train: pd.DataFrame, validation: pd.DataFrame, encoder, cfg: RewardModelConfig, seed: int) -> EngagementReward:
    """Fit the ensemble on training threads, each member stopped by the likelihood of validation threads.

    Rows need tweet_id, thread_id, tweet, reply, reply_likes; reply_author_followers and
    reply_time_diff_seconds may be null. Raises UserError if no training post has two replies and a like."""
    data, held = Threads(train, offsets(train)), Threads(validation, offsets(validation, train))
    if not (data.informative and held.informative):
        raise UserError("the engagement model needs posts with two replies and a like, both in train and in validation")
    raw = _blocks(encoder, list(train["tweet"]), list(train["reply"]))
    inputs = _fit_transform(raw)
    x = torch.from_numpy(_transform(inputs, raw))
    x_held = torch.from_numpy(
        _transform(inputs, _blocks(encoder, list(validation["tweet"]), list(validation["reply"])))
    )
    members = [_fit_member(x, data, x_held, held, cfg, seed * 1000 + i) for i in range(cfg.members)]
    with torch.no_grad():
        scores = torch.stack([member(x).squeeze(1) for member in members]).double().mean(dim=0)
    return EngagementReward(encoder, inputs, members, float(scores.mean()), float(scores.std(correction=0)) or 1.0)


# ---- the ensemble -----------------------------------------------------------------------------------------


def _fit_member(x, data: Threads, x_held, held: Threads, cfg: RewardModelConfig, seed: int) -> torch.nn.Module:
    order, everything = np.random.default_rng(seed), held.batch(np.arange(len(held.sizes)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = _head(x.shape[1], cfg.hidden)
        optimizer = torch.optim.AdamW(head.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
        best, best_loss, waited = None, np.inf, 0
        for _ in range(cfg.epochs):
            head.train()
            parents = order.permutation(len(data.sizes))
            for start in range(0, len(parents), PARENTS_PER_BATCH):
                rows, group = data.batch(parents[start : start + PARENTS_PER_BATCH])
                score = head(x[rows]).squeeze(1)
                mean = torch.zeros(int(group.max()) + 1).index_add(0, group, score) / torch.bincount(group)
                loss = nll(score + data.offset[rows], data.share[rows], group) + CENTRE * mean.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            head.eval()
            with torch.no_grad():
                rows, group = everything
                loss = float(nll(head(x_held[rows]).squeeze(1) + held.offset[rows], held.share[rows], group))
            waited += 1
            if loss < best_loss:
                best, best_loss, waited = copy.deepcopy(head.state_dict()), loss, 0
            if waited >= PATIENCE:
                break
    if best is None:
        raise FloatingPointError("the engagement model's validation likelihood was never finite; lower reward_model.lr")
    head.load_state_dict(best)
    return head.eval()


def _head(width: int, hidden: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Dropout(DROPOUT),
        torch.nn.Linear(width, hidden),
        torch.nn.GELU(),
        torch.nn.Dropout(DROPOUT),
        torch.nn.Linear(hidden, 1),
    )


# ---- inputs ------------------------------------------------------------------------------------------------


def _blocks(encoder, posts: list[str], replies: list[str]) -> dict[str, np.ndarray]:
    """What the head reads: topic of the post, content of the reply, and form with their cosine."""
    post, reply = encoder.encode(list(posts)), encoder.encode(list(replies))
    cosine = (post * reply).sum(axis=1, keepdims=True)
    return {
        "post": post,
        "reply": reply,
        "form": np.hstack([features.surface(list(posts), list(replies)), cosine]),
    }


def _fit_transform(raw: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Surface features to unit variance each; embedding blocks to their leading principal directions, whose
    relative sizes are kept and whose overall sd is 1."""
    inputs = {}
    for block, values in raw.items():
        values = values.astype(np.float64)
        mean, centred = values.mean(axis=0), values - values.mean(axis=0)
        if block == "form":
            sd = centred.std(axis=0)
            basis = np.diag(np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-6))
        else:
            basis = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :COMPONENTS]
            basis = basis / max((centred @ basis).std(), 1e-6)
        inputs[block] = {"mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}
    return inputs


def _transform(inputs: dict, raw: dict[str, np.ndarray]) -> np.ndarray:
    parts = [(raw[block].astype(np.float32) - parts["mean"]) @ parts["basis"] for block, parts in inputs.items()]
    return np.clip(np.concatenate(parts, axis=1), -CLIP, CLIP)
