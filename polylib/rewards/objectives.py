"""What the engagement model can be fitted to, on the same inputs and by the same loop.

conditional  likes are shared out within a post: softmax over its replies (McFadden 1974). The default.
pairs        Bradley-Terry on preference pairs within a post, with margins by how clearly the winner won
             (Llama 2, Touvron et al. 2023) and scores of a pair pulled towards opposite signs.
nmse         squared error of likes over the post's own likes. A baseline: the post's audience, the author's
             followers and the delay all stay in the target.

Each is a mean over posts of something within a post, so that a thread of a thousand replies counts once."""

from __future__ import annotations

import copy

import numpy as np
import torch

from polylib.config import RewardModelConfig
from polylib.rewards.conditional import Threads, nll

DROPOUT = 0.3
PARENTS_PER_BATCH = 32
PATIENCE = 8  # epochs without a better validation loss
CENTRE = 1e-2  # pull towards 0: neither softmax nor pairs fix the level f(post) of the scores
PAIR_RATIO = (
    1.5  # a pair's winner has at least this many times the loser's likes, one added to both
)
MARGIN, MARGIN_CAP = 0.25, 1.0  # margin of a pair = MARGIN x log of that ratio, at most MARGIN_CAP


def loss(
    objective: str, score: torch.Tensor, data: Threads, rows: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """Scalar loss of the scores (n,) of replies `rows` (n,) of `data`, `group` (n,) numbering their posts."""
    if objective == "nmse":
        each = (score - data.target[rows]).square() / torch.bincount(group)[group]
        return each.sum() / (int(group.max()) + 1)
    if objective == "pairs":
        return bradley_terry(score, data.offset[rows], data.likes[rows], group)
    mean = torch.zeros(int(group.max()) + 1).index_add(0, group, score) / torch.bincount(group)
    return nll(score + data.offset[rows], data.share[rows], group) + CENTRE * mean.square().mean()


def bradley_terry(
    score: torch.Tensor, offset: torch.Tensor, likes: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """Mean over posts of the mean over a post's pairs (w won, l lost) of

        -log sigmoid(r_w + o_w - r_l - o_l - m) + CENTRE (r_w + r_l)^2,  m = min(MARGIN log ((y_w+1)/(y_l+1)), CAP)

    where a score y below 0 enters with the log of 1 - y, negative. All (n,). A post without a pair adds 0."""
    w, lost = _won(likes, group)
    margin = (MARGIN * (_level(likes[w]) - _level(likes[lost]))).clamp(max=MARGIN_CAP)
    total = score + offset
    each = torch.nn.functional.softplus(-(total[w] - total[lost] - margin))
    each = each + CENTRE * (score[w] + score[lost]).square()
    groups = int(group.max()) + 1
    pairs = torch.bincount(group[w], minlength=groups)
    return (each / pairs[group[w]]).sum() / groups


def _level(likes: torch.Tensor) -> torch.Tensor:
    return torch.sign(likes) * torch.log1p(likes.abs())


def _won(likes: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Winner and loser of every pair (both (pairs,)), post by post: one table of all replies against all others would
    take memory and time by the square of the split, nearly all of it for pairs across posts."""
    winners, losers = [], []
    for rows in torch.split(torch.argsort(group, stable=True), torch.bincount(group).tolist()):
        level = _level(likes[rows])
        w, lost = torch.nonzero(
            level[:, None] - level[None, :] >= np.log(PAIR_RATIO), as_tuple=True
        )
        winners.append(rows[w])
        losers.append(rows[lost])
    return torch.cat(winners), torch.cat(losers)


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
                loss(cfg.objective, net(x[rows]).squeeze(1), data, rows, group).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                rows, group = everything
                value = float(loss(cfg.objective, net(x_held[rows]).squeeze(1), held, rows, group))
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
