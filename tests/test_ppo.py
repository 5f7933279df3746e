"""PPO: GAE against hand and brute force, its gradient against enumeration, the value head against finite differences
and a plain forward pass, and a run that is killed and goes on with the same head."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import CFG, POSTS, length_reward, letters, project_of_talkative_models, weights

from polylib import models, run
from polylib.models import sealed
from polylib.models.packing import pack
from polylib.rivals import ppo
from polylib.training import loop, objective, policy, step, toy

SECTION = dataclasses.replace(
    CFG.ppo,
    init="base",
    kappa=0.0,
    gae_lambda=1.0,
    steps=5,
    prompts_per_step=4,
    samples_per_prompt=4,
    lr=1e-2,
    warmup_steps=1,
    scale_advantages="none",
    value_clip=0.0,
    eval_every=5,
    eval_samples=2,
    anatomy_every=0,
)
ALL = torch.ones(9, 2, dtype=torch.bool)


def words_reward(posts, replies):
    """Number of words, in units in which a value head can follow."""
    return length_reward(posts, replies) / 40


# ------------------------------------------------------------------------------------------ generalised advantages
def test_gae_by_hand():
    """Two tokens, then one; gamma .5, lambda .5: delta = (0 + .5 * 2 - 1, 3 - 2) and A_1 = 0 + .25 * 1."""
    rewards = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    values = torch.tensor([[1.0, 2.0], [1.0, 9.0]])  # 9: whatever a network says after the end
    mask = torch.tensor([[True, True], [True, False]])
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.25, 1.0], [3.0, 0.0]]
    assert returns.tolist() == [[1.25, 3.0], [4.0, 0.0]]


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.3), (0.7, 0.0)])
def test_gae_is_the_sum_of_the_paper(gamma, lam):
    """Eq. 16 of Schulman et al. 2016, term by term, for replies of every length; lambda 1: discounted rewards."""
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 7, 7, generator=g, dtype=torch.float64)
    mask = torch.ones(7, 7).tril().bool()  # replies of 1 to 7 tokens
    advantages, returns = ppo.gae(rewards * mask, values, mask, gamma, lam)
    for row, n in enumerate(range(1, 8)):
        v = [*values[row, :n].tolist(), 0.0]
        r = rewards[row, :n].tolist()
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            by_hand = sum((gamma * lam) ** i * delta[t + i] for i in range(n - t))
            assert advantages[row, t].item() == pytest.approx(by_hand, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(by_hand + v[t], abs=1e-12)
            if lam == 1:
                paid = sum(gamma**i * r[t + i] for i in range(n - t))
                assert returns[row, t].item() == pytest.approx(paid, abs=1e-12)
        assert not advantages[row, n:].any() and not returns[row, n:].any()


def test_a_reply_is_paid_once_at_its_last_token():
    mask = torch.tensor([[[True, True, False], [True, True, True], [True, False, False]]])
    paid = ppo.terminal_rewards(torch.tensor([[2.0, -1.0, 3.0]]), mask)
    assert paid.tolist() == [[[0, 2, 0], [0, 0, -1], [3, 0, 0]]]


# --------------------------------------------------------------------------------------------- against enumeration
def update_by_enumeration(values, lam, kappa=0.0, reference=None):
    """Expected gradient of PPO's policy loss (and of kappa KL) over all nine replies; `values (9, 2)` of the states."""
    theta = toy.policy().requires_grad_()
    logp = toy.token_logprobs(theta)
    rewards = ppo.terminal_rewards(toy.REWARD[None], ALL[None])[0]
    advantages, _ = ppo.gae(rewards, values, ALL, 1.0, lam)
    chances = logp.detach().sum(-1).exp()
    losses = []
    for i in range(9):
        one = (logp[[i]], None, advantages[[i]], ALL[[i]])
        losses.append(objective.policy_loss(*one, normalizer="sequence")[0])
        if kappa:
            kl = (logp[[i]], reference[[i]], ALL[[i]], "k2", "sequence")
            losses[-1] = losses[-1] + kappa * objective.kl_penalty(*kl, level="togo")
    return torch.autograd.grad((chances * torch.stack(losses)).sum(), theta)[0]


def true_gradient():
    return toy.exact_gradient(lambda replies: toy.REWARD[replies].mean(-1), 1, toy.policy())


def foreseen():
    """What the policy can expect of a reply before each token, exactly: `(9, 2)`."""
    chances = toy.logprobs(toy.policy()).exp()
    of_first = torch.stack([chances[i : i + 3] @ toy.REWARD[i : i + 3] for i in (0, 3, 6)])
    of_first /= chances.view(3, 3).sum(1)
    return torch.stack([(chances @ toy.REWARD).expand(9), of_first.repeat_interleave(3)], 1)


def guessed():
    """A network that knows nothing, of the states alone: the same for replies that begin alike."""
    first = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64).repeat_interleave(3)
    return torch.stack([torch.full((9,), 0.4, dtype=torch.float64), first], 1)


def test_at_lambda_1_it_is_reinforce_with_that_baseline_whatever_the_network_says():
    rewards = ppo.terminal_rewards(toy.REWARD[None], ALL[None])[0]
    for values in (torch.zeros(9, 2, dtype=torch.float64), guessed(), foreseen()):
        advantages, _ = ppo.gae(rewards, values, ALL, 1.0, 1.0)
        assert torch.allclose(advantages, toy.REWARD[:, None] - values, atol=1e-12)
        found = update_by_enumeration(values, 1.0)
        assert toy.relative_error(-found, true_gradient()) < 1e-6


def test_below_lambda_1_it_is_exact_where_the_network_is_right_and_biased_where_not():
    assert toy.relative_error(-update_by_enumeration(foreseen(), 0.0), true_gradient()) < 1e-6
    assert toy.relative_error(-update_by_enumeration(guessed(), 0.0), true_gradient()) > 0.1


def test_the_kl_is_counted_once():
    """Loss of PPO and kappa KL: the gradient of E[reward] - kappa KL(policy || start), with kappa and not twice it."""
    start, kappa = toy.token_logprobs(toy.policy(7)), 0.3
    theta = toy.policy().requires_grad_()
    logp = toy.logprobs(theta)
    wanted = logp.exp() @ (toy.REWARD - kappa * (logp - start.sum(-1)))
    truth = torch.autograd.grad(wanted, theta)[0]
    found = update_by_enumeration(guessed(), 1.0, kappa, start)
    assert toy.relative_error(-found, truth) < 1e-6


# ----------------------------------------------------------------------------------------------------- value loss
def test_value_loss_by_hand():
    values, old = torch.tensor([[1.0, 2.0], [3.0, 7.0]]), torch.tensor([[0.5, 2.0], [0.0, 0.0]])
    returns = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    plain = ppo.value_loss(values, old, returns, mask, 0.0, "sequence")
    assert plain.item() == pytest.approx((1 + 4 + 1) / 2 / 2)
    clipped = ppo.value_loss(values, old, returns, mask, 1.0, "sequence")  # 3 counts as 1
    assert clipped.item() == pytest.approx((1 + 4 + 9) / 2 / 2)
    assert ppo.value_loss(values, old, returns, mask, 0.0, "dapo").item() == pytest.approx(1.0)


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("normalizer", ["sequence", "dapo", "grpo", "dr_grpo"])
def test_the_gradient_of_the_value_loss_by_finite_differences(clip, normalizer):
    g = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 4, 5, generator=g, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    values.requires_grad_()

    def loss(x):
        return ppo.value_loss(x, old, returns, mask, clip, normalizer, 7.0)

    found = torch.autograd.grad(loss(values), values)[0]
    assert found[mask].any() and not found[~mask].any()
    for at in mask.nonzero().tolist():
        change = torch.zeros_like(values).detach()
        change[tuple(at)] = 1e-6
        slope = (loss(values + change) - loss(values - change)).item() / 2e-6
        assert found[tuple(at)].item() == pytest.approx(slope, abs=1e-8), at
    if clip:  # a value that has moved far enough towards its return is left alone, one that moved away is not
        moved = (values - old).detach()
        far = mask & (moved.abs() > clip)
        towards, away = far & (moved * (returns - values) > 0), far & (moved * (returns - old) < 0)
        assert towards.any() and not found[towards].any() and away.any() and found[away].all()


# -------------------------------------------------------------------------------------------- the head on the model
@pytest.fixture(autouse=True)
def in_project(tmp_path, monkeypatch):
    project_of_talkative_models(tmp_path, monkeypatch)


def learner(weight=0.0, bias=0.0, seed=3, **change):
    """A learner whose value head says something, and its first batch of samples."""
    section = dataclasses.replace(SECTION, **change)
    it = loop.learner(CFG, section, seed, [], words_reward, letters, ppo.Critic)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        it.policy.masters["value_head.weight"].copy_(
            weight * torch.randn(it.policy.critic.weight.shape, generator=g)
        )
        it.policy.masters["value_head.bias"].fill_(bias)
    it.policy.sync_weights()
    return it, loop.sample_and_score(it, POSTS, 0, len(POSTS))[0]


def gradients(it, scored, **change):
    """Gradient of one step by name."""
    section = dataclasses.replace(it.section, **change)
    for param in it.policy.params.values():
        param.grad = None
    batch = loop.own_batch(it, POSTS, 0)
    totals = step.backward(it.policy, CFG, section, batch, scored, [0, 0], **weights(section))
    found = {
        name: torch.zeros_like(param) if param.grad is None else param.grad.clone()
        for name, param in it.policy.params.items()
    }
    return found, totals


def adapter(found):
    return torch.cat([g.flatten() for name, g in found.items() if "lora" in name])


def test_values_are_those_of_a_plain_forward_pass_before_each_token():
    """One sequence at a time, without packing, by transformers' own attention."""
    it, scored = learner(weight=0.3, bias=0.2)
    plain = models.load_model(CFG.model)
    plain.set_attn_implementation("sdpa")
    w, b = it.policy.critic.weight, it.policy.critic.bias
    drawn = scored.rollouts
    for at, prompt in enumerate(drawn.prompt_ids):
        for k, n in enumerate(drawn.lengths[at].tolist()):
            ids = torch.tensor([prompt + drawn.completion_ids[at, k, :n].tolist()])
            with torch.no_grad():
                h = plain(ids, output_hidden_states=True).hidden_states[-1]
            h = h[0, len(prompt) - 1 : -1].float()
            h = (h - h.mean(-1, keepdim=True)) / h.var(-1, correction=0, keepdim=True).sqrt()
            assert torch.allclose(scored.values[at, k, :n], (h @ w + b).detach(), atol=1e-3)
            assert not scored.values[at, k, n:].any()
    assert scored.values.std() > 0.1


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_with_a_constant_value_a_step_is_plain_reinforce(bias):
    """Adapter's gradient: that of - sum_i (r_i - bias) log pi(y_i) / (replies * limit), one packed reply at a time."""
    it, scored = learner(bias=bias)
    found, _ = gradients(it, scored, value_weight=0.0)
    drawn, total = scored.rollouts, 0.0
    for param in it.policy.params.values():
        param.grad = None
    for at, prompt in enumerate(drawn.prompt_ids):
        for k, n in enumerate(drawn.lengths[at].tolist()):
            packed = pack([prompt], [[drawn.completion_ids[at, k, :n].tolist()]], 0)
            logp = it.policy.logprobs(packed, CFG.sampling.temperature).sum()
            total = total - (scored.rewards[at, k] - bias) * logp
    (total / (scored.rewards.numel() * CFG.sampling.max_new_tokens)).backward()
    wanted = torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for name, p in it.policy.params.items()
            if "lora" in name
        ]
    )
    assert wanted.norm() > 0 and toy.relative_error(adapter(found), wanted) < 1e-4


def test_the_gradient_of_the_head_by_finite_differences():
    it, scored = learner(weight=0.1)
    found, totals = gradients(it, scored, value_weight=0.7, value_clip=0.0)
    critic, direction = it.policy.critic, {}
    g = torch.Generator().manual_seed(2)
    for name in ("weight", "bias"):
        direction[name] = torch.randn(getattr(critic, name).shape, generator=g)
    said = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, d in direction.items():
                getattr(critic, name).add_(0.1 * sign * d)  # the loss is a parabola along it
        said.append(gradients(it, scored, value_weight=0.7)[1]["loss"])
        it.policy.sync_weights()
    slope = sum((found[f"value_head.{name}"] * d).sum().item() for name, d in direction.items())
    assert slope == pytest.approx((said[0] - said[1]) / 0.2, rel=1e-3) and abs(slope) > 1e-3
    assert totals["value_loss"] > 0


def test_the_value_moves_the_adapter_too_and_by_its_weight():
    it, scored = learner(weight=0.1)
    none, some, twice = (
        adapter(gradients(it, scored, value_weight=weight)[0]) for weight in (0.0, 0.5, 1.0)
    )
    assert (some - none).norm() > 1e-3 * none.norm()
    assert toy.relative_error(2 * (some - none), twice - none) < 1e-3


def test_a_reply_of_no_advantage_still_teaches_the_head():
    it, scored = learner(weight=0.1)
    wanted = gradients(it, scored)[0]["value_head.weight"]
    nothing = torch.zeros_like(scored.reward_advantages)
    found = gradients(it, dataclasses.replace(scored, reward_advantages=nothing))[0]
    assert wanted.any() and torch.allclose(found["value_head.weight"], wanted)


def test_slices_of_a_batch_add_up():
    it, scored = learner(weight=0.1, gae_lambda=0.9, lam=0.5)
    whole, sliced = (gradients(it, scored, micro_prompts=size)[0] for size in (0, 1))
    for name, gradient in whole.items():
        assert torch.allclose(gradient, sliced[name], atol=1e-5 * gradient.abs().max() + 1e-9), name


def test_a_reply_cut_off_ends_there_and_when_masked_pushes_nothing():
    """Its last token gets the reward less the value before it, with nothing expected after; masked, no gradient."""
    it, scored = learner(weight=0.1)
    cut = scored.rollouts.truncated
    assert cut.any() and not cut.all()
    last = (scored.rewards - scored.values[..., -1])[cut]
    assert torch.allclose(scored.reward_advantages[..., -1][cut], last)
    assert torch.allclose(scored.returns[..., -1][cut], scored.rewards[cut])
    masked = gradients(it, scored, mask_truncated=True)[0]
    other = dataclasses.replace(  # whatever a cut reply was worth
        scored,
        reward_advantages=scored.reward_advantages + 9.0 * cut[..., None],
        returns=scored.returns - 5.0 * cut[..., None],
    )
    again = gradients(it, other, mask_truncated=True)[0]
    unmasked = gradients(it, other)[0]
    for name in masked:
        assert torch.equal(masked[name], again[name])
    assert not torch.equal(unmasked["value_head.weight"], again["value_head.weight"])


def test_the_head_learns_what_replies_are_worth_and_the_history_says_how_well():
    it, _ = learner(value_weight=1.0, beta=1e-6, updates_per_rollout=1)
    it.reward = lambda posts, replies: [2.0] * len(replies)
    rows = [loop.take_step(it, POSTS, at) for at in range(5)]
    assert rows[0]["value"] == 0 and 0.5 < rows[-1]["value"] < 2.5
    assert rows[-1]["value_loss"] < 0.6 * rows[0]["value_loss"]
    mask = torch.tensor([[[True, True], [True, False]]])
    scored = SimpleNamespace(
        rollouts=SimpleNamespace(completion_mask=mask),
        values=torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]),
        returns=torch.tensor([[[1.0, 2.0], [6.0, 0.0]]]),
    )
    told = it.policy.critic.describe(scored)  # var of (0, 0, 3) is 3, of (1, 2, 6) 7
    assert told == {"value": 2.0, "explained_variance": pytest.approx(1 - 3 / 7)}
    scored.returns = torch.full((1, 2, 2), 2.0)
    assert math.isnan(it.policy.critic.describe(scored)["explained_variance"])


# --------------------------------------------------------------------------------------------------- a whole run
def train(folder, reward=words_reward, **change):
    section, paths = dataclasses.replace(SECTION, kappa=0.1, **change), run.Paths("t", folder)
    folder.mkdir(exist_ok=True)
    arguments = {"paths": paths, "reward": reward, "encode": letters, "critic": ppo.Critic}
    history = loop.train(CFG, section, "ppo", 3, POSTS, POSTS[:2], **arguments)
    return history, load_file(paths.models("ppo", 3) / "adapter.safetensors"), paths


def test_a_killed_run_goes_on_with_the_same_head_bit_for_bit(tmp_path, monkeypatch):
    whole, expected, paths = train(tmp_path / "whole", save_every=2, steps=6)
    assert list(whole.step) == list(range(7)) and list(whole.columns) == [
        *loop.COLUMNS,
        *ppo.Critic.COLUMNS,
    ]
    assert whole.value[1] == whole.value[2] == 0 != whole.value[3]  # one rollout for two updates
    assert (whole.value_loss[1:] > 0).all() and whole.kl[2] > 0 == whole.val_kl[0]
    taken, plain = [], loop.take_step

    def dies(it, posts, step):
        if step == 5 and not taken:
            taken.append({name: m.detach().clone() for name, m in before.items()})
            raise KeyboardInterrupt
        row = plain(it, posts, step)
        if step == 3:
            before.update({name: m.detach().clone() for name, m in it.policy.masters.items()})
        return row

    before = {}
    monkeypatch.setattr(loop, "take_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", save_every=2, steps=6)
    scratch = run.Paths("t", tmp_path / "killed").scratch("ppo", 3)
    tensors, scalars = sealed.read(policy._states(scratch)[0])
    assert scalars["step"] == 4 and tensors["master.value_head.weight"].any()
    assert torch.equal(tensors["master.value_head.weight"], before["value_head.weight"])
    fresh = loop.learner(CFG, dataclasses.replace(SECTION, kappa=0.1), 3, critic=ppo.Critic)
    policy.load_state(scratch, fresh.policy, fresh.optimizer, scalars["marks"])
    for name in ("value_head.weight", "value_head.bias"):
        assert torch.equal(fresh.policy.masters[name], before[name])
        assert torch.equal(fresh.policy.params[name], before[name])
    resumed, found, paths = train(tmp_path / "killed", save_every=2, steps=6)
    clocks = ["seconds", "tokens_per_s"]
    assert resumed.drop(columns=clocks).equals(whole.drop(columns=clocks))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((paths.results("ppo", 3) / "metrics.json").read_text())["resumes"] == 1
    # what others load is an adapter like any other
    assert not [name for name in expected if "value_head" in name]
    models.load_model(CFG.model, models.adapter_chain(paths.models("ppo", 3), paths.root))


def test_ahead_of_time_and_with_diversity(tmp_path):
    """rollout_every and lam, which PPO shares with the other methods, act on advantages of tokens."""
    history, *_ = train(tmp_path, rollout_every=2, updates_per_rollout=1, lam=1.0, steps=2)
    assert torch.isfinite(torch.tensor(history.loss[1:].tolist())).all()
    assert history.diversity[1:].notna().all() and history.value[2] == 0


def test_without_a_critic_nothing_of_it_is_there():
    it = loop.learner(CFG, dataclasses.replace(CFG.grpo, init="base"), 3)
    assert it.policy.critic is None and not [n for n in it.policy.masters if "value" in n]
    assert not set(ppo.Critic.COLUMNS) & set(loop.COLUMNS)
