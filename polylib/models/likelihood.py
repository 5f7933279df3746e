"""Log-likelihood of replies under the base model: the posts' prompts are read once for all their replies.

Rows are those of `packing`. They are sorted by length, so little is padding, and the output head runs on reply tokens
alone.
"""

from __future__ import annotations

from functools import cache

import torch

from polylib.models import Head, encode_reply, format_prompt, load_model, load_tokenizer
from polylib.models.attention import additive_mask
from polylib.models.encoder import plain_utf8
from polylib.models.packing import Packed, completion_logprobs, pack

POST_TOKENS = 128  # longer posts are cut, as in sampling
REPLY_TOKENS = (
    96  # longer replies are scored on their beginning; 280 characters are about 65 tokens
)
ROW_REPLIES = 16  # attention grows with the square of a row
BATCH_TOKENS = 2048  # of one forward pass, padding included
HEAD_TOKENS = (
    512  # of one pass through the output head: 100 MB of float32 logits for a vocabulary of 49k
)
CALLS = 8  # whole calls that are remembered: a reward is asked for its score and then for its parts, two calls each


class Likelihood:
    """log p(reply, end of turn | prompt of the post), in nats, by the model of `cfg_model` without adapters.

    A pair's number is a function of the set of pairs in its call alone: not of their order, of repetitions, or of what
    was asked before, so a resumed training gets what an uninterrupted one does. Another company in the same call may
    move it by rounding, since replies are packed together; a row for each reply would read the post again for each.
    The model is loaded at the first text that needs it. `scored` counts replies that went through the model."""

    def __init__(self, cfg_model):
        self.cfg_model, self.scored = cfg_model, 0
        self._model = self._tokenizer = None
        self._calls: dict[
            tuple[tuple[str, str], ...], dict[tuple[str, str], tuple[float, int]]
        ] = {}

    def __call__(self, posts: list[str], replies: list[str]) -> tuple[list[float], list[int]]:
        """Sums of log-probabilities and numbers of tokens (the end of turn is one), each of length N.

        Equal pairs are computed once; the last CALLS sets of pairs are remembered whole, never a pair by itself."""
        pairs = [
            (plain_utf8(post), plain_utf8(reply))
            for post, reply in zip(posts, replies, strict=True)
        ]
        call = tuple(sorted(set(pairs)))
        known = self._calls.pop(call, None)
        if known is None:
            known = self._compute(list(call)) if call else {}
        self._calls[call] = known  # the latest last
        while len(self._calls) > CALLS:
            del self._calls[next(iter(self._calls))]
        found = [known[pair] for pair in pairs]
        return [total for total, _ in found], [count for _, count in found]

    def _compute(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[float, int]]:
        if self._model is None:
            self._tokenizer, self._model = (
                load_tokenizer(self.cfg_model),
                load_model(self.cfg_model),
            )
        ids = {pair: encode_reply(self._tokenizer, pair[1], REPLY_TOKENS) for pair in pairs}
        found, head = {}, Head(self._model)
        for packed, batch in batches(
            _rows(self._tokenizer, ids), self._tokenizer.pad_token_id, self._model.device
        ):
            with torch.no_grad():
                logp = completion_logprobs(
                    last_hidden(self._model, packed), head, packed, 1.0, HEAD_TOKENS
                )
            totals = logp.cpu().double().sum(-1)[packed.completion_mask.any(-1).cpu()].tolist()
            found |= {
                pair: (total, len(ids[pair])) for pair, total in zip(batch, totals, strict=True)
            }
        self.scored += len(pairs)
        return found


@cache
def shared(cfg_model) -> Likelihood:
    """The one Likelihood of these settings in this process: one model in memory, no call computed twice in a row."""
    return Likelihood(cfg_model)


def _rows(tokenizer, ids: dict[tuple[str, str], list[int]]) -> list[tuple[list[int], list[tuple]]]:
    """(prompt, [(pair, reply ids), ...]) with at most ROW_REPLIES of one post, replies of like length together."""
    groups: dict[str, list[tuple]] = {}
    for pair, reply in sorted(ids.items(), key=lambda item: len(item[1])):
        groups.setdefault(pair[0], []).append((pair, reply))
    rows = []
    for post, items in groups.items():
        prompt = format_prompt(tokenizer, post, POST_TOKENS)
        rows += [
            (prompt, items[start : start + ROW_REPLIES])
            for start in range(0, len(items), ROW_REPLIES)
        ]
    return rows


def _size(row) -> int:
    return len(row[0]) + sum(len(reply) for _, reply in row[1])


def batches(
    rows: list[tuple[list[int], list[tuple]]], pad_id: int, device="cpu"
) -> list[tuple[Packed, list]]:
    """Rows of (prompt, [(key, reply ids), ...]) as packed batches of BATCH_TOKENS, short rows together, each with the
    keys of its replies in their order."""
    groups: list[list] = []
    for row in sorted(rows, key=_size):  # ascending: the newest row is the longest
        if not groups or (len(groups[-1]) + 1) * _size(row) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    packed = []
    for group in groups:
        width = max(len(replies) for _, replies in group)  # rows of fewer replies get empty ones
        ids = [
            [reply for _, reply in replies] + [[]] * (width - len(replies)) for _, replies in group
        ]
        packed.append(
            (
                pack([prompt for prompt, _ in group], ids, pad_id, device),
                [key for _, replies in group for key, _ in replies],
            )
        )
    return packed


def last_hidden(model, packed: Packed) -> torch.Tensor:
    """(B, L, d) on the model's device."""
    return model.base_model(
        input_ids=packed.input_ids.to(model.device),
        position_ids=packed.position_ids.to(model.device),
        attention_mask=additive_mask(packed.attention_mask.to(model.device), model.dtype),
        use_cache=False,
    ).last_hidden_state
