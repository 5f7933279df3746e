"""Thirty ways in which preference training of a language model goes wrong, one short test each.

Three kinds of evidence: *enumeration* (every reply of a three-token language, against central finite differences,
relative error below 1e-6), *invariance* (what must not matter, does not: padding, slices, order, processes) and
*golden* (a small case worked out by hand). tests/README.md lists rows, kinds and the fault that turns each row red.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import checklist_table
import numpy as np
import pytest
import torch
from enumeration import (
    V,
    all_sets,
    cosine,
    expectation,
    expected_update,
    finite_difference,
    log_p,
    parameters,
    relative_error,
    replies,
    token_logprobs,
)
from tiny import CFG, POSTS, letters, talkative, weighted

from polylib import models, run
from polylib.metrics import pass_at_k
from polylib.models import sampling
from polylib.models.packing import pack, replayed
from polylib.models.truncation import kept_tokens
from polylib.rivals import ppo
from polylib.training import advantages as adv
from polylib.training import loop, rollouts, scoring
from polylib.training import objective as ob
from polylib.training.policy import Policy
from polylib.training.schedules import AdaptiveKL

EXACT = 1e-6  # relative error of an enumerated gradient against finite differences
TEXTS = [post.text for post in POSTS]
EOS = 2  # of the tiny model's tokenizer

# ------------------------------------------------------------------------------ the language of three tokens
IDS, MASK = replies()
N = len(IDS)
ENDING, ENDED = replies(eos=True)  # seven replies, one of which ends at once
THETA, REF = parameters(), parameters(7)
REWARD = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.7, 0.2, 0.6], dtype=torch.float64)


def gradient_of_expected(reward=REWARD, ids=IDS, mask=MASK):
    """Finite differences of E[reward]."""
    return finite_difference(
        lambda t: expectation(log_p(t, ids, mask), all_sets(len(ids), 1), reward), THETA
    )


def update(sets, advantages, ids=IDS, mask=MASK, **options):
    """Minus E[grad policy_loss] over all sets; the probability of a set is multiplied into its advantages."""
    theta = THETA.clone().requires_grad_()
    weights = log_p(theta, ids, mask).detach()[sets].sum(-1).exp() * len(sets)
    rows = sets.flatten()
    loss, _ = ob.policy_loss(
        token_logprobs(theta, ids)[rows],
        None,
        (weights[:, None] * advantages).flatten(),
        mask[rows],
        **{"normalizer": "sequence", "max_tokens": 2} | options,
    )
    loss.backward()
    return -theta.grad


def kl(p, q):
    a, b = log_p(p, IDS, MASK), log_p(q, IDS, MASK)
    return (a.exp() * (a - b)).sum()


def expected_penalty(estimator, level):
    """E over replies of the value and of the gradient of the KL penalty on that reply."""
    theta = THETA.clone().requires_grad_()
    new, ref = token_logprobs(theta, IDS), token_logprobs(REF, IDS)
    terms = [
        ob.kl_penalty(new[[i]], ref[[i]], MASK[[i]], estimator, "sequence", level=level)
        for i in range(N)
    ]
    value = (log_p(theta, IDS, MASK).detach().exp() * torch.stack(terms)).sum()
    value.backward()
    return value.item(), theta.grad


# --------------------------------------------------------------------------------------------- the tiny model
def undecided(patch: pytest.MonkeyPatch) -> None:
    """Models loaded from now on end their replies now and then, and most tokens could have been others."""
    plain = models.load_model

    def load_model(*args, **kwargs):
        model = talkative(plain(*args, **kwargs), EOS)
        model.get_output_embeddings().weight.data *= 0.3
        return model

    patch.setattr(models, "load_model", load_model)


def new_actor(moved: bool = False, **changes) -> Policy:
    """A policy on the tiny random model; `moved` gives it an adapter that does something."""
    with pytest.MonkeyPatch.context() as patch:
        undecided(patch)
        actor = Policy(dataclasses.replace(CFG.model, **changes), [], 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, master in actor.masters.items():
            if moved and name.endswith("lora_B"):
                master.copy_(torch.randn(master.shape, generator=generator) * 0.05)
    actor.sync_weights()
    return actor


@pytest.fixture(scope="module")
def actor():
    """Shared, with an adapter that does something: not to be changed."""
    return new_actor(moved=True)


def draw(actor, posts=TEXTS, k=4, seed=5, **changes):
    return sampling.sample(
        actor.sampler, actor.tokenizer, posts, k, dataclasses.replace(CFG.sampling, **changes), seed
    )


def ids_of(sampled):
    """Sampled ids up to EOS, nested lists (B, K, length)."""
    return [
        [ids[mask].tolist() for ids, mask in zip(*row)]
        for row in zip(sampled.completion_ids, sampled.completion_mask)
    ]


def rescored(actor, sampled, temperature=0.7, reference=False, kept=None):
    """Log-probs and mask of sampled replies by the training pass, (B * K, T) each."""
    packed = pack(sampled.prompt_ids, ids_of(sampled), actor.tokenizer.pad_token_id, actor.device)
    new = actor.logprobs(packed, temperature, reference, kept=replayed(kept, packed, 0))
    return new.flatten(0, 1), packed.completion_mask.flatten(0, 1)


def cut(values, like):
    return values.flatten(0, 1)[:, : like.shape[1]]


# ------------------------------------------------------------------------------------------------ rows 1 to 7
def test_row_01_log_probabilities_carry_a_gradient_to_the_weights():
    actor = new_actor()
    new, mask = rescored(actor, draw(actor))
    loss, _ = ob.policy_loss(new, None, torch.randn(len(new)), mask, normalizer="sequence")
    loss.backward()
    actor.collect_gradients(SimpleNamespace(reduce=lambda grad, how: grad))
    before = {name: master.detach().clone() for name, master in actor.masters.items()}
    torch.optim.SGD(actor.masters.values(), lr=0.1).step()
    assert loss.requires_grad
    for name, master in actor.masters.items():
        if name.endswith("lora_B"):  # lora_A has no gradient as long as B is 0
            assert master.grad.norm() > 0 and not torch.equal(master, before[name]), name


def test_row_02_the_policy_gradient_is_that_of_the_expected_reward():
    assert relative_error(update(all_sets(N, 1), REWARD[:, None]), gradient_of_expected()) < EXACT


def test_row_03_only_a_constant_divisor_keeps_the_direction_and_none_sees_padding_or_slices():
    reward, sets = REWARD[:7], all_sets(7, 2)
    a, truth = ob.group_advantages(reward[sets]), gradient_of_expected(reward, ENDING, ENDED) / 2
    found = {
        n: update(sets, a, ENDING, ENDED, normalizer=n) for n in ("sequence", "dr_grpo", "grpo")
    }
    assert relative_error(found["sequence"], truth) < EXACT
    assert relative_error(2 * found["dr_grpo"], truth) < EXACT
    assert cosine(found["grpo"], truth) < 0.999  # 1 / |y| turns the gradient

    rows, mask, one = (
        token_logprobs(THETA, ENDING),
        ENDED,
        torch.linspace(-1, 1, 7, dtype=torch.float64),
    )
    wide, seen = (
        torch.nn.functional.pad(rows, (0, 3), value=-9.0),
        torch.nn.functional.pad(mask, (0, 3)),
    )
    for name in ("sequence", "dr_grpo", "dapo", "grpo"):
        whole = ob.policy_loss(rows, rows - 0.1, one, mask, normalizer=name, max_tokens=2)[0]
        padded = ob.policy_loss(wide, wide - 0.1, one, seen, normalizer=name, max_tokens=2)[0]
        bottom = ob.batch_denominator(mask, name, 2)
        slices = sum(
            ob.policy_loss(*part, normalizer=name, denominator=bottom)[0]
            for part in zip(rows.split(3), (rows - 0.1).split(3), one.split(3), mask.split(3))
        )
        assert padded.item() == pytest.approx(whole.item(), abs=1e-12)
        assert slices.item() == pytest.approx(whole.item(), abs=1e-12)


def test_row_04_a_group_mean_that_includes_oneself_only_rescales_by_one_minus_one_over_k():
    sets = all_sets(N, 3)
    assert (
        relative_error(
            update(sets, ob.group_advantages(REWARD[sets])), gradient_of_expected() * 2 / 3
        )
        < EXACT
    )


def test_row_05_dividing_by_the_group_std_reweights_prompts():
    sets = all_sets(N, 3)
    pull = {
        scale: [
            update(sets, ob.group_advantages(size * REWARD[sets], scale)).norm() for size in (1, 10)
        ]
        for scale in ("none", "group")
    }  # two prompts, the second with rewards ten times as large
    assert (pull["none"][1] / pull["none"][0]).item() == pytest.approx(10)
    assert (pull["group"][1] / pull["group"][0]).item() == pytest.approx(1, rel=1e-5)


def test_row_06_a_group_of_equal_rewards_pushes_nothing_but_the_kl():
    rewards = torch.tensor(
        [[0.9, 0.9, 0.9], [0.2, 0.4, 0.9]]
    )  # in float32 the mean of three .9 is not .9
    new, ref, mask = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.ones(3, 4)
    policy, _ = ob.policy_loss(new, None, ob.group_advantages(rewards)[0], mask, max_tokens=4)
    assert torch.equal(torch.autograd.grad(policy, new, retain_graph=True)[0], torch.zeros(3, 4))
    both = ob.total(policy=policy, kappa=0.1, kl=ob.kl_penalty(new, ref, mask, "k2", max_tokens=4))
    assert torch.autograd.grad(both, new)[0].norm() > 0
    assert adv.zero_variance(rewards) == 0.5


def test_row_07_rewards_a_thousand_times_smaller_have_the_same_scaled_advantages():
    r = REWARD.view(3, 3)
    four = ob.group_advantages(torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64), "group")
    assert four[0, 3].item() == pytest.approx(1.5 / math.sqrt(5 / 3))  # unbiased: divided by n - 1
    assert torch.allclose(
        ob.group_advantages(1e-3 * r, "group"), ob.group_advantages(r, "group"), rtol=1e-4
    )


# --------------------------------------------------------------------------------------- rows 8 to 12: the KL
def test_row_08_k1_and_k3_have_the_value_of_the_kl_and_k2_does_not():
    truth = kl(THETA, REF).item()
    value = {name: expected_penalty(name, "sequence")[0] for name in ("k1", "k2", "k3", "k3+")}
    assert [value[name] for name in ("k1", "k3", "k3+")] == pytest.approx([truth] * 3, rel=1e-9)
    assert abs(value["k2"] / truth - 1) > 0.01


def test_row_09_as_a_loss_k1_does_nothing_k2_pulls_back_and_k3_is_the_other_divergence():
    back = finite_difference(lambda t: kl(t, REF), THETA)
    other = finite_difference(lambda t: kl(REF, t), THETA)
    gradient = {name: expected_penalty(name, "sequence")[1] for name in ("k1", "k2", "k3", "k3+")}
    assert gradient["k1"].norm() < 1e-12
    assert (
        relative_error(gradient["k2"], back) < EXACT
        and relative_error(gradient["k3+"], back) < EXACT
    )
    assert (
        relative_error(gradient["k3"], other) < EXACT and relative_error(gradient["k3"], back) > 0.1
    )
    sets = all_sets(N, 2)  # k1 belongs into the reward
    shaped = adv.kl_in_reward(
        torch.zeros(sets.shape),
        token_logprobs(THETA, IDS)[sets],
        token_logprobs(REF, IDS)[sets],
        MASK[sets],
        0.3,
    )
    found = expected_update(THETA, IDS, MASK, sets, ob.group_advantages(shaped))
    assert (
        relative_error(found, -0.3 * back) < EXACT
    )  # two samples, each with (1 - 1/2) of the gradient


def test_row_10_a_kl_per_token_misses_what_a_token_does_to_the_later_ones():
    truth = finite_difference(lambda t: kl(t, REF), THETA)
    assert relative_error(expected_penalty("k2", "token")[1], truth) > 0.01
    assert relative_error(expected_penalty("k2", "togo")[1], truth) < EXACT


def test_row_11_the_kl_starts_at_zero_grows_with_any_reward_and_shrinks_under_its_penalty():
    actor = new_actor()
    sampled = draw(actor, k=8)
    ref = rescored(actor, sampled, reference=True)[0].detach()

    def step(loss_of, lr):
        new, mask = rescored(actor, sampled)
        loss_of(new, mask).backward()
        for name, param in actor.params.items():
            actor.masters[name].data -= lr * param.grad
            param.grad = None
        actor.sync_weights()
        return ob.kl_value(rescored(actor, sampled)[0].detach(), ref, mask).item()

    new, mask = rescored(actor, sampled)
    assert abs(ob.kl_value(new, ref, mask).item()) < 1e-6
    a = torch.randn(len(new), generator=torch.Generator().manual_seed(0))
    away = step(
        lambda new, mask: ob.policy_loss(new, None, a, mask, normalizer="sequence")[0], 1e-2
    )
    back = step(
        lambda new, mask: ob.total(kappa=1.0, kl=ob.kl_penalty(new, ref, mask, "k2", "sequence")),
        1e-3,
    )
    assert away > 1e-4 and back < away


def test_row_12_on_policy_the_ratio_is_one_the_value_nothing_and_the_gradient_something(actor):
    sampled = draw(actor)
    old, mask = rescored(actor, sampled)
    new, _ = rescored(actor, sampled)
    a = ob.group_advantages(sampled.lengths.float()).flatten()
    loss, stats = ob.policy_loss(new, old, a, mask, normalizer="grpo")
    (gradient,) = torch.autograd.grad(loss, new)
    assert (new - old)[mask].exp().sub(1).abs().max() < 1e-3 and stats["clip_fraction"] == 0
    assert abs(loss.item()) < 1e-5 and gradient.norm() > 0.01


# -------------------------------------------------------------------- rows 13 to 15: sampled as it is scored
def test_row_13_sampler_and_training_pass_agree_on_every_token(actor):
    sampled = draw(actor, k=32, temperature=1.0)
    new, mask = rescored(actor, sampled, 1.0)
    gap = (new - cut(sampled.logprobs, new))[mask].abs()
    assert new.dtype == torch.float32 and len(gap) > 300
    assert gap.quantile(0.99) < 0.2  # the bound; two passes in bfloat16 differ by up to .3
    assert gap.max() < 1e-4  # and what float32 reaches


def test_row_14_the_temperature_of_sampling_is_the_temperature_of_scoring(actor):
    sampled = draw(actor, temperature=0.7)
    new, mask = rescored(actor, sampled, 0.7)
    assert (new - cut(sampled.logprobs, new))[mask].abs().max() < 1e-4
    for reference in (False, True):
        cold, plain = (rescored(actor, sampled, t, reference)[0] for t in (0.7, 1.0))
        assert (cold - plain)[mask].abs().mean() > 0.05


def test_row_15_a_truncated_sampler_is_scored_on_the_tokens_it_kept(actor):
    def log_q(theta, kept=None):
        """log q of all replies at T = .8 among the kept tokens of each prefix."""
        logits = theta.view(1 + V, V) / 0.8
        q = logits if kept is None else logits.masked_fill(~kept, -torch.inf)
        q = q.log_softmax(-1)
        return q[0, IDS[:, 0]] + q[1:][IDS[:, 0], IDS[:, 1]]

    kept = kept_tokens(THETA.view(1 + V, V) / 0.8, top_p=0.8)
    q = log_q(THETA, kept).exp()
    possible = q > 0
    assert 0 < (~kept).sum() and 1 < possible.sum() < N
    truth = finite_difference(lambda t: (log_q(t, kept).exp() * REWARD).sum(), THETA)
    error, drift = {}, {}
    for name, replay in (("full", None), ("kept", kept)):
        scores = torch.autograd.functional.jacobian(
            lambda t, r=replay: log_q(t, r)[possible], THETA
        )
        drift[name] = (
            (q[possible] @ scores).norm().item()
        )  # E_q[score function]: 0 if what is scored is q
        error[name] = relative_error((q * REWARD)[possible] @ scores, truth)
    assert drift["full"] > 0.01 and error["full"] > 0.01
    assert drift["kept"] < 1e-12 and error["kept"] < EXACT

    sampled = draw(
        actor, top_p=0.8
    )  # and so does the engine: the sampler's log-probs, given its kept tokens
    whole, mask = rescored(actor, sampled)
    new, _ = rescored(actor, sampled, kept=sampled.kept)
    assert (new - cut(sampled.logprobs, new))[mask].abs().max() < 1e-4
    assert (new - whole)[mask].mean() > 0.05


# --------------------------------------------------------------------------- rows 16 to 22: which tokens count
def test_row_16_eos_is_scored_and_nothing_after_it_even_where_pad_is_eos(actor):
    packed = pack([[5, 6]], [[[7, EOS], [8]]], pad_id=EOS)
    assert packed.completion_ids.tolist() == [[[7, EOS], [8, EOS]]]
    assert packed.completion_mask.tolist() == [[[True, True], [True, False]]]
    gold = models.encode_reply(actor.tokenizer, "Buy a pan.", 20)
    assert gold[-1] == EOS and gold.count(EOS) == 1
    sampled = draw(actor)
    for ids, mask, logp in zip(
        *(
            x.flatten(0, 1)
            for x in (sampled.completion_ids, sampled.completion_mask, sampled.logprobs)
        )
    ):
        end = (ids == EOS).nonzero()[0, 0].item() if (ids == EOS).any() else len(ids) - 1
        assert mask.tolist() == [t <= end for t in range(len(ids))]
        assert (logp[mask] < 0).all() and (logp[~mask] == 0).all()


def test_row_17_a_reply_cut_off_is_marked_and_when_masked_pushes_nothing(actor):
    sampled = draw(actor)
    cut_off = sampled.truncated.flatten()
    ends = [ids[-1] == EOS for group in ids_of(sampled) for ids in group]
    assert cut_off.tolist() == [not end for end in ends] and 0 < cut_off.sum() < len(cut_off)
    new, mask = (x.detach() for x in rescored(actor, sampled))
    new.requires_grad_()
    ob.policy_loss(
        new, None, torch.ones(len(new)), adv.mask_truncated(mask, cut_off), max_tokens=12
    )[0].backward()
    assert (new.grad[cut_off] == 0).all() and (new.grad[~cut_off][mask[~cut_off]] != 0).all()


def test_row_18_left_padding_shifts_no_position(actor):
    short, long = POSTS[2].text, " ".join([POSTS[1].text] * 2)
    sampled = draw(actor, [short, long])
    pad = len(sampled.prompt_ids[1]) - len(sampled.prompt_ids[0])
    assert pad >= 17
    alone = pack(
        sampled.prompt_ids[:1], ids_of(sampled)[:1], actor.tokenizer.pad_token_id
    )  # no padding on the left
    new = actor.logprobs(alone, CFG.sampling.temperature)[0]
    assert (new - sampled.logprobs[0, :, : new.shape[1]]).abs().max() < 1e-4


def test_row_19_sampled_ids_are_scored_and_never_their_text(actor, monkeypatch):
    sampled = draw(actor, k=8)
    again = [
        [actor.tokenizer(text, add_special_tokens=False).input_ids for text in group]
        for group in sampled.texts
    ]
    assert ids_of(sampled) != again, "replies that survive the round trip would show nothing"
    monkeypatch.setattr(
        actor, "tokenizer", SimpleNamespace(pad_token_id=actor.tokenizer.pad_token_id)
    )
    old = rollouts.behaviour_logprobs(
        actor, CFG, sampled, size=2
    )  # would raise if it asked the tokenizer
    assert (old - sampled.logprobs).abs().max() < 1e-4


def test_row_20_dropout_is_off_wherever_a_reply_is_scored():
    actor = new_actor(moved=True, lora_dropout=0.1)
    sampled = draw(actor)
    first, second = (rescored(actor, sampled)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_row_21_the_first_reply_token_is_predicted_by_the_last_prompt_token(actor):
    prompt, reply = [5, 6, 7], [1001, 1002, EOS]
    with torch.no_grad():
        visible = torch.full((6, 6), -1e30).triu(1)[None, None]
        out = (
            actor.model.get_base_model()(
                input_ids=torch.tensor([prompt + reply]),
                attention_mask=visible,
                position_ids=torch.arange(6)[None],
            )
            .logits[0]
            .log_softmax(-1)
        )
        found = actor.logprobs(pack([prompt], [[reply]], pad_id=0), 1.0)[0, 0]
        other = actor.logprobs(pack([prompt], [[[1003, 1002, EOS]]], pad_id=0), 1.0)[0, 0]
    assert torch.allclose(
        found, out[[2, 3, 4], reply], atol=1e-5
    )  # positions P-1 .. L-2, one for each reply token
    assert found[0] != 0 and found[0] != other[0]


def test_row_22_the_replies_of_a_prompt_stay_its_own_group():
    text = [[f"{post.id} {i}" for i in range(3)] for post in POSTS]
    own = {post.text: i for i, post in enumerate(POSTS)}

    def popularity(posts, replies):  # depends on the post alone: inside a group nobody is better
        assert all(POSTS[own[post]].id == reply[0] for post, reply in zip(posts, replies))
        return np.array([10.0 * own[post] for post in posts])

    def score(order, reward):
        b = len(order)
        sampled = sampling.Rollouts(
            [[1]] * b,
            torch.zeros(b, 3, 2, dtype=torch.long),
            torch.ones(b, 3, 2).bool(),
            torch.zeros(b, 3, 2),
            torch.zeros(b, 3).bool(),
            [text[i] for i in order],
        )
        section = dataclasses.replace(CFG.grpo, beta=1.0, lam=0.0, scale_advantages="none")
        scales = {"reward": adv.RunningScale(), "diversity": adv.RunningScale()}
        return weighted(
            section,
            scoring.score(section, [POSTS[i] for i in order], sampled, reward, None, scales),
        )

    assert torch.equal(score([0, 1, 2, 3], popularity), torch.zeros(4, 3))

    def quality(posts, replies):
        return np.array([own[p] * int(r[-1]) ** 2 for p, r in zip(posts, replies)])

    order = [2, 0, 3, 1]
    assert torch.allclose(score(order, quality), score([0, 1, 2, 3], quality)[order])


# -------------------------------------------------------------------------------- rows 23 to 25: the GRPO menu
def test_row_23_an_advantage_clip_of_ten_is_dead_code_at_four_samples():
    extreme = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    a = ob.group_advantages(extreme, "group")
    assert a.max().item() == pytest.approx(
        3 / math.sqrt(4)
    )  # (K - 1) / sqrt(K), the largest there is
    clipped, share = adv.clip_advantages(a, 10.0)
    assert torch.equal(clipped, a) and share == 0
    clipped, share = adv.clip_advantages(a, 1.0)
    assert (
        share == 0.25 and abs(clipped.sum()) > 0.1
    )  # where it acts the group is no longer centred


def test_row_24_the_kl_controller_moves_towards_its_target():
    up, down = AdaptiveKL(0.1, target=5.0), AdaptiveKL(0.1, target=5.0)
    assert up.update(50.0) == pytest.approx(0.15)
    assert down.update(2.4) == pytest.approx(0.08)  # below half of the target
    assert AdaptiveKL(0.1, target=5.0).update(5.0) == 0.1


def test_row_25_the_entropy_bonus_has_a_gradient_and_raises_the_entropy():
    def entropy(theta):  # of the first token
        p = theta[:V].softmax(-1)
        return -(p * p.log()).sum()

    theta = THETA.clone().requires_grad_()
    ob.total(entropy_weight=0.5, entropy=ob.token_entropy(theta[:V])).backward()
    assert relative_error(theta.grad, -0.5 * finite_difference(entropy, THETA)) < EXACT
    assert entropy(THETA - 0.1 * theta.grad) > entropy(THETA)


# ---------------------------------------------------------------------------- rows 26 to 28: how it is carried out
STEP = dataclasses.replace(
    CFG.hybrid,
    init="base",
    alpha=0.5,
    beta=1.0,
    lam=1.0,
    kappa=0.1,
    steps=1,
    prompts_per_step=4,
    samples_per_prompt=4,
    gold_per_prompt=2,
    rollout_every=1,
    eval_samples=0,
    loss_normalizer="dapo",
    min_relevance=-1.0,
)


def gradient_of_one_step(folder: str, micro: int) -> None:
    """One step of the loop in `folder`; the gradient on the masters is left in gradient-<rank>.pt."""
    with pytest.MonkeyPatch.context() as patch:
        collect = Policy.collect_gradients

        def leave(self, accelerator):
            collect(self, accelerator)
            grads = torch.cat([master.grad.flatten() for master in self.masters.values()])
            torch.save(grads, Path(folder) / f"gradient-{accelerator.process_index}.pt")

        patch.chdir(folder)
        undecided(patch)
        patch.setattr(Policy, "collect_gradients", leave)
        Path("dvc.yaml").touch()
        loop.train(
            CFG,
            dataclasses.replace(STEP, micro_prompts=micro),
            "m",
            3,
            POSTS,
            POSTS[:2],
            paths=run.Paths("t", Path(folder)),
            encode=letters,
            reward=lambda posts, replies: np.array([float(len(reply)) for reply in replies]),
        )


def test_row_26_slices_and_processes_add_up_to_the_batch(tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "slices", "processes")}
    for folder in folders.values():
        folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    tests = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        f"import test_checklist; test_checklist.gradient_of_one_step({str(folders['processes'])!r}, 1)"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "RANK": rank,
                "LOCAL_RANK": rank,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in "01"
    ]
    gradient_of_one_step(str(folders["whole"]), 0)
    gradient_of_one_step(str(folders["slices"]), 1)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs
    whole = torch.load(folders["whole"] / "gradient-0.pt")
    assert whole.norm() > 0
    assert relative_error(torch.load(folders["slices"] / "gradient-0.pt"), whole) < EXACT
    for rank in "01":
        assert (
            relative_error(torch.load(folders["processes"] / f"gradient-{rank}.pt"), whole) < EXACT
        )


def test_row_27_sampling_uses_the_cache_and_leaves_the_modes_alone(actor):
    widths, modes = (
        [],
        [module.training for module in (*actor.model.modules(), *actor.sampler.modules())],
    )
    handle = actor.sampler.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sampled = draw(actor)
    handle.remove()
    assert widths[0] == max(map(len, sampled.prompt_ids))
    assert widths[1:] == [1] * (
        sampled.lengths.max().item() - 1
    )  # without a cache each would be longer
    assert modes == [
        module.training for module in (*actor.model.modules(), *actor.sampler.modules())
    ]
    assert torch.is_grad_enabled() and all(param.requires_grad for param in actor.params.values())


def test_row_28_the_seed_alone_decides_what_is_sampled(actor):
    first = draw(actor, seed=1)
    torch.manual_seed(99)
    assert torch.equal(draw(actor, seed=1).completion_ids, first.completion_ids)
    assert not torch.equal(draw(actor, seed=2).completion_ids, first.completion_ids)


# ---------------------------------------------------------------------------- rows 29 and 30: rivals, evaluation
def trl_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """TRL's own DPO loss on sums of log-probs, `(N,)` each."""
    from trl.trainer.dpo_trainer import DPOTrainer

    n = len(chosen)
    tokens = torch.stack(
        [torch.cat([chosen, rejected])], -1
    )  # one "token" a reply: TRL sums tokens itself
    none = torch.zeros(2 * n, 1)
    outputs = SimpleNamespace(
        log_probs=tokens, entropy=none, mean_logits=none, is_top1=none.bool(), loss=None
    )

    class Model:
        training = False

        def __call__(self, **inputs):
            return outputs

    trainer = SimpleNamespace(
        model=Model(),
        accelerator=SimpleNamespace(
            device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    mask = torch.tensor([[0, 1]] * 2 * n)
    inputs = {
        "input_ids": mask,
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)


def test_row_29_rivals_dpo_starts_at_log_two_and_ppo_with_a_constant_value_is_reinforce():
    actor = new_actor()
    pairs = draw(actor, k=2)
    sums = [
        rescored(actor, pairs, 1.0, reference)[0].sum(-1).view(-1, 2) for reference in (False, True)
    ]
    loss = trl_dpo_loss(*sums[0].T, *sums[1].detach().T, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    assert (
        sum(param.grad.norm() for param in actor.params.values()) > 0
    )  # the reference does not cancel the gradient

    # GAE with gamma = lambda = 1 and V = const: every token's advantage is the final reward less that constant
    values, reward = torch.full((N, 2), 0.37, dtype=torch.float64), REWARD
    every = torch.ones(N, 2, dtype=torch.bool)
    paid = ppo.terminal_rewards(reward[None], every[None])[0]
    gae, _ = ppo.gae(paid, values, every, 1.0, 1.0)
    assert torch.allclose(gae, (reward - 0.37)[:, None].expand(N, 2))
    assert relative_error(update(all_sets(N, 1), gae[:, :1]), gradient_of_expected()) < EXACT


def test_row_30_pass_at_k_draws_without_replacement():
    assert pass_at_k(5, 2, 3).item() == pytest.approx(0.9)
    assert 1 - (1 - 2 / 5) ** 3 == pytest.approx(0.784)  # the naive formula, too low


def test_the_readme_lists_these_rows():
    assert (
        checklist_table.between("rows", checklist_table.README.read_text())
        == checklist_table.rows()
    ), "run python tests/checklist_table.py"
