"""How likely are a model's own replies to others, and how far is it from them? Perplexity and exact KL.

    table = likelihood.measure(generations, cfg, paths, "grpo", 42)     # a row a post
    run.write_csv(paths.evaluation("grpo", 42) / likelihood.FILE, table)
    likelihood.means(table)                                             # of the cell

Negative log-likelihood (NLL) of the replies under the frozen base model and under the SFT model of the same seed is a
two-sided check: far below people's means bland or looping, far above means gibberish. It is taken at temperature 1, the
end of turn included, and reported as exp(mean NLL a token): the mean of exp hangs on the worst reply alone.

KL(policy || reference) is the sum over the whole vocabulary at every token of the policy's own replies, both at the
sampling temperature: no sampling error in the next token (k1, k2 and k3 of Schulman 2020 look at the sampled token
only).

The policy is the one that wrote the replies: adapters merged and rounded to the model's dtype. In bfloat16 rounding of
activations adds about .002 nats a token to a KL of different models (measured; equal models have exactly 0).
Left out on purpose: a second model in memory (see `token_kl`).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from polylib import models
from polylib.config import Config, UserError
from polylib.evaluation import token_kl
from polylib.models.encoder import plain_utf8
from polylib.models.likelihood import batches
from polylib.models.packing import Packed
from polylib.models.truncation import truncates
from polylib.run import Paths

FILE = "likelihood.csv"
COLUMNS = [
    "prompt_id",
    "temperature",
    "n_samples",
    "tokens",
    "nll_base",
    "nll_sft",
    "kl_base",
    "kl_sft",
    "entropy",
]
PER_REPLY = ("kl_base", "kl_sft", "entropy")
CUT = 10**6  # tokens of a human reply that are read: all
ANOTHER_MODEL = (
    0.05  # nats a token by which replies may differ from what their sampler noted, in the median
)


def measure(
    generations: pd.DataFrame, cfg: Config, paths: Paths, method: str, seed: int | None
) -> pd.DataFrame:
    """A row a post, columns COLUMNS, for the first `evaluation.likelihood_prompts` posts (0 = all) and
    `evaluation.likelihood_samples` replies each (of people at most so many) at the training temperature.

    nll_* are nats a token at temperature 1; kl_* and entropy nats a reply at the sampling temperature; tokens a
    reply, end of turn included. The tokens are those of column `ids` (`generate.replies`), people's those of their
    texts. Replies whose log-probability is not what their sampler noted are left out and counted in attrs["left_out"].
    NaN is what cannot be had: nobody knows the distribution that people write from, and their replies and the untrained
    model belong to no seed whose SFT model could be the reference. `seed` is ignored for human and base.
    Raises UserError for replies that the model in `paths` cannot have written."""
    people, tokenizer, chosen = (
        method == "human",
        models.load_tokenizer(cfg.model),
        _chosen(generations, cfg),
    )
    ids, known = list(chosen.get("ids", [])), np.full(len(chosen), True)
    if people:
        ids = [models.encode_reply(tokenizer, plain_utf8(reply), CUT) for reply in chosen["reply"]]
    packed, order = rows(tokenizer, chosen, ids, cfg.sampling.max_prompt_tokens)
    found, chains = {}, _chains(paths, method, seed)
    for name, chain in chains.items():
        same = next((other for other in found if chains[other] == chain), None)
        if same is None:
            found[name], head = _states(cfg, chain, packed)
        else:
            found[name] = found[same]
    temperature = cfg.sampling.temperature
    tokens = token_kl.per_token(
        found, head, torch.cat([b.completion_ids[b.completion_mask] for b in packed]), temperature
    )
    tokens["reply"] = np.repeat(order, [len(ids[i]) for i in order])
    replies = (
        tokens.groupby("reply")
        .sum(min_count=1)
        .reindex(range(len(chosen)))
        .assign(n=[len(y) for y in ids])
    )
    if not people and not truncates(cfg.sampling.top_p, cfg.sampling.top_k):
        known = _same_model(replies["logp"], chosen, f"{method} seed {seed}")
    table = _per_prompt(chosen, replies, known, np.nan if people else temperature)
    table.attrs["left_out"] = int((~known).sum())
    return table


def rows(
    tokenizer, chosen: pd.DataFrame, ids: list[list[int]], limit: int
) -> tuple[list[Packed], list[int]]:
    """Packed rows, one a post, and the numbers of the replies in the order of their tokens.

    chosen: post_id, post; a row a reply, index 0, 1, ...; ids: tokens of each; posts are cut to `limit` tokens."""
    prompts = [
        (
            models.format_prompt(tokenizer, part["post"].iloc[0], limit),
            [(i, ids[i]) for i in part.index],
        )
        for _, part in chosen.groupby("post_id", sort=False)
    ]
    packed = batches(prompts, tokenizer.pad_token_id)
    return [batch for batch, _ in packed], [i for _, order in packed for i in order]


def _states(cfg: Config, chain: list[Path], packed: list):
    model = models.load_model(cfg.model, chain)  # freed before the next one is loaded
    return token_kl.last_states(model, packed), models.Head(model)


def _chosen(generations: pd.DataFrame, cfg: Config) -> pd.DataFrame:
    at = generations["temperature"]
    rows = generations[at.isna() | np.isclose(at, cfg.sampling.temperature)]
    posts = list(dict.fromkeys(rows["post_id"]))[: cfg.evaluation.likelihood_prompts or None]
    rows = rows[rows["post_id"].isin(posts) & rows["sample"].lt(cfg.evaluation.likelihood_samples)]
    if rows.empty:
        raise UserError(
            f"likelihood: no replies at temperature {cfg.sampling.temperature:g}; run notebook 07 again"
        )
    return rows.reset_index(drop=True)


def _chains(paths: Paths, method: str, seed: int | None) -> dict[str, list[Path]]:
    """{policy, sft, base: adapters to merge}, as far as they exist for this cell."""
    chains = {"base": []}
    if method == "base":
        chains["policy"] = []
    elif method != "human":
        for name, stage in (("policy", method), ("sft", "sft")):
            models.adapter_digest(paths.models(stage, seed))  # names the file that is missing
            chains[name] = models.adapter_chain(paths.models(stage, seed), paths.root)
    return chains


def _same_model(logp: pd.Series, chosen: pd.DataFrame, cell: str) -> np.ndarray:
    """(N,) bool, which replies have the log-probability that their sampler noted, rounding aside. UserError if most of
    them have not: then another model wrote them."""
    gap = (logp - chosen["logprob"]).abs().to_numpy() / chosen["tokens"].to_numpy()
    if np.median(gap) > ANOTHER_MODEL:
        raise UserError(
            f"likelihood: the replies of {cell} are not of the model saved for it (log-probabilities are "
            f"{np.median(gap):.2f} nats a token apart); run notebook 07 again"
        )
    return gap < 10 * ANOTHER_MODEL


def _per_prompt(
    chosen: pd.DataFrame, replies: pd.DataFrame, known: np.ndarray, temperature: float
) -> pd.DataFrame:
    rows = []
    for post, part in chosen[known].groupby("post_id", sort=False):
        mine = replies.loc[part.index]
        row = {
            "prompt_id": post,
            "temperature": temperature,
            "n_samples": len(mine),
            "tokens": mine["n"].mean(),
        }
        row |= {
            name: mine[name].sum(skipna=False) / mine["n"].sum() for name in ("nll_base", "nll_sft")
        }
        rows.append(row | {name: mine[name].mean(skipna=False) for name in PER_REPLY})
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        "prompt_id", kind="stable", ignore_index=True
    )


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean NLL a token: nll (N,) nats a token of N sets, tokens (N,) their sizes."""
    return math.exp(float(np.average(nll, weights=tokens)))


def means(table: pd.DataFrame) -> dict[str, float]:
    """One cell's numbers: nll_* (nats a token), perplexity_* (their exp), kl_* and entropy (nats a reply) with
    *_se over posts, kl_*_token and entropy_token (nats a token), tokens a reply; NaN where the cell has
    none. Replies weigh the same, whichever post they are under."""
    n, tokens = table["n_samples"].to_numpy(), (table["n_samples"] * table["tokens"]).to_numpy()
    out = {"replies": int(n.sum()), "tokens": float(tokens.sum() / n.sum())}
    for name in ("base", "sft"):
        out[f"nll_{name}"] = float(np.average(table[f"nll_{name}"], weights=tokens))
        out[f"perplexity_{name}"] = perplexity(table[f"nll_{name}"], tokens)
    for name in PER_REPLY:
        out[name] = float(np.average(table[name], weights=n))
        out[f"{name}_token"] = out[name] / out["tokens"]
        out[f"{name}_se"] = float(table[name].sem())
    return out
