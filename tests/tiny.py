"""A tiny random model with the real tokenizer, in float32, and a handful of posts: shared by the model tests."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from polylib import config, models
from polylib.training import objective

REPO = Path(__file__).resolve().parents[1]
CFG = config.load("smoke", REPO)
CFG = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, dtype="float32", device="cpu"))
POSTS = [
    SimpleNamespace(
        id="a", text="The kettle took eleven minutes.", gold=("Mine takes twelve.", "Buy a pan.")
    ),
    SimpleNamespace(
        id="b",
        text="Lost my keys again, third time this week, and it is only Tuesday.",
        gold=("Check the fridge.", "Have you tried a bell?", "Same here."),
    ),
    SimpleNamespace(id="c", text="Rain.", gold=("At last.",)),
    SimpleNamespace(
        id="d",
        text="My neighbour's cat has moved in with us and brought its own bowl.",
        gold=("It chose you.", "Cats read contracts."),
    ),
]
SECTION = dataclasses.replace(
    CFG.sft,
    init="base",
    steps=3,
    prompts_per_step=2,
    samples_per_prompt=4,
    gold_per_prompt=2,
    lr=1e-2,
    warmup_steps=1,
    rollout_every=1,
    micro_prompts=0,
    eval_every=100,
    eval_samples=0,
    save_every=100,
    min_relevance=-1.0,
)
HYBRID = dataclasses.replace(SECTION, alpha=0.1, beta=1.0, lam=1.0, kappa=0.05)
LETTERS = 24  # size of the vocabulary that `talkative` leaves possible


def talkative(model, eos_id: int, eos_bias: float = 2.0):
    """Leave only a few words and EOS possible, so that a random model ends its replies and repeats itself."""
    head = model.get_output_embeddings()
    biased = torch.nn.Linear(head.in_features, head.out_features, bias=True)
    biased.weight = torch.nn.Parameter(head.weight.detach() * 10, requires_grad=False)
    biased.bias = torch.nn.Parameter(torch.full((head.out_features,), -20.0), requires_grad=False)
    biased.bias[words()] = 0.0
    biased.bias[eos_id] = eos_bias
    model.set_output_embeddings(biased)
    return model


def project_of_talkative_models(tmp_path, monkeypatch) -> None:
    """The working directory is a project, and every model that is loaded ends its replies and repeats itself."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    plain = models.load_model
    monkeypatch.setattr(
        models,
        "load_model",
        lambda cfg, parents=(), seed=0: talkative(plain(cfg, parents, seed), 2).to(
            models.device_dtype(cfg)[0]  # the head is new, and made on the processor
        ),
    )


@cache
def words() -> list[int]:
    """Ids of whole words, each with its space: two tokens are two words, as a valid reply needs."""
    vocabulary = tokenizer().get_vocab()
    whole = [at for token, at in vocabulary.items() if re.fullmatch("Ġ[a-z]{4,}", token)]
    return sorted(whole)[:LETTERS]


def letters(texts: list[str]) -> np.ndarray:
    """A stand-in encoder: unit-norm letter counts (N, 26)."""
    counts = np.array(
        [[text.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts]
    )
    return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def weighted(section, scored):
    """The advantages that reach the weights, (B, K)."""
    return objective.combined_advantages(
        scored.reward_advantages,
        scored.diversity_advantages,
        section.beta,
        section.lam,
        scored.reward_scale,
        scored.diversity_scale,
        section.advantage_clip,
    )


def weights(section):
    """The four weights of the loss, as `step.backward` wants them."""
    return {name: getattr(section, name) for name in ("alpha", "beta", "lam", "kappa")}


def tokenizer():
    return models.load_tokenizer(CFG.model)


def length_reward(posts, replies):
    return np.array([float(len(reply)) for reply in replies])
