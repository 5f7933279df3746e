"""Numbers of every token of given replies under several models: log-likelihood, entropy, KL over the whole vocabulary.

The models run one after the other and leave their last hidden states (a few MB); adapters never touch the output head,
so one head serves all, and logits exist in blocks of 64 MB.
"""

from __future__ import annotations

import copy

import pandas as pd
import torch

from polylib.models.likelihood import last_hidden
from polylib.models.packing import Packed

COLUMNS = ["logp", "entropy", "nll_base", "nll_sft", "kl_base", "kl_sft"]
LOGITS = (
    2**24
)  # numbers in one block of logits: 64 MB in float32, of which about eight are alive at once


@torch.inference_mode()
def last_states(model, packed: list[Packed]) -> torch.Tensor:
    """Last hidden states (n, d), on the CPU, at the positions that predict the n completion tokens of all batches."""
    found = []
    for batch in packed:
        hidden, source = (
            last_hidden(model, batch),
            batch.source[batch.completion_mask].to(model.device),
        )
        row = torch.arange(len(hidden))[:, None, None].expand_as(batch.source)[
            batch.completion_mask
        ]
        found.append(hidden[row.to(model.device), source].cpu())
    return torch.cat(found)


@torch.inference_mode()
def per_token(
    states: dict[str, torch.Tensor], head, targets: torch.Tensor, temperature: float
) -> pd.DataFrame:
    """A row a token. nll_base, nll_sft at temperature 1; logp, entropy of the policy, and for both references kl_*
    (whole vocabulary), at `temperature`: all in nats, NaN for a model that is not there.

    states: {policy, sft, base: (n, d)}, each optional; head maps them to logits; targets (n,). The head is applied in
    float32: rounding of logits to bfloat16 alone adds some .002 nats a token to a KL."""
    head = copy.deepcopy(head).float()
    weight = next(head.parameters())
    parts, size = [], max(1, LOGITS // weight.shape[0])
    for start in range(0, len(targets), size):
        at = slice(start, start + size)
        logits = {name: head(h[at].to(weight)) for name, h in states.items()}
        target = targets[at, None].to(weight.device)
        part = {
            f"nll_{name}": -logits[name].log_softmax(-1).gather(1, target)[:, 0]
            for name in ("base", "sft")
            if name in logits
        }
        if "policy" in logits:
            log_p = (logits.pop("policy") / temperature).log_softmax(-1)
            p, logp = log_p.exp(), log_p.gather(1, target)[:, 0]
            part |= {"logp": logp, "entropy": -(p * log_p).sum(-1)}
            for name in list(logits):
                log_r = (logits.pop(name) / temperature).log_softmax(-1)
                part[f"kl_{name}"] = (p * (log_p - log_r)).sum(-1)
        parts.append(
            pd.DataFrame({name: value.cpu().double().numpy() for name, value in part.items()})
        )
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)
