"""Every choice of the training menu, on a tiny model: it does what params/laptop.yaml says of it."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import percentileofscore
from tiny import CFG, HYBRID, POSTS, SECTION, length_reward, letters, talkative, weighted, weights

from polylib import config, models, run
from polylib.models import sampling
from polylib.models.attention import additive_mask
from polylib.training import loop, rollouts, scoring, step
from polylib.training.advantages import RunningScale
from polylib.training.anatomy import Anatomy
from polylib.training.policy import Policy

GRPO = dataclasses.replace(HYBRID, alpha=0.0, lam=0.0, kappa=0.0)


def change(section=SECTION, **settings):
    return dataclasses.replace(section, **settings)


@pytest.fixture(autouse=True)
def talkative_models(tmp_path, monkeypatch):
    plain = models.load_model
    monkeypatch.setattr(
        models,
        "load_model",
        lambda cfg, parents=(), seed=0: talkative(plain(cfg, parents, seed), 2),
    )
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


def train(
    folder, section, reward=length_reward, encode=letters, seed=3, cfg=CFG, posts=POSTS, **options
):
    paths = run.Paths("t", folder)
    folder.mkdir(exist_ok=True)
    history = loop.train(
        cfg,
        section,
        "m",
        seed,
        posts,
        POSTS[:2],
        paths=paths,
        encode=encode,
        reward=reward,
        **options,
    )
    return history, load_file(paths.models("m", seed) / "adapter.safetensors"), paths


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------- advantages, by hand
def drawn(truncated=None, k=4, texts=None, ids=None):
    """Rollouts of POSTS with these texts or ids; what the model said does not matter here."""
    b = len(POSTS)
    ids = (
        torch.randint(5, 9, (b, k, 6), generator=torch.Generator().manual_seed(0))
        if ids is None
        else ids
    )
    truncated = torch.zeros(b, k, dtype=torch.bool) if truncated is None else truncated
    texts = texts or [[f"reply {i} {post.text[i : i + 8]}" for i in range(k)] for post in POSTS]
    return sampling.Rollouts(
        [[1]] * b,
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.zeros(ids.shape),
        truncated,
        texts,
    )


REWARDS = torch.tensor(np.random.default_rng(5).normal(size=(4, 4)), dtype=torch.float32)


def scored_with(section, people=None, rewards=REWARDS, rolled=None, encode=letters):
    return scoring.score(
        section,
        POSTS,
        rolled or drawn(),
        lambda posts, replies: rewards.flatten().numpy(),
        encode,
        {"reward": RunningScale(), "diversity": RunningScale()},
        people=people,
    )


def test_percentile_is_the_share_of_people_below_and_never_falls():
    people = torch.tensor([0.3, -1.0, 0.3, 2.0, 0.9]).sort().values
    asked = torch.tensor([[-2.0, -1.0, 0.0], [0.3, 0.9, 5.0]])
    expected = [[percentileofscore(people, x, "mean") / 100 for x in row] for row in asked.tolist()]
    np.testing.assert_allclose(scoring.percentile(asked, people), expected, rtol=1e-6)
    grid = scoring.percentile(torch.linspace(-3, 3, 99), people)
    assert (grid.diff() >= 0).all() and grid[0] == 0 and grid[-1] == 1


def test_a_clip_of_ten_is_dead_at_four_samples_and_a_tight_one_acts_on_both_parts():
    wild = REWARDS.clone()
    wild[:, 0] = 1e6
    section = change(GRPO, scale_advantages="group", advantage_clip=10.0)
    found = weighted(section, scored_with(section, rewards=wild))
    assert found.abs().max() <= 1.5 + 1e-6 and torch.equal(
        found, weighted(change(section, advantage_clip=0.0), scored_with(section, rewards=wild))
    )
    scored, tight = scored_with(HYBRID), change(HYBRID, advantage_clip=0.8)
    free = weighted(HYBRID, scored)
    over = free.abs() > 0.8
    assert over.any() and not over.all()
    torch.testing.assert_close(weighted(tight, scored), free.clamp(-0.8, 0.8))
    assert torch.equal(weighted(tight, scored)[~over], free[~over])


KINDS = ["jackknife", "leave_one_out", "set_level", "f_poly", "darling"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_diversity_has_a_signal_and_no_invalid_reply_gains(kind):
    ids = torch.randint(5, 30, (4, 4, 6), generator=torch.Generator().manual_seed(0))
    texts = drawn().texts
    texts[1][2] = "one"  # invalid, however different
    section = change(SECTION, lam=2.0, diversity_gradient=kind, scale_advantages="none")
    found = scored_with(section, torch.linspace(-1, 1, 9), rolled=drawn(ids=ids, texts=texts))
    assert torch.isfinite(weighted(section, found)).all() and weighted(section, found).any()
    assert not found.valid[1, 2] and weighted(section, found)[1, 2] <= 0
    double = scored_with(
        change(section, lam=4.0), torch.linspace(-1, 1, 9), rolled=drawn(ids=ids, texts=texts)
    )
    torch.testing.assert_close(
        weighted(change(section, lam=4.0), double), 2 * weighted(section, found)
    )


def test_f_poly_multiplies_by_the_percentile_among_people():
    people = torch.linspace(-3, 3, 31)
    ranks = scoring.percentile(REWARDS, people)
    section = change(
        SECTION, lam=1.0, diversity_gradient="f_poly", scale_advantages="none", subset_size=3
    )
    rolled = drawn()
    found = weighted(section, scored_with(section, people, rolled=rolled))
    e = torch.from_numpy(letters([t for group in rolled.texts for t in group])).view(4, 4, -1)
    for b in range(4):
        value = {
            s: ranks[b, list(s)].mean()
            * np.mean([1 - e[b, i] @ e[b, j] for i, j in combinations(s, 2)])
            for s in combinations(range(4), 3)
        }
        for i in range(4):
            inside = np.mean([v for s, v in value.items() if i in s])
            outside = np.mean([v for s, v in value.items() if i not in s])
            assert found[b, i].item() == pytest.approx(3 / 4 * (inside - outside), abs=1e-5)


# --------------------------------------------------------------------------------- one step on a real model
@pytest.fixture(scope="module")
def actor():
    with pytest.MonkeyPatch.context() as patch:
        plain = models.load_model
        patch.setattr(
            models,
            "load_model",
            lambda cfg, parents=(), seed=0: talkative(plain(cfg, parents, seed), 2),
        )
        made = Policy(CFG.model, [], 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, master in made.masters.items():
            if name.endswith("lora_B"):
                master.copy_(torch.randn(master.shape, generator=generator) * 0.05)
    made.sync_weights()
    return made


@pytest.fixture(scope="module")
def rolled(actor):
    found = sampling.sample(
        actor.sampler, actor.tokenizer, [p.text for p in POSTS], 4, CFG.sampling, 5
    )
    assert found.truncated.any() and not found.truncated.all(), "the tests below need both"
    return found


def advantages(rolled, values=REWARDS):
    return scoring.Scored(
        POSTS, rolled, None, None, values, torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)
    )


def gradient(actor, section, scored, cfg=CFG, **options):
    for parameter in actor.params.values():
        parameter.grad = None
    totals = step.backward(
        actor, cfg, section, POSTS, scored, [0, 0], **(weights(section) | options)
    )
    return totals, torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in actor.params.values()
        ]
    )


@pytest.mark.parametrize("normalizer", ["dr_grpo", "dapo"])
def test_a_reply_that_was_cut_off_gets_exactly_zero_gradient(actor, rolled, normalizer):
    section = change(GRPO, kappa=0.1, entropy=0.1, mask_truncated=True, loss_normalizer=normalizer)
    cut_off = rolled.truncated
    scored, other = advantages(rolled), advantages(rolled, REWARDS + 3.0 * cut_off)
    for settings in (section, change(section, kappa=0.0, entropy=0.0)):
        assert torch.equal(
            gradient(actor, settings, scored)[1], gradient(actor, settings, other)[1]
        )
        kept = change(settings, mask_truncated=False)
        assert not torch.equal(gradient(actor, kept, scored)[1], gradient(actor, kept, other)[1])
        nobody = dataclasses.replace(rolled, truncated=torch.ones_like(cut_off))
        assert not gradient(actor, settings, advantages(nobody))[1].any()
        assert gradient(actor, change(settings, mask_truncated=False), advantages(nobody))[1].any()


def full_logits(actor, prompt, ids, temperature=1.0):
    """Logits that predict `ids`, by the whole model on one unpacked row."""
    row = torch.tensor([prompt + ids])
    causal = torch.ones(1, 1, row.shape[1], row.shape[1], dtype=torch.bool).tril()
    out = actor.model(
        input_ids=row, attention_mask=additive_mask(causal, torch.float32), use_cache=False
    )
    return out.logits[0, len(prompt) - 1 : -1].float() / temperature


def gold_rows(actor):
    groups = rollouts.gold_ids(actor, POSTS, 2, CFG.sampling.max_new_tokens, [0, 0])
    prompts = [
        models.format_prompt(actor.tokenizer, p.text, CFG.sampling.max_prompt_tokens) for p in POSTS
    ]
    return [(prompt, ids) for prompt, group in zip(prompts, groups) for ids in group if ids]


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def test_cross_entropy_equals_one_unpacked_row_at_a_time(actor):
    totals, found = gradient(actor, change(micro_prompts=3), None)
    losses = [
        cross_entropy(full_logits(actor, prompt, ids), torch.tensor(ids))
        for prompt, ids in gold_rows(actor)
    ]
    loss = torch.cat(losses).mean()
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(actor.params.values()))]
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)
    assert totals["loss"] == pytest.approx(loss.item(), abs=1e-4) == totals["ce"]


def test_the_entropy_bonus_is_the_entropy_of_the_sampled_tokens(actor, rolled):
    totals, found = gradient(
        actor,
        change(GRPO, beta=0.0, entropy=0.3, loss_normalizer="dapo", micro_prompts=1),
        advantages(rolled, torch.zeros(4, 4)),
    )
    entropies = []
    for prompt, group, lengths in zip(
        rolled.prompt_ids, rolled.completion_ids.tolist(), rolled.lengths.tolist()
    ):
        for ids, n in zip(group, lengths):
            logits = full_logits(actor, prompt, ids[:n], CFG.sampling.temperature)
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    mean = torch.cat(entropies).mean()
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(-0.3 * mean, list(actor.params.values()))]
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)
    assert totals["entropy"] == pytest.approx(mean.item(), abs=1e-4) and found.any()


@pytest.mark.parametrize("level", ["togo", "token"])
def test_the_kl_charges_a_token_for_what_follows_it_or_for_itself(actor, rolled, level):
    _, found = gradient(
        actor,
        change(GRPO, beta=0.0, kappa=0.3, kl_level=level, loss_normalizer="sequence"),
        advantages(rolled, torch.zeros(4, 4)),
    )
    surrogate = 0.0
    for prompt, group, lengths in zip(
        rolled.prompt_ids, rolled.completion_ids.tolist(), rolled.lengths.tolist()
    ):
        for ids, n in zip(group, lengths):
            picked = torch.arange(n), torch.tensor(ids[:n])
            now = full_logits(actor, prompt, ids[:n], CFG.sampling.temperature).log_softmax(-1)[
                picked
            ]
            with torch.no_grad(), actor.model.disable_adapter():
                start = full_logits(actor, prompt, ids[:n], CFG.sampling.temperature).log_softmax(
                    -1
                )[picked]
            gap = (now - start).detach()
            charge = [sum(gap[i:].tolist()) if level == "togo" else gap[i].item() for i in range(n)]
            surrogate = surrogate + (torch.tensor(charge) * now).sum() / 16
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(0.3 * surrogate, list(actor.params.values()))]
    )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


def test_an_entropy_bonus_alone_raises_the_entropy(actor, rolled):
    section, scored = change(GRPO, beta=0.0, entropy=1.0), advantages(rolled, torch.zeros(4, 4))
    before = [p.detach().clone() for p in actor.params.values()]
    seen = []
    try:
        for _ in range(4):
            seen.append(gradient(actor, section, scored)[0]["entropy"])
            with torch.no_grad():
                for p in actor.params.values():
                    p -= 0.05 * p.grad / p.grad.norm()
    finally:
        with torch.no_grad():
            for p, old in zip(actor.params.values(), before):
                p.copy_(old)
    assert seen == sorted(seen) and seen[-1] > seen[0] + 0.01


def test_anatomy_takes_the_loss_apart_and_leaves_the_gradient_alone(actor, rolled):
    scales = {"reward": RunningScale(), "diversity": RunningScale()}
    section = change(HYBRID, alpha=0.3, kappa=0.2, micro_prompts=3)
    scored = scoring.score(section, POSTS, rolled, length_reward, letters, scales)
    anatomy = Anatomy(actor.params.values())
    totals, with_it = gradient(actor, section, scored, anatomy=anatomy)
    again, without = gradient(actor, section, scored)
    assert torch.equal(with_it, without) and totals["loss"] == again["loss"]
    nothing = torch.zeros(4, 4)
    alone = {
        "ce": gradient(
            actor,
            change(section, kappa=0.0),
            dataclasses.replace(scored, reward_advantages=nothing, diversity_advantages=nothing),
        )[1],
        "reward": gradient(
            actor,
            change(section, alpha=0.0, kappa=0.0),
            dataclasses.replace(scored, diversity_advantages=nothing),
        )[1],
        "diversity": gradient(
            actor,
            change(section, alpha=0.0, kappa=0.0),
            dataclasses.replace(scored, reward_advantages=nothing),
        )[1],
        "kl": gradient(
            actor,
            change(section, alpha=0.0),
            dataclasses.replace(scored, reward_advantages=nothing, diversity_advantages=nothing),
        )[1],
    }
    torch.testing.assert_close(sum(alone.values()), with_it, atol=1e-6, rtol=1e-4)
    row = anatomy.row()
    for name, g in alone.items():
        assert row[f"norm_{name}"] == pytest.approx(g.norm().item(), rel=1e-3)
    assert row["cos_ce_kl"] == pytest.approx(
        torch.cosine_similarity(alone["ce"], alone["kl"], 0).item(), abs=1e-3
    )


def test_prompts_are_formatted_once(actor, rolled, monkeypatch):
    monkeypatch.setattr(
        models, "format_prompt", lambda *_: pytest.fail("the rollouts hold the prompt's ids")
    )
    assert gradient(actor, HYBRID, advantages(rolled))[1].any()


def test_an_epoch_is_ordered_once(monkeypatch):
    rollouts._order.cache_clear()
    calls, plain = [], np.random.default_rng
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed: (calls.append(tuple(seed)), plain(seed))[1]
    )
    seen = [p.id for position in range(4) for p in rollouts.batch_of(POSTS, position, 2, seed=9)]
    assert calls == [(9, 0), (9, 1)] and sorted(seen[:4]) == sorted(seen[4:]) == list("abcd")


# -------------------------------------------------------------------------------------------- the whole loop
def test_the_adaptive_kappa_moves_as_its_rule_says(tmp_path):
    section = change(GRPO, kappa=0.1, kl_target=1e-3, steps=4)
    history, _, _ = train(tmp_path / "a", section)
    kl, kappa = history.kl[1:].tolist(), history.kappa[1:].tolist()
    assert kl[0] < 5e-4 and min(kl[1:]) > 1e-3, (
        "the first step has no KL yet, the later ones too much"
    )
    assert kappa == pytest.approx([0.1, 0.08, 0.12, 0.18])
    bounded = change(section, kl_target=1e6, kappa=1.2e-4)
    assert train(tmp_path / "b", bounded)[0].kappa[1:].tolist() == pytest.approx(
        [1.2e-4, 1e-4, 1e-4, 1e-4]
    )
    fixed = train(tmp_path / "c", change(section, kl_target=0.0))
    assert set(fixed[0].kappa[1:]) == {0.1}


def spied(monkeypatch):
    """What each step is given: (position of its posts, completions, settings, weights)."""
    seen, plain = [], step.backward

    def backward(policy, cfg, section, posts, scored, key, average=float, anatomy=None, **weights):
        completions = None if scored is None else scored.rollouts.completion_ids.tolist()
        old = None if scored is None else scored.old_logprobs
        seen.append(
            SimpleNamespace(
                posts=[p.id for p in posts],
                completions=completions,
                section=section,
                old=old,
                scored=scored,
                weights=weights,
            )
        )
        return plain(policy, cfg, section, posts, scored, key, average, anatomy, **weights)

    monkeypatch.setattr(loop, "backward", backward)
    return seen


@pytest.mark.parametrize("ahead", [1, 2])
def test_replay_uses_the_same_rollouts_and_the_ratio(tmp_path, monkeypatch, ahead):
    seen, calls = spied(monkeypatch), []

    def counted(posts, replies):
        calls.append(len(replies))
        return length_reward(posts, replies)

    section = change(
        GRPO,
        updates_per_rollout=2,
        rollout_every=ahead,
        steps=5,
        lr=0.05,
        clip_low=1e-3,
        clip_high=1e-3,
    )
    history, _, _ = train(tmp_path, section, reward=counted, seed=5)
    for a, b in ((0, 1), (2, 3)):
        assert seen[a].completions == seen[b].completions and seen[a].posts == seen[b].posts
        assert torch.equal(seen[a].old, seen[b].old)
    assert seen[1].completions != seen[2].completions
    expected = [
        p.id for position in (0, 0, 1, 1, 2) for p in rollouts.batch_of(POSTS, position, 2, 5)
    ]
    assert [i for s in seen for i in s.posts] == expected
    assert calls == [4, *([8, 8, 8] if ahead == 1 else [16, 8])]  # the first is the fingerprint's
    clipped = history.clip_fraction[1:].tolist()
    assert clipped[0] == 0, "nothing has moved yet"
    assert clipped[1] > 0 and clipped[3] > 0, "the second update is off policy"
    assert (clipped[2] == 0) == (ahead == 1), (
        "sampled two batches ahead, the second is off policy at once"
    )


EVERYTHING = change(
    HYBRID,
    steps=7,
    save_every=3,
    updates_per_rollout=2,
    rollout_every=2,
    kappa=0.1,
    kl_target=0.05,
    entropy=0.01,
    diversity_gradient="f_poly",
    eval_every=3,
    eval_samples=2,
    anatomy_every=2,
)


def test_a_killed_run_of_everything_continues_to_the_same_weights(tmp_path):
    """Checkpoints fall at steps 4 (save_every 3, rounded up to whole replays); killed in step 5."""
    shown = []

    def watch(posts, replies, rewards):
        shown.append((replies, rewards))
        return {"val_judge": float(len(shown)), "val_level": 0.0}

    whole, expected, _ = train(tmp_path / "whole", EVERYTHING, watch=watch)
    first = shown[0]
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        plain = step.backward

        def dies(policy, cfg, section, posts, scored, key, *rest, **weights):
            if key[1] == 5:
                raise KeyboardInterrupt
            return plain(policy, cfg, section, posts, scored, key, *rest, **weights)

        patch.setattr(loop, "backward", dies)
        train(tmp_path / "killed", EVERYTHING, watch=watch)
    shown.clear()
    resumed, adapter, paths = train(tmp_path / "killed", EVERYTHING, watch=watch)
    assert shown[0][0] == first[0] and np.array_equal(shown[0][1], first[1]), (
        "the watch sees the start again"
    )
    assert json.loads((paths.results("m", 3) / "metrics.json").read_text())["resumes"] == 1
    assert equal(adapter, expected)
    columns = [c for c in whole.columns if c not in ("seconds", "tokens_per_s", "val_judge")]
    assert whole[columns].equals(resumed[columns])
    assert whole.kappa.nunique() > 1 and whole.norm_reward.notna().sum() == 3


def test_the_same_seed_gives_the_same_replies_and_weights(tmp_path):
    section = change(HYBRID, steps=2, eval_samples=2)
    runs = [
        train(tmp_path / name, section, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    samples = [
        (paths.results("m", seed) / "samples.json").read_text()
        for (_, _, paths), seed in zip(runs, (3, 3, 4))
    ]
    assert samples[0] == samples[1] != samples[2]
    assert equal(runs[0][1], runs[1][1]) and not equal(runs[0][1], runs[2][1])


def test_anatomy_changes_no_weight_and_is_written_when_asked(tmp_path):
    plain = train(tmp_path / "a", change(HYBRID, steps=2), seed=1)
    taken = train(tmp_path / "b", change(HYBRID, steps=2, anatomy_every=2), seed=1)
    assert equal(plain[1], taken[1])
    columns = [c for c in taken[0] if c.startswith(("norm_", "cos_"))]
    assert len(columns) == 10 and plain[0][columns].isna().all(axis=None)
    assert taken[0][columns].notna().all(axis=1).tolist() == [False, False, True]


@pytest.mark.parametrize(
    "normalizer, scale", [("grpo", "running"), ("dapo", "running"), ("dr_grpo", "group")]
)
def test_weights_as_written_are_numbers_or_say_why_not(tmp_path, normalizer, scale):
    section = change(
        HYBRID, loss_normalizer=normalizer, scale_advantages=scale, kl_level="token", steps=1
    )
    history, _, paths = train(tmp_path, section)
    metrics = json.loads((paths.results("m", 3) / "metrics.json").read_text())
    if normalizer == "dapo":  # the literal weight of a mean over tokens: lam / (scale K tokens)
        tokens = history["length"].mean()
        assert metrics["literal_lambda"] == pytest.approx(
            1.0 / (metrics["diversity_scale"] * 4 * tokens)
        )
    if normalizer == "grpo":
        assert metrics["literal_lambda"]["value"] is None and metrics["literal_lambda"]["reason"]
    assert isinstance(metrics["reward_scale"], float) == (scale == "running")


def test_a_run_is_not_resumed_on_another_reward(tmp_path):
    marks = {
        loop.fingerprint(CFG, HYBRID, POSTS, [], reward)
        for reward in (
            None,
            length_reward,
            lambda posts, replies: length_reward(posts, replies) + 1,
        )
    }
    assert len(marks) == 3 and loop.fingerprint(CFG, HYBRID, POSTS, [], length_reward) in marks


def test_a_curriculum_trains_on_the_upper_posts_and_validates_on_all(tmp_path, monkeypatch):
    seen = spied(monkeypatch)
    levels = dict(a=1.0, b=4.0, c=3.0, d=2.0)
    posts = [SimpleNamespace(**vars(p), engagement=levels[p.id]) for p in POSTS]
    _, _, paths = train(tmp_path, change(curriculum=0.5), posts=posts)
    assert {i for s in seen for i in s.posts} == {"b", "c"}
    assert rollouts.curriculum(posts, 0.0) == posts
    with pytest.raises(run.UserError, match="curriculum"):
        rollouts.curriculum([SimpleNamespace(engagement=1.0)] * 3, 0.5)


def test_the_original_design_all_at_once(tmp_path, monkeypatch):
    seen = spied(monkeypatch)
    cfg = dataclasses.replace(
        CFG, sampling=dataclasses.replace(CFG.sampling, temperature=0.8, top_p=0.9)
    )
    section = change(
        GRPO,
        samples_per_prompt=4,
        kappa=0.1,
        kl_target=0.05,
        entropy=0.01,
        steps=2,
        advantage_clip=10.0,
        rollout_every=5,
        scale_advantages="group",
        micro_prompts=1,
        eval_samples=2,
        eval_every=1,
    )
    history, adapter, _ = train(tmp_path, section, cfg=cfg)
    steps = history[history.step > 0]
    for column in ("loss", "reward", "kl", "kappa", "entropy", "grad_norm", "val_kl"):
        assert np.isfinite(steps[column]).all(), column
    assert all(torch.isfinite(tensor).all() for tensor in adapter.values())
    assert (
        steps.kappa.tolist() == pytest.approx([0.1, 0.08]) and (steps.advantage_clipped == 0).all()
    )
    assert abs(steps.kl.iloc[0]) < 1e-6, (
        "policy and reference are the same model, cut to the same tokens"
    )
    assert seen[0].scored.rollouts.kept is not None and seen[1].old is not None
    # the log-probs of training are those of the truncated sampler: on policy, equal to the sampler's own
    r, mask = seen[1].scored.rollouts, seen[1].scored.rollouts.completion_mask
    assert (seen[1].old - r.logprobs)[mask].abs().max() < 1e-4


def test_the_history_holds_the_share_of_clipped_advantages(tmp_path, monkeypatch):
    asked, seen = [], spied(monkeypatch)

    def counted(posts, replies):
        asked.append(length_reward(posts, replies).reshape(-1, 4))
        return asked[-1].flatten()

    plain = change(
        GRPO, scale_advantages="none", advantage_clip=20.0
    )  # letters above or below the mean of four
    history = train(tmp_path / "a", plain, reward=counted)[0]
    by_hand = [
        np.mean(np.abs(r - r.mean(1, keepdims=True)) > 20.0) for r in asked[1:]
    ]  # the first is the fingerprint's
    assert len(by_hand) == 3 and any(0 < share < 1 for share in by_hand), "a clip that acts on some"
    assert history.advantage_clipped[1:].tolist() == pytest.approx(by_hand)
    seen.clear()
    history = train(tmp_path / "b", change(HYBRID, advantage_clip=0.8, lam=2.0))[0]
    by_hand = [
        np.mean(
            np.abs(
                s.scored.reward_advantages.numpy() / s.scored.reward_scale
                + 2.0 * s.scored.diversity_advantages.numpy() / s.scored.diversity_scale
            )
            > 0.8
        )
        for s in seen
    ]
    assert len(by_hand) == 3 and any(0 < share < 1 for share in by_hand)
    assert history.advantage_clipped[1:].tolist() == pytest.approx(by_hand)
    assert train(tmp_path / "c", GRPO)[0].advantage_clipped.isna().all(), "no clip, no share"


@pytest.mark.parametrize(
    "settings, says",
    [(dict(lam=1.0, diversity_gradient="f_poly"), "f_poly"), (dict(beta=1.0), "no reward")],
)
def test_a_term_without_its_callable_is_one_line(tmp_path, settings, says):
    with pytest.raises(run.UserError, match=says):
        train(tmp_path, change(**settings), reward=None)


# ---------------------------------------------------------------------------------------------------- watch
def watcher(levels):
    calls = []

    def watch(posts, replies, rewards):
        calls.append((posts, replies, rewards))
        return {
            "val_judge": 0.5,
            "val_shift": 1.0,
            "val_level": levels[min(len(calls), len(levels)) - 1],
        }

    return watch, calls


@pytest.mark.parametrize("action, last", [("stop", 2), ("warn", 4)])
def test_a_gamed_reward_ends_the_run_where_that_is_asked(tmp_path, capsys, action, last):
    watch, calls = watcher([0, 3])
    section = change(GRPO, steps=4, eval_every=2, eval_samples=3, on_hacked=action)
    history, adapter, paths = train(tmp_path, section, watch=watch)
    assert history.step.tolist() == list(range(last + 1))
    metrics = json.loads((paths.results("m", 3) / "metrics.json").read_text())
    assert metrics.get("stopped_early") == (2 if action == "stop" else None)
    assert ("being gamed" in capsys.readouterr().out) == (action == "stop")
    posts, replies, rewards = calls[1]
    assert posts == [p.text for p in POSTS[:2]] and [len(group) for group in replies] == [3, 3]
    assert rewards.shape == (2, 3) and rewards[1, 2] == len(replies[1][2])
    assert history.val_level.dropna().tolist() == ([0, 3] if action == "stop" else [0, 3, 3])
    assert not paths.scratch("m", 3).exists() and adapter


# ----------------------------------------------------------------------------------------------- the settings
@pytest.mark.parametrize(
    "section, settings, says",
    [
        ("grpo", dict(samples_per_prompt=1), "samples_per_prompt >= 2"),
        (
            "hybrid",
            dict(diversity_gradient="set_level", samples_per_prompt=4, subset_size=4),
            "subset_size 4",
        ),
        (
            "hybrid",
            dict(diversity_gradient="f_poly", samples_per_prompt=4, subset_size=1),
            "subset_size 1",
        ),
        (
            "hybrid",
            dict(diversity_gradient="set_level", samples_per_prompt=20, subset_size=10),
            "20 000",
        ),
        ("polychromic", dict(samples_per_prompt=2), "samples_per_prompt >= 3"),
        ("polychromic", dict(gold_per_prompt=0), "gold_per_prompt"),
        ("sft", dict(entropy=0.1, samples_per_prompt=0), "entropy acts on sampled"),
        ("sft", dict(kappa=0.1, samples_per_prompt=0), "kappa acts on sampled"),
        ("grpo", dict(kl_target=1.0, kappa=0.0), "kappa must be above 0"),
        ("grpo", dict(kl_estimator="k3", kappa=0.1, kl_level="togo"), "kl_level togo"),
        ("grpo", dict(updates_per_rollout=0), "updates_per_rollout"),
        ("grpo", dict(advantage_clip=-1.0), "advantage_clip"),
        ("grpo", dict(curriculum=1.0), "curriculum"),
        ("grpo", dict(eval_samples=0), "eval_samples"),
        ("sft", dict(on_hacked="stop"), "on_hacked stop"),
        ("sft", dict(lr=0.0), "lr must be above 0"),
        ("hybrid", dict(max_grad_norm=0.0), "max_grad_norm must be above 0"),
        ("polychromic", dict(alpha=0.0, lam=0.0), "every weight"),
        ("polychromic", dict(beta=1.0), "without a reward"),
        ("polychromic", dict(diversity_gradient="f_poly"), "without a reward"),
        ("hybrid", dict(scale_advantages="group"), "scales rewards alone"),
        ("grpo", dict(kappa=0.1, loss_normalizer="grpo", kl_level="togo"), "kl_level togo"),
        ("grpo", dict(reward="heuristic"), "hybrid.reward"),
    ],
)
def test_a_choice_that_cannot_work_is_one_line(tmp_path, section, settings, says):
    config._check(CFG, Path("mine.yaml"))
    values = dataclasses.asdict(CFG)
    del values["preset"]
    values[section].update(settings)
    (tmp_path / "mine.yaml").write_text(json.dumps(values))  # JSON is YAML
    with pytest.raises(config.UserError) as caught:
        config.load(str(tmp_path / "mine.yaml"))
    message = str(caught.value)
    assert says in message and section in message and "mine.yaml" in message and "\n" not in message


def test_the_settings_may_use_the_whole_menu_at_once():
    bare = dataclasses.replace(
        CFG, ablation=dataclasses.replace(CFG.ablation, grid={})
    )  # no grid over the menu
    config._check(
        dataclasses.replace(bare, hybrid=change(EVERYTHING, diversity_gradient="set_level")),
        Path("x.yaml"),
    )
