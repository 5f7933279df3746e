"""Faults that show only in company or only later: with two parents, two weights, several quantiles, from the second
step on. A run of the loop is read through what it hands out: the adapter, the history, and what the reward, the encoder
and the sampler are asked.

`Descent` stands in for AdamW, so that one step moves the weights by exactly minus the learning rate times the gradient:
the adapter that is written then *is* the gradient of the whole objective.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny import CFG, POSTS, length_reward, letters, talkative, tokenizer

from polylib import models, run
from polylib.models import sampling
from polylib.training import loop

SECTION = dataclasses.replace(
    tiny.SECTION,
    steps=1,
    gold_per_prompt=1,
    lr=1.0,
    warmup_steps=0,
    scale_advantages="none",
    max_grad_norm=1e9,
    alpha=0.0,
)
VALIDATION = [
    SimpleNamespace(id=f"v{i}", text=text, gold=gold)
    for i, (text, gold) in enumerate(
        [
            ("Is the bakery open on Sunday?", ("Until noon.", "No idea.")),
            ("Snow in May, why not.", ("Why not.",)),
        ]
    )
]
STILL = 1e-300  # a learning rate that float32 rounds to 0; the settings refuse 0 itself


def change(lr=1.0, **settings):
    """The section with other settings; plain descent may take steps that no preset may ask of AdamW."""
    section = dataclasses.replace(SECTION, **settings)
    object.__setattr__(section, "lr", lr)
    return section


class Descent(torch.optim.SGD):
    """Plain gradient descent with AdamW's signature."""

    def __init__(self, parameters, lr, weight_decay=0.0):
        super().__init__(list(parameters), lr=lr)


@pytest.fixture(scope="module")
def base():
    """(tokenizer, model that ends its replies now and then): made once for all runs without parents."""
    return tokenizer(), talkative(models.load_model(CFG.model), 2)


@pytest.fixture(autouse=True)
def quick(base, tmp_path, monkeypatch):
    plain = models.load_model
    monkeypatch.setattr(
        models,
        "load_model",
        lambda cfg, parents=(), seed=0: (
            talkative(plain(cfg, parents, seed), 2) if parents else models.sampling_copy(base[1])
        ),
    )
    monkeypatch.setattr(models, "load_tokenizer", lambda cfg: base[0])
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def descent(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)


@pytest.fixture
def moved(monkeypatch):
    """Fresh adapters that already do something: the KL to the reference has a gradient from the first step on."""
    plain = models.add_lora

    def add(model, cfg, seed):
        made, generator = plain(model, cfg, seed), torch.Generator().manual_seed(1)
        for _, layer in models.lora_layers(made):
            weight = layer.lora_B["default"].weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        return made

    monkeypatch.setattr(models, "add_lora", add)


def constant_reward(posts, replies):
    return np.full(len(replies), 0.5)


def one_direction(texts):
    """An encoder to which all texts are the same: every distance is exactly 0."""
    return np.tile(np.eye(1, 26, dtype=np.float32), (len(texts), 1))


class Recorder:
    """A reward that notes the posts and replies of each call."""

    def __init__(self, worth=length_reward):
        self.calls, self.worth = [], worth

    def __call__(self, posts, replies):
        self.calls.append((list(posts), list(replies)))
        return self.worth(posts, replies)


class Trained(SimpleNamespace):
    """history, adapter (name -> tensor), metrics, paths of one run."""


def train(
    folder, section, reward=length_reward, encode=letters, seed=3, posts=POSTS, val=None, **options
):
    paths = run.Paths(folder.name, folder.parent)
    history = loop.train(
        CFG,
        section,
        "m",
        seed,
        posts,
        VALIDATION if val is None else val,
        paths=paths,
        reward=reward,
        encode=encode,
        **options,
    )
    metrics = json.loads((paths.results("m", seed) / "metrics.json").read_text())
    return Trained(
        history=history,
        adapter=load_file(paths.models("m", seed) / "adapter.safetensors"),
        metrics=metrics,
        paths=paths,
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flat(adapter, start=None):
    return torch.cat(
        [
            (adapter[name] - (0 if start is None else start[name])).double().flatten()
            for name in sorted(adapter)
        ]
    )


# ------------------------------------------------------------------------------------ more than one parent
def adapter_folder(folder, seed, note=()):
    """A saved adapter of random weights."""
    made = models.add_lora(models.load_model(CFG.model), CFG.model, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in models.lora_layers(made):
        weights[f"{name}.lora_A"] = layer.lora_A["default"].weight
        weights[f"{name}.lora_B"] = (
            torch.randn(layer.lora_B["default"].weight.shape, generator=generator) * 0.1
        )
    models.save_adapter(folder, weights, CFG.model, {"parents": [*note]})
    return folder


@pytest.fixture
def family(tmp_path):
    return [
        adapter_folder(tmp_path / "models" / name, seed)
        for name, seed in (("one", 1), ("two", 2), ("three", 3))
    ]


def test_every_parent_is_merged(family):
    """W of the merged model is W of the base plus the product of each adapter file, whatever their number."""
    base, scale = (
        models.load_model(CFG.model).state_dict(),
        CFG.model.lora_alpha / CFG.model.lora_rank,
    )
    for parents in (family[:1], family[:2], family, family[1:]):
        merged = models.load_model(CFG.model, parents).state_dict()
        files = [load_file(parent / "adapter.safetensors") for parent in parents]
        names = {name.rsplit(".lora_", 1)[0] for name in files[0]}
        for name in names:
            due = sum(scale * file[f"{name}.lora_B"] @ file[f"{name}.lora_A"] for file in files)
            assert due.abs().max() > 1e-3
            torch.testing.assert_close(
                merged[f"{name}.weight"] - base[f"{name}.weight"], due, atol=1e-6, rtol=1e-5
            )
        untouched = [name for name in base if name.removesuffix(".weight") not in names]
        assert all(torch.equal(base[name], merged[name]) for name in untouched)


def test_a_run_starts_from_all_its_parents_and_names_them(tmp_path, family):
    starts = {}
    for n in range(4):
        trained = train(tmp_path / str(n), change(alpha=1.0), parents=family[:n])
        starts[n] = trained.history.val_ce.iloc[0]
        note = json.loads((trained.paths.models("m", 3) / "adapter.json").read_text())
        assert [p["sha256"] for p in note["parents"]] == [
            models.adapter_digest(p) for p in family[:n]
        ]
    assert len(set(starts.values())) == 4, (
        "each parent changes what the model says before its first step"
    )
    again = train(tmp_path / "again", change(alpha=1.0), parents=family[::-1])
    assert again.history.val_ce.iloc[0] == pytest.approx(starts[3], rel=1e-4), "a sum has no order"


@pytest.mark.parametrize("changed", [0, 1])
def test_any_parent_that_was_retrained_is_noticed(tmp_path, family, changed):
    parents = family[:2]
    note = [
        {"folder": str(p.relative_to(tmp_path)), "sha256": models.adapter_digest(p)}
        for p in parents
    ]
    child = adapter_folder(tmp_path / "models" / "child", 9, note)
    assert models.adapter_chain(child, tmp_path) == [*parents, child]
    marks = {loop.fingerprint(CFG, SECTION, POSTS, parents)}
    adapter_folder(parents[changed], 7)
    assert len(marks | {loop.fingerprint(CFG, SECTION, POSTS, parents)}) == 2, (
        "a killed run is not resumed on it"
    )
    with pytest.raises(run.UserError, match="has changed since"):
        models.adapter_chain(child, tmp_path)


# --------------------------------------------------------------------------------- terms beside other terms
WEIGHTS = {
    "ce": dict(alpha=0.3),
    "reward": dict(beta=0.7),
    "diversity": dict(lam=1.5),
    "kl": dict(kappa=0.4),
    "entropy": dict(entropy=0.05),
}


def together(names):
    return change(lr=0.1, **{key: value for name in names for key, value in WEIGHTS[name].items()})


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_the_terms_of_the_objective_superpose(tmp_path, descent, moved, kl):
    """The gradient of any two terms, and of all five, is the sum of the gradients of each alone, sign and weight."""
    section = dict(kl_estimator=kl, kl_level="token")
    start = train(tmp_path / "start", change(alpha=1.0, lr=STILL)).adapter
    pulls = {}
    wanted = (
        [(name,) for name in WEIGHTS] + list(itertools.combinations(WEIGHTS, 2)) + [tuple(WEIGHTS)]
    )
    for names in wanted if kl == "k2" else [*wanted[:5], wanted[-1]]:
        found = train(tmp_path / "-".join(names), dataclasses.replace(together(names), **section))
        pulls[names] = flat(found.adapter, start)
    for names, pull in pulls.items():
        assert pull.norm() > 1e-4, names
        torch.testing.assert_close(
            pull,
            sum(pulls[(name,)] for name in names),
            atol=2e-6,
            rtol=2e-3,
            msg=lambda text, names=names: f"{names}: {text}",
        )


@pytest.mark.parametrize("weight", ["beta", "lam"])
def test_twice_the_weight_is_twice_the_pull_beside_the_other_terms(
    tmp_path, descent, moved, weight
):
    section = change(alpha=0.3, beta=0.7, lam=1.5, kappa=0.4, lr=0.1)
    none, once, twice = (
        flat(train(tmp_path / str(w), dataclasses.replace(section, **{weight: w})).adapter)
        for w in (0.0, 1.0, 2.0)
    )
    torch.testing.assert_close(twice - none, 2 * (once - none), atol=2e-6, rtol=2e-3)
    assert (once - none).norm() > 1e-4


@pytest.mark.parametrize("scale", ["running", "none"])
def test_a_term_that_says_nothing_changes_nothing(tmp_path, scale):
    """A constant reward and an encoder that sees no difference leave every bit where it was, at every step."""
    section = change(alpha=0.1, kappa=0.05, lr=1e-2, steps=2, scale_advantages=scale)
    for silent, heard in (
        (dict(reward=constant_reward), dict(lam=1.0)),
        (dict(encode=one_direction), dict(beta=1.0)),
    ):
        alone = train(tmp_path / f"{heard}", dataclasses.replace(section, **heard), **silent)
        both = train(
            tmp_path / f"{heard} both", dataclasses.replace(section, beta=1.0, lam=1.0), **silent
        )
        assert equal(alone.adapter, both.adapter), f"beside {heard}"
        assert not equal(alone.adapter, train(tmp_path / f"{heard} ce", section, **silent).adapter)


def star(texts):
    """Unit vectors whose distance is f_i + f_j up to f_i f_j, f = length / 1000: each text leaves a common direction in
    one of its own, so a set's diversity is about a sum over its replies."""
    rows = np.zeros((len(texts), 4096), np.float32)
    for row, text in zip(rows, texts):
        row[0] = 1 - len(text) / 1000
        row[1 + zlib.crc32(text.encode()) % 4095] = np.sqrt(1 - row[0] ** 2)
    return rows


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_diversity_is_raised_not_lowered_whatever_the_reward(tmp_path, descent, beta):
    """Where D is about a sum over replies, lambda pulls as beta does; so it is rewarded, not punished, beside beta too.
    Not exactly so: equal replies and invalid ones have no distance."""
    start = flat(train(tmp_path / "start", change(alpha=1.0, lr=STILL)).adapter)
    rewarded = flat(train(tmp_path / "reward", change(beta=1.0, lr=10.0)).adapter) - start
    flat_reward = constant_reward if beta else None
    diverse = (
        flat(
            train(
                tmp_path / "diversity", change(beta=beta, lam=1.0, lr=1e3), flat_reward, star
            ).adapter
        )
        - start
    )
    assert torch.cosine_similarity(rewarded, diverse, dim=0) > 0.5


def test_the_kl_holds_back_whatever_else_pulls(tmp_path):
    """From the second step on: at the first, policy and reference are the same."""
    for name, pull in (("both", dict(beta=1.0, lam=1.0)), ("ce", dict(alpha=1.0))):
        section = change(lr=1e-2, steps=6, eval_samples=8, scale_advantages="running", **pull)
        free, held = (
            train(
                tmp_path / f"{name}{kappa}", dataclasses.replace(section, kappa=kappa)
            ).history.val_kl
            for kappa in (0.0, 3.0)
        )
        assert 0 < held.iloc[-1] < 0.5 * free.iloc[-1], name


# ------------------------------------------------------------------------------- both terms have their own scale
def test_a_reward_in_other_units_leaves_the_diversity_its_weight(tmp_path):
    """Each term is divided by its own running scale: 1024 times the reward (a power of two) moves no bit."""
    section = change(beta=1.0, lam=1.0, lr=1e-2, steps=4, scale_advantages="running")
    small, large = (
        train(tmp_path / str(unit), section, lambda p, r, unit=unit: unit * length_reward(p, r))
        for unit in (1.0, 1024.0)
    )
    assert equal(small.adapter, large.adapter)
    assert large.metrics["reward_scale"] == 1024 * small.metrics["reward_scale"]
    assert large.metrics["diversity_scale"] == small.metrics["diversity_scale"]


def test_each_running_scale_is_that_of_its_own_advantages_over_all_steps(tmp_path):
    reward = Recorder()
    encoded = []

    def encode(texts):
        encoded.append(list(texts))
        return letters(texts)

    section = change(beta=1.0, lam=1.0, lr=1e-2, steps=4, scale_advantages="running")
    found = train(tmp_path / "a", section, reward, encode)
    squares = {"reward": [], "diversity": []}
    for _, replies in reward.calls[-4:]:
        values = length_reward(None, replies).reshape(2, 4)
        squares["reward"].append(np.square(values - values.mean(1, keepdims=True)).mean())
        sets = letters(replies).reshape(2, 4, -1).astype(float)
        valid = np.array([len(reply.split()) >= 2 for reply in replies]).reshape(2, 4)
        distances = (1 - sets @ sets.transpose(0, 2, 1)) * valid[:, :, None] * valid[:, None]
        without = np.array(
            [
                [
                    np.mean([d[i, j] for i, j in itertools.combinations(rest, 2)])
                    for rest in itertools.combinations(range(4), 3)
                ][::-1]
                for d in distances
            ]
        )
        squares["diversity"].append(np.square(without.mean(1, keepdims=True) - without).mean())
    for name, values in squares.items():
        weights = 0.9 ** np.arange(3, -1, -1)
        assert found.metrics[f"{name}_scale"] == pytest.approx(
            np.sqrt(np.average(values, weights=weights)), rel=1e-4
        )


# ------------------------------------------------------------------------------------- random numbers of a run
TWINS = [
    SimpleNamespace(
        id=f"t{i}", text="The same words under every post.", gold=("One.", "Two.", "Three.")
    )
    for i in range(4)
]


def drawn(folder, section, seed=3, posts=TWINS):
    """Replies of each training call, by a policy that does not move: only random numbers can tell them apart."""
    reward = Recorder()
    trained = train(
        folder, dataclasses.replace(section, beta=1.0, lr=STILL), reward, seed=seed, posts=posts
    )
    return [
        tuple(replies) for _, replies in reward.calls[1:]
    ], trained  # the first call is the fingerprint's


@pytest.mark.parametrize("ahead, updates", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_step_and_every_post_draws_its_own_random_numbers(tmp_path, ahead, updates):
    section = change(steps=4, rollout_every=ahead, updates_per_rollout=updates)
    replies, _ = drawn(tmp_path / "a", section)
    groups = [call[i : i + 4] for call in replies for i in range(0, len(call), 4)]
    assert len(groups) == 8 // updates and len(set(groups)) == len(groups)
    assert all(len(set(group)) > 1 for group in groups)


def test_every_seed_draws_its_own_random_numbers(tmp_path):
    runs = {seed: drawn(tmp_path / str(seed), change(steps=2), seed) for seed in (3, 4, 5)}
    assert len({call for replies, _ in runs.values() for call in replies}) == 6
    a = [
        next(t for name, t in sorted(found.adapter.items()) if name.endswith("lora_A"))
        for _, found in runs.values()
    ]
    assert not any(torch.equal(x, y) for x, y in itertools.combinations(a, 2)), (
        "the first adapter too"
    )
    again, _ = drawn(tmp_path / "again", change(steps=2), 3)
    assert again == runs[3][0]


def test_every_process_draws_its_own_random_numbers(tmp_path, monkeypatch):
    """The second of two processes, without starting any: what it samples is not what the first samples."""
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(Accelerator, "process_index", property(lambda self, rank=rank: rank))
        reward = Recorder()
        loop.train(
            CFG,
            change(beta=1.0, steps=3, lr=STILL),
            "m",
            3,
            TWINS,
            VALIDATION,
            paths=run.Paths("t", tmp_path),
            reward=reward,
            encode=letters,
        )
        seen += [tuple(replies) for _, replies in reward.calls[1:]]
    assert len(seen) == 6 and len(set(seen)) == 6 and {len(replies) for replies in seen} == {4}


def told(monkeypatch):
    """The human replies that are turned into tokens, in order."""
    asked, plain = [], models.encode_reply
    monkeypatch.setattr(
        models,
        "encode_reply",
        lambda tokens, reply, limit: asked.append(reply) or plain(tokens, reply, limit),
    )
    return asked


def test_every_step_draws_other_human_replies_and_every_epoch_another_order(tmp_path, monkeypatch):
    posts = [
        SimpleNamespace(
            id=str(i), text=f"Post {i}.", gold=tuple(f"{i} {letter}" for letter in "abc")
        )
        for i in range(6)
    ]
    orders, asked = [], told(monkeypatch)
    for seed in (3, 4):
        asked.clear()
        train(
            tmp_path / str(seed),
            change(alpha=1.0, steps=30, prompts_per_step=6, lr=STILL),
            seed=seed,
            posts=posts,
        )
        people = [reply for post in VALIDATION for reply in post.gold]
        mine = [reply for reply in asked if reply not in people]
        assert len(mine) == 30 * 6
        assert set(mine) == {reply for post in posts for reply in post.gold}, (
            "each reply of each post comes up"
        )
        epochs = [tuple(reply[0] for reply in mine[i : i + 6]) for i in range(0, 180, 6)]
        assert all(sorted(epoch) == list("012345") for epoch in epochs) and len(set(epochs)) > 20
        chosen = [
            "".join(sorted(reply[0] + reply[2] for reply in mine[i : i + 6]))
            for i in range(0, 180, 6)
        ]
        assert len(set(chosen)) > 20, "other replies in other epochs"
        orders += epochs
    assert orders[:30] != orders[30:]


# ------------------------------------------------------------------------------------------- bounds that bound
def test_the_gradient_is_clipped_to_its_norm_at_every_step(tmp_path, descent):
    norms = {}
    for limit in (1e9, 0.01):
        section = change(alpha=1.0, lr=0.5, max_grad_norm=limit)
        states = [
            flat(
                train(
                    tmp_path / f"{limit} {steps}", dataclasses.replace(section, steps=steps)
                ).adapter
            )
            for steps in (1, 2, 3)
        ]
        states.insert(
            0, flat(train(tmp_path / f"{limit} start", change(alpha=1.0, lr=STILL)).adapter)
        )
        norms[limit] = [((b - a).norm() / 0.5).item() for a, b in zip(states, states[1:])]
        history = train(tmp_path / f"{limit} again", dataclasses.replace(section, steps=3)).history
        before = history.grad_norm[1:].to_numpy()
        assert (before > 0.05).all(), "the history has the norm before it is clipped"
        np.testing.assert_allclose(norms[limit], np.minimum(before, limit), rtol=1e-3)


@pytest.mark.parametrize("off_policy", [dict(rollout_every=2), dict(updates_per_rollout=2)])
def test_each_side_of_the_ratio_clip_stops_tokens_once_the_policy_has_moved(
    tmp_path, descent, off_policy
):
    """At the first step the ratio is 1 and no clip acts; at the second each side alone changes the weights."""
    wide = dict(clip_low=0.999, clip_high=1e9)
    sides = {
        "wide": wide,
        "low": wide | dict(clip_low=1e-6),
        "high": wide | dict(clip_high=1e-6),
        "both": dict(clip_low=1e-6, clip_high=1e-6),
    }
    for steps in (1, 2):
        section = change(beta=1.0, lr=0.01, steps=steps, samples_per_prompt=8, **off_policy)
        found = {
            name: train(tmp_path / f"{name}{steps}", dataclasses.replace(section, **clip))
            for name, clip in sides.items()
        }
        same = [equal(a.adapter, b.adapter) for a, b in itertools.combinations(found.values(), 2)]
        assert all(same) if steps == 1 else not any(same)
        shares = {name: one.history.clip_fraction.iloc[steps] for name, one in found.items()}
        if steps == 2:
            assert shares["wide"] == 0 < min(shares["low"], shares["high"])
            assert shares["both"] == pytest.approx(shares["low"] + shares["high"], abs=1e-5)


@pytest.mark.parametrize("weights", [dict(beta=1.0), dict(lam=1.0), dict(beta=1.0, lam=1.0)])
def test_the_advantage_clip_bounds_what_is_trained_on(tmp_path, descent, weights):
    """A limit below every advantage leaves only signs: half the limit is half the pull."""
    start = flat(train(tmp_path / "start", change(alpha=1.0, lr=STILL)).adapter)
    runs = [
        train(
            tmp_path / f"{limit}", change(advantage_clip=limit, lr=1e6 if limit else 1.0, **weights)
        )
        for limit in (0.0, 1e-6, 5e-7)
    ]
    pulls = [flat(one.adapter) - start for one in runs]
    torch.testing.assert_close(pulls[1], 2 * pulls[2], atol=1e-5, rtol=1e-3)
    assert pulls[2].norm() > 1e-4 and torch.cosine_similarity(pulls[0], pulls[1], dim=0) < 0.999


def test_replies_below_the_relevance_bar_gain_no_diversity_at_any_step(tmp_path):
    def encode(texts):  # every second reply, by its letters, stands at right angles to every post
        off = [
            text.strip()[:1].islower() and sum(map(ord, text.strip()[:5])) % 2 == 1
            for text in texts
        ]
        return np.where(
            np.array(off)[:, None], np.eye(1, 26, 1), letters(texts) * (np.arange(26) != 1)
        ).astype("f4")

    section = change(lam=1.0, lr=1e-2, steps=3)
    open_, barred, shut = (
        train(tmp_path / str(bar), dataclasses.replace(section, min_relevance=bar), encode=encode)
        for bar in (-1.0, 1e-6, 0.9999)
    )
    assert (open_.history.invalid[1:] < barred.history.invalid[1:]).all()
    assert not equal(open_.adapter, barred.adapter) and (shut.history.invalid[1:] == 1).all()
    assert not any(t.any() for name, t in shut.adapter.items() if name.endswith("lora_B")), (
        "nobody may gain: no pull"
    )


def test_a_long_post_and_a_long_reply_are_cut(tmp_path):
    tokens = tokenizer()
    whole = [len(models.format_prompt(tokens, "word " * n, 20)) for n in (1, 20, 300)]
    assert whole[0] < whole[1] == whole[2]
    cfg = dataclasses.replace(CFG.sampling, max_prompt_tokens=20, max_new_tokens=3)
    found = sampling.sample(models.load_model(CFG.model), tokens, ["word " * 300, "a"], 3, cfg, 0)
    assert (
        len(found.prompt_ids[0]) == whole[2] > len(found.prompt_ids[1])
        and found.completion_ids.shape[-1] == 3
    )
    assert len(models.encode_reply(tokens, "word " * 300, 3)) == 3


# ------------------------------------------------------------------------------------- validations, also later ones
def test_a_policy_that_does_not_move_says_the_same_at_every_validation(tmp_path):
    """Same posts, same random numbers, same model at every validation: and so none can use posts of training."""
    section = change(
        alpha=1.0, beta=1.0, lam=1.0, kappa=0.1, steps=3, lr=STILL, eval_every=1, eval_samples=3
    )
    seen = []

    def watch(posts, replies, rewards):
        seen.append((posts, replies, rewards.tolist()))
        return {"val_level": 0.0}

    found = train(tmp_path / "a", section, watch=watch)
    values = found.history[[name for name in found.history if name.startswith("val_")]].dropna(
        axis=1
    )
    assert len(values) == 4 and {
        "val_ce",
        "val_reward",
        "val_diversity",
        "val_kl",
        "val_length",
    } <= set(values)
    assert (values == values.iloc[0]).all(axis=None)
    assert seen[0][0] == [post.text for post in VALIDATION] and all(one == seen[0] for one in seen)
    samples = json.loads((found.paths.results("m", 3) / "samples.json").read_text())
    assert [s["post"] for s in samples] == seen[0][0] and all(
        s["before"] == s["after"] for s in samples
    )
    others = train(tmp_path / "b", section, posts=POSTS[:2], watch=watch).history
    assert (others[values.columns] == values).all(axis=None), "whatever posts it trains on"


def test_no_validation_and_no_step_takes_the_posts_of_the_other(tmp_path, monkeypatch):
    """Told apart by a reward of 1 for validation posts, at every step and validation, with and without a curriculum."""
    texts = {post.text for post in VALIDATION}
    people = {reply for post in VALIDATION for reply in post.gold}
    posts = [SimpleNamespace(**vars(post), engagement=float(i)) for i, post in enumerate(POSTS)]
    asked, sampled, plain = told(monkeypatch), [], sampling.sample
    monkeypatch.setattr(
        sampling,
        "sample",
        lambda model, tokens, texts, *rest: (
            sampled.append(set(texts)) or plain(model, tokens, texts, *rest)
        ),
    )
    for quantile in (0.0, 0.5):  # all posts; the upper half
        sampled.clear()
        asked.clear()
        reward = Recorder(lambda posts, replies: np.array([float(post in texts) for post in posts]))
        section = change(
            alpha=1.0, beta=1.0, steps=3, lr=1e-2, eval_every=1, eval_samples=2, curriculum=quantile
        )
        history = train(tmp_path / f"{quantile}", section, reward, posts=posts).history
        assert history.val_reward.tolist() == [1.0] * 4 and history.reward[1:].tolist() == [0.0] * 3
        for called, _ in reward.calls:
            assert set(called) <= texts or not set(called) & texts
        assert [s == texts for s in sampled] == [True, False, True, False, True, False, True]
        assert sum(reply in people for reply in asked) == 4 * 3, (
            "at each validation every human reply, once"
        )


def test_every_validation_sees_the_policy_of_its_own_step(tmp_path):
    """Three validations of one run equal the last ones of runs that end there: none is a step late."""
    section = change(alpha=1.0, beta=1.0, steps=3, lr=1e-2, eval_every=1, eval_samples=2)
    whole = train(tmp_path / "whole", section).history
    names = ["val_ce", "val_reward", "val_kl", "val_length"]
    assert whole.val_ce.nunique() == 4
    for steps in (1, 2):
        part = train(tmp_path / str(steps), dataclasses.replace(section, steps=steps)).history
        assert part[names].iloc[-1].equals(whole[names].iloc[steps]), steps
