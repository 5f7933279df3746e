"""Exact KL and perplexity against enumeration, transformers' own loss, padding and a policy that is its reference."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from study_fixture import small_config, write_study
from transformers import AutoModelForCausalLM

from polylib import models, run
from polylib.analysis import distance, results
from polylib.config import UserError
from polylib.evaluation import likelihood, token_kl
from polylib.models import generate
from polylib.run import Paths

SAMPLING = dataclasses.replace(tiny.CFG.sampling, temperature=0.7, max_new_tokens=8)
EVALUATION = dataclasses.replace(tiny.CFG.evaluation, likelihood_prompts=3, likelihood_samples=2)
CFG = dataclasses.replace(tiny.CFG, sampling=SAMPLING, evaluation=EVALUATION)
REPLIES = [
    ("a", 0, "Mine takes twelve."),
    ("a", 1, "No."),
    ("b", 0, "Have you tried a bell? It helps."),
    ("c", 0, ""),
]


@pytest.fixture(scope="module")
def tokenizer():
    found = tiny.tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_tokenizer", lambda cfg_model: found)  # half a second a time
        yield found


def moved(model, seed: int, by: float = 0.02):
    """A copy whose layers are shifted at random and whose head is the same."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name, weight in other.named_parameters():
        if "layers" in name:
            weight.data += by * torch.randn(weight.shape, generator=generator)
    return other


@pytest.fixture(scope="module")
def trio():
    base = models.load_model(CFG.model)
    return {"base": base, "sft": moved(base, 1), "policy": moved(base, 2)}


def chosen(rows=REPLIES) -> pd.DataFrame:
    text = {post.id: post.text for post in tiny.POSTS}
    return pd.DataFrame(
        [(p, text[p], i, r) for p, i, r in rows], columns=["post_id", "post", "sample", "reply"]
    )


def through(trio, tokenizer, rows=REPLIES, temperature=0.7) -> tuple[pd.DataFrame, list[int]]:
    frame = chosen(rows)
    ids = [models.encode_reply(tokenizer, reply, 100) for reply in frame["reply"]]
    packed, order = likelihood.rows(tokenizer, frame, ids, 128)
    states = {name: token_kl.last_states(model, packed) for name, model in trio.items()}
    targets = torch.cat([batch.completion_ids[batch.completion_mask] for batch in packed])
    table = token_kl.per_token(states, trio["base"].get_output_embeddings(), targets, temperature)
    return table.assign(reply=np.repeat(order, [len(ids[i]) for i in order])), ids


def plain(model):
    """The same weights in transformers' own attention."""
    other = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    return other


def test_nll_is_the_loss_of_transformers_and_kl_the_sum_over_the_vocabulary(trio, tokenizer):
    table, ids = through(trio, tokenizer)
    outside = {name: plain(model) for name, model in trio.items()}
    for number, row in chosen().iterrows():
        prompt, mine = (
            models.format_prompt(tokenizer, row["post"]),
            table[table["reply"].eq(number)],
        )
        whole = torch.tensor([prompt + ids[number]])
        labels = whole.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            out = {name: model(input_ids=whole, labels=labels) for name, model in outside.items()}
        for name in ("base", "sft"):
            assert mine[f"nll_{name}"].mean() == pytest.approx(out[name].loss.item(), abs=1e-5)
        scores = {
            name: o.logits[0, len(prompt) - 1 : -1].double().numpy() / 0.7
            for name, o in out.items()
        }
        logs = {name: x - np.log(np.exp(x).sum(1, keepdims=True)) for name, x in scores.items()}
        p = np.exp(logs["policy"])
        for name in ("base", "sft"):
            kl = (p * (logs["policy"] - logs[name])).sum(1)
            assert kl.min() > 1e-3
            np.testing.assert_allclose(mine[f"kl_{name}"], kl, atol=2e-6, rtol=1e-4)
        np.testing.assert_allclose(mine["entropy"], -(p * logs["policy"]).sum(1), rtol=1e-5)


def test_entropy_is_the_mean_surprise_over_every_next_token(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 11)
    states = {
        name: torch.randn(1, 5, generator=generator).expand(11, 5)
        for name in ("policy", "sft", "base")
    }
    monkeypatch.setattr(token_kl, "LOGITS", 33)  # blocks of three
    table = token_kl.per_token(states, head, torch.arange(11), 1.3)  # every token in turn
    p = np.exp(table["logp"])
    assert p.sum() == pytest.approx(1, abs=1e-6)
    for name in ("sft", "base"):
        assert table[f"kl_{name}"].min() > 0.01
    assert -(p * table["logp"]).sum() == pytest.approx(table["entropy"][0], rel=1e-5)


def test_company_and_padding_do_not_matter(trio, tokenizer):
    together, _ = through(trio, tokenizer)
    for number, row in enumerate(REPLIES):
        alone, _ = through(trio, tokenizer, [row])
        mine = together[together["reply"].eq(number)].reset_index(drop=True)
        np.testing.assert_allclose(
            mine.drop(columns="reply"), alone.drop(columns="reply"), atol=2e-5
        )


def test_a_policy_that_is_its_reference_has_kl_zero(trio, tokenizer):
    same, _ = through({"base": trio["base"], "sft": trio["sft"], "policy": trio["sft"]}, tokenizer)
    assert same["kl_sft"].abs().max() == 0 and same["kl_base"].min() > 0


# ---- whole cells -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(tmp_path_factory, tokenizer):
    """An SFT and a GRPO adapter on disk, and replies of both."""
    paths, tables, parents = Paths("tiny", tmp_path_factory.mktemp("study")), {}, []
    for method, seed in (("sft", 1), ("grpo", 2)):
        folder = paths.models(method, 42)
        policy = models.add_lora(models.load_model(CFG.model, parents), CFG.model, seed)
        generator = torch.Generator().manual_seed(seed)
        masters = {}
        for name, layer in models.lora_layers(policy):
            for part in ("A", "B"):
                shape = getattr(layer, f"lora_{part}")["default"].weight.shape
                masters[f"{name}.lora_{part}"] = 0.1 * torch.randn(shape, generator=generator)
        note = [
            {"folder": str(p.relative_to(paths.root)), "sha256": models.adapter_digest(p)}
            for p in parents
        ]
        models.save_adapter(folder, masters, CFG.model, {"parents": note})
        parents = [*parents, folder]
        tables[method] = generate.replies(
            models.load_model(CFG.model, parents),
            tokenizer,
            tiny.POSTS,
            {0.7: 3, 1.0: 2},
            SAMPLING,
            seed=5,
        )
    return paths, tables


def test_a_cell_end_to_end(cells, tmp_path):
    paths, tables = cells
    table = likelihood.measure(tables["grpo"], CFG, paths, "grpo", 42)
    assert list(table.columns) == likelihood.COLUMNS and list(table["prompt_id"]) == ["a", "b", "c"]
    assert table["n_samples"].tolist() == [2, 2, 2] and set(table["temperature"]) == {0.7}
    assert table.attrs == {"left_out": 0} and not table.isna().any().any()
    assert (table[["kl_sft", "kl_base"]] > 0.01).all().all()
    one = tables["grpo"].query("temperature == .7 and post_id == 'b' and sample < 2")
    assert table.loc[1, "tokens"] == one["tokens"].mean()  # end of turn included
    assert likelihood.measure(tables["sft"], CFG, paths, "sft", 42)["kl_sft"].abs().max() == 0
    run.write_csv(tmp_path / likelihood.FILE, table)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / likelihood.FILE), table, rtol=1e-5, check_dtype=False
    )
    assert likelihood.means(table)["replies"] == 6


def test_replies_of_another_model_are_refused(cells):
    paths, tables = cells
    with pytest.raises(UserError, match="sft seed 42 are not of the model"):
        likelihood.measure(tables["grpo"], CFG, paths, "sft", 42)
    with pytest.raises(UserError, match="hybrid.*adapter.safetensors is missing"):
        likelihood.measure(tables["grpo"], CFG, paths, "hybrid", 42)
    with pytest.raises(UserError, match="temperature 0.7"):
        likelihood.measure(tables["grpo"].query("temperature == 1"), CFG, paths, "grpo", 42)


def test_a_reply_that_the_model_cannot_have_said_so_is_left_out_and_counted(cells):
    paths, tables = cells
    read = tables["grpo"].query("temperature == .7 and sample < 2").reset_index(drop=True)
    whole = likelihood.measure(read, CFG, paths, "grpo", 42)
    odd = read.assign(logprob=read["logprob"].where(read.index != 1, -999.0))
    table = likelihood.measure(odd, CFG, paths, "grpo", 42)
    assert table.attrs["left_out"] == 1 and whole.attrs["left_out"] == 0
    assert table["n_samples"].tolist() == [1, *whole["n_samples"][1:]]
    pd.testing.assert_frame_equal(table[1:], whole[1:])


def test_people_and_the_untrained_model_lack_what_nobody_knows(cells, tokenizer):
    paths, _ = cells
    posts = [
        dataclasses.make_dataclass("Post", ["id", "text", "replies"])(p.id, p.text, p.gold)
        for p in tiny.POSTS
    ]
    people = likelihood.measure(generate.people(posts), CFG, paths, "human", None)
    assert people["n_samples"].tolist() == [2, 2, 1] and people["nll_base"].notna().all()
    assert (
        people["temperature"].isna().all()
        and people[["nll_sft", "kl_sft", "kl_base"]].isna().all().all()
    )
    means = likelihood.means(people)
    assert (
        np.isfinite(means["perplexity_base"])
        and np.isnan([means["perplexity_sft"], means["kl_base_se"]]).all()
    )
    table = generate.replies(
        models.load_model(CFG.model), tokenizer, tiny.POSTS, {0.7: 2}, SAMPLING, seed=5
    )
    base = likelihood.measure(table, CFG, paths, "base", None)
    assert base["kl_base"].abs().max() == 0 and base["kl_sft"].isna().all()


def test_perplexity_is_that_of_all_tokens_together():
    nll, tokens = np.array([1.0, 9.0]), np.array([30, 10])
    assert likelihood.perplexity(nll, tokens) == pytest.approx(math.exp((30 + 90) / 40))
    assert (
        likelihood.perplexity(nll, tokens) < np.exp(nll).mean() / 100
    )  # the mean of exp is the outlier's


def test_reading_a_study(tmp_path):
    cfg = small_config()
    study = results.load(write_study(tmp_path, cfg), cfg)
    with pytest.raises(UserError, match="human/likelihood.csv: missing"):
        distance.likelihood(study)
    for method, seed in {cell[:2] for cell in study.frames}:
        numbers = {name: 1.0 for name in likelihood.COLUMNS[4:]}
        numbers |= {"kl_sft": float(seed)} if seed else {"nll_sft": np.nan, "kl_sft": np.nan}
        rows = [
            {"prompt_id": p, "temperature": 0.7, "n_samples": n, "tokens": 10 * n, **numbers}
            for p, n in (("p1", 1), ("p2", 3))
        ]
        file = study.paths.evaluation(method, seed) / likelihood.FILE
        run.write_csv(file, pd.DataFrame(rows)[likelihood.COLUMNS])
    runs = distance.likelihood(study)
    assert len(runs) == 5 * 3 + 1 and list(runs["method"].unique()) == study.methods
    assert runs.query("method == 'grpo'")["kl_sft"].tolist() == [42, 123, 456]
    assert runs.query("method == 'grpo'")["kl_sft_token"].iloc[0] == pytest.approx(
        42 / ((10 + 90) / 4)
    )
    assert runs.query("method == 'human'")["kl_sft"].isna().all()
