"""Log-likelihood of replies under the base model: the posts' prompts are read once for all their replies.

One row of the batch is [prompt | reply 1 | reply 2 | ...]; a reply sees the prompt and itself, and its positions go on
from the prompt's. Rows are sorted by length, so little is padding, and the output head runs on reply tokens alone.
"""

from __future__ import annotations

from functools import cache

import torch

from polylib.models import encode_reply, format_prompt, load_model, load_tokenizer
from polylib.models.attention import additive_mask

POST_TOKENS = 128  # longer posts are cut, as in sampling
REPLY_TOKENS = 96  # longer replies are scored on their beginning; 280 characters are about 65 tokens
ROW_REPLIES = 16  # attention grows with the square of a row
BATCH_TOKENS = 2048  # of one forward pass, padding included
HEAD_TOKENS = 512  # of one pass through the output head: 100 MB of float32 logits for a vocabulary of 49k
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
        self._calls: dict[tuple[tuple[str, str], ...], dict[tuple[str, str], tuple[float, int]]] = {}

    def __call__(self, posts: list[str], replies: list[str]) -> tuple[list[float], list[int]]:
        """Sums of log-probabilities and numbers of tokens (the end of turn is one), each of length N.

        Equal pairs are computed once; the last CALLS sets of pairs are remembered whole, never a pair by itself."""
        if len(posts) != len(replies):
            raise ValueError(f"{len(posts)} posts but {len(replies)} replies")
        pairs = [(_utf8(post), _utf8(reply)) for post, reply in zip(posts, replies)]
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
            self._tokenizer, self._model = load_tokenizer(self.cfg_model), load_model(self.cfg_model)
        ids = {pair: encode_reply(self._tokenizer, pair[1], REPLY_TOKENS) for pair in pairs}
        found = {}
        for batch in _batches(_rows(self._tokenizer, ids)):
            for pair, total in zip(*_forward(self._model, batch)):
                found[pair] = (total, len(ids[pair]))
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
        rows += [(prompt, items[start : start + ROW_REPLIES]) for start in range(0, len(items), ROW_REPLIES)]
    return rows


def _size(row) -> int:
    return len(row[0]) + sum(len(reply) for _, reply in row[1])


def _batches(rows: list) -> list[list]:
    batches, batch = [], []
    for row in sorted(rows, key=_size):  # ascending: the newest row is the longest
        if batch and (len(batch) + 1) * _size(row) > BATCH_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches


@torch.inference_mode()
def _forward(model, rows: list) -> tuple[list[tuple[str, str]], list[float]]:
    """One pass over padded rows -> the pairs in them and their summed log-probabilities."""
    longest = max(map(_size, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    part = torch.full((len(rows), longest), -1)  # 0 = prompt, 1, 2, ... = replies, -1 = padding
    pairs, where, targets, owner = [], [], [], []
    for r, (prompt, replies) in enumerate(rows):
        end = len(prompt)
        ids[r, :end], positions[r, :end], part[r, :end] = torch.tensor(prompt), torch.arange(end), 0
        for number, (pair, reply) in enumerate(replies, 1):
            stop = end + len(reply)
            ids[r, end:stop], part[r, end:stop] = torch.tensor(reply), number
            positions[r, end:stop] = len(prompt) + torch.arange(len(reply))
            # the prompt's last position predicts every reply's first token
            where += [(r, len(prompt) - 1), *((r, at) for at in range(end, stop - 1))]
            targets += reply
            owner += [len(pairs)] * len(reply)
            pairs.append(pair)
            end = stop
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    same = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    allowed = (causal & same & (part >= 0)[:, None, :])[:, None]
    hidden = model.base_model(
        input_ids=ids.to(model.device),
        attention_mask=additive_mask(allowed.to(model.device), model.dtype),
        position_ids=positions.to(model.device),
        use_cache=False,
    ).last_hidden_state
    row, at = torch.tensor(where, device=model.device).T
    hidden, target = hidden[row, at], torch.tensor(targets, device=model.device)
    head, logprobs = model.get_output_embeddings(), []
    for start in range(0, len(target), HEAD_TOKENS):
        logits = head(hidden[start : start + HEAD_TOKENS]).float()
        chosen = logits.gather(1, target[start : start + HEAD_TOKENS, None]).squeeze(1)
        logprobs.append(chosen - logits.logsumexp(1))
    total = torch.zeros(len(pairs), dtype=torch.double).index_add(
        0, torch.tensor(owner), torch.cat(logprobs).double().cpu()
    )
    return pairs, total.tolist()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a tokenizer refuses unpaired surrogates
