"""The rollout engine against plain forward passes, one sequence at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import CFG, POSTS, talkative, tokenizer

from polylib import models
from polylib.models import sampling

TEXTS = [post.text for post in POSTS]
SAMPLING = dataclasses.replace(CFG.sampling, temperature=0.7, max_new_tokens=10)


@pytest.fixture(scope="module")
def setup():
    tok = tokenizer()
    return talkative(models.load_model(CFG.model), tok.eos_token_id), tok


@pytest.fixture(scope="module")
def rollouts(setup):
    return sampling.sample(*setup, TEXTS, 5, SAMPLING, seed=1)


def alone(model, prompt, completion, temperature):
    """Log-probs of one completion by one unpadded forward pass without cache."""
    ids = torch.tensor([prompt + completion])
    length = ids.shape[1]
    mask = torch.zeros(1, 1, length, length).masked_fill(
        ~torch.ones(length, length).tril().bool(), -1e30
    )
    with torch.no_grad():
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=torch.arange(length)[None]
        ).logits[0]
    logp = torch.log_softmax(logits / temperature, -1)
    return logp[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def test_sampled_logprobs_equal_a_plain_forward_pass(setup, rollouts):
    model, _ = setup
    assert len({len(p) for p in rollouts.prompt_ids}) > 1, (
        "prompts of one length would not test left padding"
    )
    for b, prompt in enumerate(rollouts.prompt_ids):
        for k in range(5):
            keep = rollouts.completion_mask[b, k]
            expected = alone(model, prompt, rollouts.completion_ids[b, k][keep].tolist(), 0.7)
            torch.testing.assert_close(rollouts.logprobs[b, k][keep], expected, atol=2e-5, rtol=0)


def test_temperature_is_in_the_logprobs(setup, rollouts):
    keep = rollouts.completion_mask[0, 0]
    other = alone(
        setup[0], rollouts.prompt_ids[0], rollouts.completion_ids[0, 0][keep].tolist(), 1.0
    )
    assert (rollouts.logprobs[0, 0][keep] - other).abs().max() > 0.02


def test_eos_is_kept_and_nothing_follows_it(setup, rollouts):
    eos, pad = setup[1].eos_token_id, setup[1].pad_token_id
    assert rollouts.truncated.any() and not rollouts.truncated.all(), "both cases must occur"
    for ids, mask, truncated in zip(
        rollouts.completion_ids.flatten(0, 1),
        rollouts.completion_mask.flatten(0, 1),
        rollouts.truncated.flatten(),
    ):
        kept = ids[mask]
        assert (kept[:-1] != eos).all()
        assert (kept[-1] == eos) != truncated
        assert (ids[~mask] == pad).all()
        assert mask.int().diff().max() <= 0, "the mask is one run of True from the start"
    assert (rollouts.logprobs[~rollouts.completion_mask] == 0).all()


def test_same_seed_same_completions_other_seed_others(setup, rollouts):
    again = sampling.sample(*setup, TEXTS, 5, SAMPLING, seed=1)
    other = sampling.sample(*setup, TEXTS, 5, SAMPLING, seed=2)
    assert torch.equal(again.completion_ids, rollouts.completion_ids)
    assert not torch.equal(other.completion_ids, rollouts.completion_ids)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_finished_rows_changes_nothing(setup, rollouts, monkeypatch, share):
    monkeypatch.setattr(sampling, "COMPACT_AT", share)
    other = sampling.sample(*setup, TEXTS, 5, SAMPLING, seed=1)
    assert torch.equal(other.completion_ids, rollouts.completion_ids)
    torch.testing.assert_close(other.logprobs, rollouts.logprobs, atol=2e-5, rtol=0)


def test_a_share_of_the_posts_gets_the_replies_it_gets_among_all(setup, rollouts):
    """What several processes draw together is what one draws."""
    for first in (0, 1):
        share = slice(first, None, 2)
        part = sampling.sample(*setup, TEXTS, 5, SAMPLING, 1, share)
        assert torch.equal(part.completion_ids, rollouts.completion_ids[share])
        assert part.texts == rollouts.texts[share]


def test_texts_are_the_decoded_ids_of_their_own_prompt(setup, rollouts):
    for b in range(len(TEXTS)):
        for k in range(5):
            ids = rollouts.completion_ids[b, k][rollouts.completion_mask[b, k]]
            assert rollouts.texts[b][k] == setup[1].decode(ids, skip_special_tokens=True).strip()


def test_inverse_cdf_has_the_right_distribution():
    rng = np.random.default_rng(0)
    probs = torch.tensor(rng.dirichlet(np.full(50, 0.3)), dtype=torch.float32)
    draws = sampling.inverse_cdf(
        probs.expand(100_000, -1), torch.rand(100_000, generator=torch.manual_seed(0))
    )
    counts = torch.bincount(draws, minlength=50).numpy()
    expected = probs.double().numpy() / probs.double().sum().item() * len(draws)
    common = expected > 5
    assert counts[expected == 0].sum() == 0
    observed, wanted = (
        np.append(counts[common], counts[~common].sum()),
        np.append(expected[common], expected[~common].sum()),
    )
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_inverse_cdf_never_picks_an_impossible_token():
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(3, -1)
    picked = sampling.inverse_cdf(probs, torch.tensor([0.0, 0.3, 1.0 - 2**-24]))
    assert picked.tolist() == [1, 3, 3]
