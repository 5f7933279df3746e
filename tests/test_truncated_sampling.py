"""Top-k and top-p: the sets against transformers, the draws against q, the scores against finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from enumeration import EOS, V, finite_difference, parameters, relative_error, replies
from scipy import stats
from tiny import CFG, POSTS, talkative, tokenizer
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from polylib import models
from polylib.models import sampling, truncation
from polylib.models.attention import additive_mask
from polylib.models.packing import completion_logprobs, pack, replayed
from polylib.models.truncation import at_or_after, kept_tokens, pack_bits, unpack_bits
from polylib.training.policy import Policy
from polylib.training.rollouts import sampled_ids

TEXTS = [post.text for post in POSTS]
SETTINGS = {
    "off": (0.7, 1.0, 0),
    "top_p": (0.8, 0.9, 0),
    "top_k": (0.7, 1.0, 5),
    "both": (0.8, 0.9, 20),
}
TRUNCATED = [name for name in SETTINGS if name != "off"]
WORDS = (
    1029  # of the vocabulary, so that the tests are quick and the last byte of a set is not full
)
GOLD = [
    [[1001, 7, 2]],
    [[900, 2]],
    [[5] * 9 + [2]],
    [[]],
]  # replies of people: tokens no sampler would draw
K = 6


def settings(name: str, **changes):
    temperature, top_p, top_k = SETTINGS[name]
    return dataclasses.replace(
        CFG.sampling,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        **{"max_new_tokens": 10} | changes,
    )


def warped(logits: torch.Tensor, name: str, shift: float = 0.0) -> torch.Tensor:
    """transformers' own order: temperature, top-k, top-p (+ shift); -inf outside the kept set."""
    temperature, top_p, top_k = SETTINGS[name]
    logits = logits / temperature
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    return TopPLogitsWarper(top_p + shift)(None, logits) if top_p < 1 else logits


@pytest.fixture(scope="module")
def setup():
    tok = tokenizer()
    model = talkative(models.load_model(CFG.model), tok.eos_token_id, eos_bias=0.5)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(
        head.weight[:WORDS] * 0.2, requires_grad=False
    )  # flatter: sets of many sizes
    head.bias = torch.nn.Parameter(head.bias[:WORDS].clone(), requires_grad=False)
    return model, tok


@pytest.fixture(scope="module")
def drawn(setup):
    return {name: sampling.sample(*setup, TEXTS, K, settings(name), seed=3) for name in SETTINGS}


def plain_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits (len, V) of one unpadded forward pass without cache."""
    length = len(ids)
    mask = additive_mask(torch.ones(length, length).tril().bool()[None, None], torch.float32)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids]),
            attention_mask=mask,
            position_ids=torch.arange(length)[None],
        ).logits[0]


def packed_scores(model, rollouts, name: str, gold: list, replay: bool = True):
    ids = sampled_ids(rollouts, torch.ones_like(rollouts.lengths))
    packed = pack(rollouts.prompt_ids, [people + ours for people, ours in zip(gold, ids)], pad_id=0)
    with torch.no_grad():
        hidden = model.base_model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=additive_mask(packed.attention_mask, torch.float32),
        ).last_hidden_state
        temperatures = torch.tensor([1.0] + [SETTINGS[name][0]] * K)
        kept = replayed(rollouts.kept, packed, gold=1) if replay else None
        return packed, completion_logprobs(
            hidden, model.get_output_embeddings(), packed, temperatures, kept=kept
        )


# ------------------------------------------------------------------------------------------------ sets and bits
@pytest.mark.parametrize("spread", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("name", TRUNCATED)
def test_kept_sets_are_those_of_transformers(name, spread):
    """Sets of one token up to nearly all of 6000, so every depth of the search occurs."""
    logits = torch.randn(12, 6000, generator=torch.manual_seed(5), dtype=torch.float64) * spread
    logits[0, 77] = 40.0
    temperature, top_p, top_k = SETTINGS[name]
    kept = kept_tokens(logits / temperature, top_p, top_k)
    assert torch.equal(kept, warped(logits, name).isfinite())
    assert kept.sum(-1).min() >= 1 and kept.sum(-1).max() < 6000


def test_every_depth_of_the_search_occurs_above():
    sizes = [
        kept_tokens(torch.randn(12, 6000, generator=torch.manual_seed(5)) * spread / 0.8, 0.9).sum(
            -1
        )
        for spread in (0.3, 1.5, 4.0)
    ]
    assert sizes[0].min() > 16 * truncation.FIRST_DEPTH > sizes[1].max()
    assert sizes[1].min() > truncation.FIRST_DEPTH > sizes[2].max()


def test_equal_logits_at_the_boundary():
    """Top-k keeps every token that ties with the k-th (as transformers), top-p only as many as it needs."""
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, -2.0]])
    assert kept_tokens(logits, 1.0, 2).tolist() == [[True, True, True, True, False]]
    assert kept_tokens(torch.zeros(1, 10), 0.25).sum() == 3
    assert kept_tokens(logits, 1e-6).tolist() == [[True, False, False, False, False]], (
        "at least one token"
    )


@pytest.mark.parametrize("vocabulary", [1, 8, 13, 49_152])
def test_bits_are_numpys_little_endian_ones(vocabulary):
    kept = torch.rand(2, 3, vocabulary, generator=torch.manual_seed(0)) < 0.4
    packed = pack_bits(kept)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(kept.numpy(), axis=-1, bitorder="little"))
    assert torch.equal(unpack_bits(packed, vocabulary), kept)


def test_a_draw_beside_the_set_moves_into_it():
    kept = torch.tensor([[False, True, False, False, True]] * 4)
    assert at_or_after(torch.tensor([0, 1, 2, 4]), kept).tolist() == [1, 1, 4, 4]


# ------------------------------------------------------------------------------------------------- the sampler
@pytest.mark.parametrize("name", TRUNCATED)
def test_recorded_sets_and_logprobs_are_those_of_one_sequence_alone(setup, drawn, name):
    model, rollouts = setup[0], drawn[name]
    for b, prompt in enumerate(rollouts.prompt_ids):
        for k in range(K):
            keep = rollouts.completion_mask[b, k]
            ids = rollouts.completion_ids[b, k][keep]
            logits = plain_logits(model, prompt + ids.tolist())[len(prompt) - 1 : -1]
            kept = unpack_bits(rollouts.kept[b, k][keep], WORDS)
            least, most = (warped(logits, name, shift).isfinite() for shift in (-1e-5, 1e-5))
            assert (least <= kept).all() and (
                kept <= most
            ).all()  # rounding may move a token at the boundary
            q = (logits / SETTINGS[name][0]).masked_fill(~kept, -torch.inf).log_softmax(-1)
            found = rollouts.logprobs[b, k][keep]
            torch.testing.assert_close(
                found, q.gather(-1, ids[:, None]).squeeze(-1), atol=2e-5, rtol=0
            )
    assert (
        rollouts.kept[~rollouts.completion_mask] == 0
    ).all() and not rollouts.completion_mask.all()


def test_a_draw_beside_the_set_is_never_taken(setup, drawn, monkeypatch):
    """As when a parallel cumulative sum rises by a rounding error where the probability is 0."""
    monkeypatch.setattr(
        sampling, "inverse_cdf", lambda probs, uniform: (probs > 0).to(torch.uint8).argmax(-1) - 1
    )
    rollouts = sampling.sample(*setup, TEXTS, K, settings("both"), seed=3)
    ids = rollouts.completion_ids[rollouts.completion_mask]
    assert (
        unpack_bits(rollouts.kept[rollouts.completion_mask], WORDS).gather(-1, ids[:, None]).all()
    )
    assert rollouts.logprobs.isfinite().all()


@pytest.mark.parametrize("name", TRUNCATED)
def test_draws_follow_q(setup, name):
    """First tokens of 4 posts, 3200 draws each, against q by transformers' warpers on a plain forward pass."""
    model, tok = setup
    runs = [
        sampling.sample(model, tok, TEXTS, 100, settings(name, max_new_tokens=1), seed)
        for seed in range(32)
    ]
    first = torch.cat([run.completion_ids[:, :, 0] for run in runs], 1)
    for b, prompt in enumerate(runs[0].prompt_ids):
        q = warped(plain_logits(model, prompt)[-1:], name).softmax(-1)[0].double()
        counts = torch.bincount(first[b], minlength=len(q))
        assert counts[q == 0].sum() == 0, "drawn outside the set"
        expected = q / q.sum() * first.shape[1]
        common = expected > 5
        observed, wanted = counts[common].numpy(), expected[common].numpy()
        rare = (counts[~common].sum().item(), expected[~common].sum().item())
        if rare[1] > 5:
            observed, wanted = np.append(observed, rare[0]), np.append(wanted, rare[1])
        assert len(observed) > 3
        assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_off_is_the_path_without_sets(setup, drawn, monkeypatch):
    """Off never looks for a set; a set of all tokens gives the same ids and the same bits of the log-probs."""
    everything = sampling.sample(
        *setup, TEXTS, K, dataclasses.replace(settings("off"), top_k=WORDS), seed=3
    )
    monkeypatch.setattr(sampling, "kept_tokens", None)
    monkeypatch.setattr(sampling, "at_or_after", None)
    off = sampling.sample(*setup, TEXTS, K, settings("off"), seed=3)
    assert off.kept is None and torch.equal(off.completion_ids, drawn["off"].completion_ids)
    assert torch.equal(off.completion_ids, everything.completion_ids)
    assert torch.equal(off.logprobs, everything.logprobs)
    assert unpack_bits(everything.kept[everything.completion_mask], WORDS).all()


@pytest.mark.parametrize("name", ["off", "both"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_finished_rows_keeps_the_sets_in_place(setup, drawn, monkeypatch, share, name):
    monkeypatch.setattr(sampling, "COMPACT_AT", share)
    other = sampling.sample(*setup, TEXTS, K, settings(name), seed=3)
    assert torch.equal(other.completion_ids, drawn[name].completion_ids)
    if name == "both":
        assert torch.equal(other.kept, drawn[name].kept)


@pytest.mark.parametrize("name", ["off", "both"])
def test_left_padding_changes_no_logprob(setup, name):
    """The same post beside a shorter one (no padding) and beside one 17 tokens longer."""
    model, tok = setup
    post, longer = "cat" + " cat" * 9, "cat" + " cat" * 26
    assert len(models.format_prompt(tok, longer)) - len(models.format_prompt(tok, post)) == 17
    bare, padded = (
        sampling.sample(model, tok, [post, other], K, settings(name), seed=8)
        for other in ("Hi.", longer)
    )
    assert torch.equal(bare.completion_ids[0], padded.completion_ids[0])
    torch.testing.assert_close(bare.logprobs[0], padded.logprobs[0], atol=1e-4, rtol=0)
    assert not torch.equal(bare.completion_ids[1], padded.completion_ids[1])


@pytest.mark.parametrize("name", ["off", "both"])
def test_one_token_a_row_is_fed_after_the_prompts(setup, drawn, name):
    """The cache is used: the prompts go in once, not K times, then one token for each row that is still alive."""
    model, fed = setup[0], []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sampling.sample(*setup, TEXTS, K, settings(name), seed=3)
    hook.remove()
    rows = [shape[0] for shape in fed[1:]]
    assert fed[0] == (len(TEXTS), max(map(len, drawn[name].prompt_ids)))
    assert [shape[1] for shape in fed[1:]] == [1] * len(rows) and len(rows) == drawn[
        name
    ].lengths.max() - 1
    alive = [int((drawn[name].lengths > step + 1).sum()) for step in range(len(rows))]
    assert all(
        lives <= fed_rows <= lives / sampling.COMPACT_AT + 1 for lives, fed_rows in zip(alive, rows)
    )


# ------------------------------------------------------------------------------------- training replays the sets
@pytest.mark.parametrize("name", SETTINGS)
def test_training_scores_what_the_sampler_drew_from(setup, drawn, name):
    """p99 of |log p of the sampler - log p of training| on packed rows that also hold people's replies."""
    rollouts = drawn[name]
    packed, scores = packed_scores(setup[0], rollouts, name, GOLD)
    mask = packed.completion_mask[:, 1:]
    theirs = rollouts.logprobs[:, :, : mask.shape[-1]]
    gap = (scores[:, 1:] - theirs)[mask].abs()
    assert gap.quantile(0.99) < 1e-3 and gap.max() < 1e-2, gap.max()
    _, unreplayed = packed_scores(setup[0], rollouts, name, GOLD, replay=False)
    assert torch.equal(scores[:, 0], unreplayed[:, 0]) and unreplayed[:3, 0, 0].max() < 0, (
        "people's replies: all kept"
    )
    if name != "off":
        off_by = (unreplayed[:, 1:] - theirs)[mask]
        assert off_by.max() < 1e-3 and off_by.exp().mean() < 0.95, (
            "without the set every score is too low"
        )


@pytest.mark.parametrize("name", ["off", "both"])
def test_the_ids_that_are_scored_are_the_ids_that_were_sampled(setup, drawn, name):
    rollouts, tok = drawn[name], setup[1]
    packed, _ = packed_scores(setup[0], rollouts, name, GOLD)
    differs = 0
    for b in range(len(TEXTS)):
        for k in range(K):
            sampled = rollouts.completion_ids[b, k][rollouts.completion_mask[b, k]].tolist()
            assert (
                packed.completion_ids[b, k + 1][packed.completion_mask[b, k + 1]].tolist()
                == sampled
            )
            differs += models.encode_reply(tok, rollouts.texts[b][k], 100) != sampled
    assert differs > K, "texts whose tokens come out the same again could not tell the two apart"


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("top_p, top_k", [(0.9, 0), (1.0, 2), (0.9, 2)])
def test_the_gradient_is_that_of_the_sampler(top_p, top_k, eos):
    """Three tokens, T = .8: E_q[R grad log q] equals finite differences of E_q[R] with the sets held fixed, and
    E_q[grad log q] = 0; the score of the whole softmax is biased."""
    temperature, theta = 0.8, parameters(seed=15) * 1.2  # sets of one, two and three tokens
    ids, mask = replies(eos)
    reward = torch.randn(len(ids), generator=torch.manual_seed(1), dtype=torch.float64)
    contexts = theta.view(1 + V, V) / temperature
    allowed = torch.zeros_like(contexts, dtype=torch.bool)  # the sets, by loops
    for row, probs in zip(allowed, contexts.softmax(-1)):
        ranked = probs.argsort(descending=True)[: top_k or V]
        within, above = probs[ranked] / probs[ranked].sum(), 0.0
        for token, p in zip(ranked, within):
            assert abs(above - top_p) > 0.01, (
                "theta is too near to a boundary for a finite difference"
            )
            row[token] = above < top_p
            above += p
    assert (
        allowed.sum(-1).tolist()
        == {(0.9, 0): [3, 3, 2, 1], (1.0, 2): [2] * 4, (0.9, 2): [2, 2, 2, 1]}[top_p, top_k]
    )

    def log_q(theta):
        table = (
            (theta.view(1 + V, V) / temperature).masked_fill(~allowed, -torch.inf).log_softmax(-1)
        )
        second = table[1 + ids[:, 0], ids[:, 1]].masked_fill(~mask[:, 1], 0.0)
        return table[0, ids[:, 0]] + second

    q = log_q(theta).exp()
    truth = finite_difference(lambda t: (log_q(t).exp() * reward).sum(), theta)
    possible = q > 0
    assert possible.sum() < len(ids)
    completions = [y[m].tolist() for y, m in zip(ids[possible], mask[possible])]
    packed = pack([[0]], [completions], pad_id=EOS)
    context = torch.where(torch.arange(packed.input_ids.shape[1]) == 0, 0, 1 + packed.input_ids[0])
    of_token = context[packed.source[0]]
    kept = pack_bits(kept_tokens(contexts, top_p, top_k))[of_token][None]

    def expected_score(weights, kept):
        """E_q[weight grad log-prob] by the training room: `hidden` holds the logits, the head passes them on."""
        table = theta.float().clone().requires_grad_()
        scores = completion_logprobs(
            table.view(1 + V, V)[context][None], lambda x: x, packed, temperature, kept=kept
        )
        (scores.sum(-1)[0].double() * q[possible] * weights[possible]).sum().backward()
        return table.grad.double()

    centred = reward - (q * reward).sum()
    ones = torch.ones_like(reward)
    assert relative_error(expected_score(reward, kept), truth) < 1e-6
    assert relative_error(expected_score(centred, kept), truth) < 1e-6
    assert expected_score(ones, kept).norm() < 1e-6
    assert expected_score(ones, None).norm() > 0.01
    assert relative_error(expected_score(reward, None), truth) > 1e-2
    assert relative_error(expected_score(centred, None), truth) > 1e-2


def test_sets_are_cut_to_the_packed_length_and_moved_behind_peoples_replies():
    kept = torch.arange(2 * 2 * 5, dtype=torch.uint8).view(2, 2, 5, 1)
    packed = pack([[1], [1]], [[[9, 9, 9], [7], [7, 7]], [[], [7], [7]]], pad_id=0)
    found = replayed(kept, packed, gold=1)
    assert found.shape == (2, 3, 3, 1) and (found[:, 0] == 255).all()
    assert torch.equal(found[:, 1:], kept[:, :, :3])
    longer = pack([[1], [1]], [[[9] * 7, [7], [7]]] * 2, pad_id=0)
    found = replayed(kept, longer, gold=1)
    assert torch.equal(found[:, 1:, :5], kept) and (found[:, :, 5:] == 255).all()
    assert replayed(None, packed, gold=1) is None
    with pytest.raises(ValueError, match="hold 1 sampled"):
        replayed(kept, packed, gold=2)


def test_policy_and_reference_are_scored_on_the_same_set():
    """KL = 0 to 1e-6 before the first step; afterwards both have mass on the recorded sets and nowhere else."""
    policy = Policy(CFG.model, [], seed=0)
    rollouts = sampling.sample(
        policy.sampler, policy.tokenizer, TEXTS[:2], 2, settings("both", max_new_tokens=4), 3
    )
    packed = pack(
        rollouts.prompt_ids, sampled_ids(rollouts, torch.ones_like(rollouts.lengths)), pad_id=0
    )
    kept, mask = replayed(rollouts.kept, packed, gold=0), packed.completion_mask

    def whole(logits, targets):
        return logits.log_softmax(-1)

    with torch.no_grad():
        before = policy.logprobs(packed, 0.8, kept=kept)
        same = policy.logprobs(packed, 0.8, reference=True, kept=kept)
        torch.testing.assert_close(before, same, atol=1e-6, rtol=0)
        for name, master in policy.masters.items():
            if name.endswith("lora_B"):
                master.add_(0.05 * torch.randn(master.shape, generator=torch.manual_seed(2)))
        policy.sync_weights()
        now, table = policy.logprobs(packed, 0.8, kept=kept, value=whole)
        reference, other = policy.logprobs(packed, 0.8, reference=True, kept=kept, value=whole)
    torch.testing.assert_close(reference, before, atol=1e-6, rtol=0)
    assert (now - reference)[mask].abs().max() > 1e-3
    inside = unpack_bits(kept, policy.head.matrix.weight.shape[0])[mask]
    assert inside.sum(-1).max() <= 20
    for scored in (table[mask], other[mask]):
        assert torch.equal(scored.isfinite(), inside)
        torch.testing.assert_close(scored.exp().sum(-1), torch.ones(len(scored)))
