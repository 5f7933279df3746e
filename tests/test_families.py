"""Families of models, tiny and random: what is sampled, scored, reported and saved are transformers' own numbers.

The reference is a plain eager forward pass, one sequence at a time, with the trained adapters loaded by PEFT.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CFG, POSTS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from polylib import models
from polylib.evaluation import token_kl
from polylib.models import check, sampling
from polylib.models.packing import pack
from polylib.run import UserError
from polylib.training.policy import Policy
from polylib.training.rollouts import sampled_ids

TOKENS = models.load_tokenizer(CFG.model)
SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": TOKENS.pad_token_id,
    "eos_token_id": TOKENS.eos_token_id,
    "bos_token_id": TOKENS.bos_token_id,
}
WINDOW = {"sliding_window": 16}  # shorter than every prompt
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("Llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": ("Qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3 moe": ("Qwen3Moe", EXPERTS | {"num_experts": 4}),
    "qwen2 moe": (
        "Qwen2Moe",
        EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    ),
    "gemma2": (
        "Gemma2",
        WINDOW
        | {"query_pre_attn_scalar": 16}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3Text", WINDOW | {"query_pre_attn_scalar": 16}),
    "mistral": ("Mistral", WINDOW),
    "phi3": ("Phi3", WINDOW),
    "phi": ("Phi", {}),
    "olmo": ("Olmo", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", WINDOW),
    "granite": ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "cohere": ("Cohere", {"logit_scale": 0.0625}),
    "cohere2": ("Cohere2", WINDOW | {"logit_scale": 0.0625}),
    "gpt-oss": ("GptOss", WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def saved(family, folder, **other):
    """A random model of the family on disk, louder than fresh weights are; its model section."""
    name, extra = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SHAPE | extra | other)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 if weight.dim() < 2 else 2 if len(weight) == len(TOKENS) else 4)
            if weight.dim() < 2:
                weight.add_(torch.randn(len(weight)) * 0.1)  # sinks are not initialised
    model.save_pretrained(folder)
    TOKENS.save_pretrained(folder)
    return dataclasses.replace(CFG.model, source=f"path:{folder}")


def plain(cfg_model, adapter=None):
    found = transformers.AutoModelForCausalLM.from_pretrained(
        cfg_model.source.removeprefix("path:"), dtype=torch.float32, attn_implementation="eager"
    )
    return (found if adapter is None else PeftModel.from_pretrained(found, adapter)).eval()


def moved(policy):
    """The policy with weights in its B that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, master in policy.masters.items():
            if name.endswith("lora_B"):
                master.copy_(torch.randn(master.shape, generator=generator) * 0.05)
    policy.sync_weights()
    return policy


@torch.no_grad()
def reply_logprobs(model, prompt, reply):
    logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_numbers_are_those_of_a_plain_forward_pass(family, tmp_path):
    cfg_model = saved(family, tmp_path / "base")
    policy = moved(Policy(cfg_model, [], seed=0))
    models.save_adapter(tmp_path / "a", policy.masters, cfg_model, {"parents": []})
    models.save_peft(tmp_path / "peft", cfg_model, [tmp_path / "a"])
    how = dataclasses.replace(CFG.sampling, max_new_tokens=12, temperature=1.0)
    posts = [post.text for post in POSTS[:2]]
    drawn = sampling.sample(policy.sampler, policy.tokenizer, posts, 2, how, 0)
    ids = sampled_ids(drawn)
    assert min(map(len, drawn.prompt_ids)) > WINDOW["sliding_window"]
    packed = pack(drawn.prompt_ids, ids, policy.tokenizer.pad_token_id)
    with torch.no_grad():
        found = {
            "sampler": (drawn.logprobs, policy),
            "policy": (policy.logprobs(packed, 1.0), policy),
            "reference": (policy.logprobs(packed, 1.0, reference=True), None),
        }
    tuned, base = plain(cfg_model, tmp_path / "peft"), plain(cfg_model)
    worst = {}
    for name, (logp, who) in found.items():
        gaps = [
            (logp[b, i, : len(y)] - reply_logprobs(tuned if who else base, prompt, y)).abs().max()
            for b, (prompt, group) in enumerate(zip(drawn.prompt_ids, ids))
            for i, y in enumerate(group)
        ]
        worst[name] = max(gaps).item()
    states = {"policy": token_kl.last_states(policy.sampler, [packed])}
    targets, scored = packed.completion_ids[packed.completion_mask], packed.completion_mask
    reported = token_kl.per_token(states, models.Head(policy.sampler), targets, 1.0)["logp"]
    gap = torch.tensor(reported.to_numpy()) - found["policy"][0][scored]
    worst["report"] = gap.abs().max().item()
    print(family, {name: f"{gap:.1e}" for name, gap in worst.items()})
    assert (found["policy"][0] - found["reference"][0]).abs().max() > 0.01
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("family, broken", [("granite", "Head"), ("gemma3", "attention")])
def test_a_model_that_computes_something_unknown_is_refused(family, broken, tmp_path, monkeypatch):
    """A head that forgets the scale, an attention that forgets the window: one line, at load."""
    cfg_model = saved(family, tmp_path, sliding_window=100)  # the check's row reaches over it
    if broken == "Head":
        monkeypatch.setattr(check, "Head", lambda model: model.get_output_embeddings())
    else:
        forgetful = functools.partial(models.attention.grouped_attention, sliding_window=None)
        monkeypatch.setitem(
            ALL_ATTENTION_FUNCTIONS,
            models.attention.NAME,
            lambda *args, sliding_window, **kwargs: forgetful(*args, **kwargs),
        )
    with pytest.raises(
        UserError, match=r"differ from its plain forward pass by [\d.]+ nats"
    ) as found:
        models.load_model(cfg_model)
    assert str(found.value).startswith(f"model {cfg_model.source}: packed")
    assert "\n" not in str(found.value)


def test_a_model_with_layers_that_are_no_attention_is_refused(tmp_path):
    config = transformers.AutoConfig.for_model("qwen3_5_text", **SHAPE)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    TOKENS.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="layers of linear_attention") as found:
        models.load_model(dataclasses.replace(CFG.model, source=f"path:{tmp_path}"))
    assert "\n" not in str(found.value)


# ------------------------------------------------------------------------------- adapters of others, and for others
def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]]), attention_mask=None).logits


def eager(model):
    model.set_attn_implementation("eager")
    return model


def users_adapter(folder, **options):
    """A LoRA trained elsewhere: other rank, two kinds of layers alone."""
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        **options,
    )
    torch.manual_seed(2)
    model = get_peft_model(eager(models.load_model(CFG.model)), config).eval()
    model.save_pretrained(folder)
    return logits(model), dataclasses.replace(CFG.model, peft_adapter=str(folder))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_everything_starts_from_a_users_own_adapter(options, tmp_path):
    said, cfg_model = users_adapter(tmp_path, **options)
    assert (said - logits(eager(models.load_model(CFG.model)))).abs().max() > 0.01
    torch.testing.assert_close(logits(eager(models.load_model(cfg_model))), said)


def test_a_chain_of_adapters_is_one_for_others_and_one_merged_model(tmp_path):
    """The user's, SFT's on it, GRPO's on both: one PEFT adapter on the plain base, one folder of plain weights."""
    _, cfg_model = users_adapter(tmp_path / "user")
    chain = []
    for name in ("sft", "grpo"):
        policy = moved(Policy(cfg_model, chain, seed=len(chain)))
        chain = [*chain, tmp_path / name]
        models.save_adapter(chain[-1], policy.masters, cfg_model, {"parents": []})
    ours = logits(eager(models.load_model(cfg_model, chain)))
    models.save_peft(tmp_path / "peft", cfg_model, chain)
    base = eager(models.load_model(CFG.model))
    theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs), ours)
    again = dataclasses.replace(CFG.model, peft_adapter=str(tmp_path / "peft"))
    torch.testing.assert_close(logits(eager(models.load_model(again))), ours)
    models.save_merged(tmp_path / "merged", cfg_model, chain)
    assert torch.equal(logits(plain(SimpleNamespace(source=f"path:{tmp_path / 'merged'}"))), ours)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert words.chat_template == TOKENS.chat_template and words.eos_token == TOKENS.eos_token


@pytest.mark.parametrize(
    "options, why",
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"alpha_pattern": {"q_proj": 9}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(options, why, tmp_path):
    _, cfg_model = users_adapter(tmp_path, **options)
    with pytest.raises(UserError, match=f"only LoRA of one rank .* has .*{why}") as found:
        models.load_model(cfg_model)
    assert "\n" not in str(found.value)


def test_an_adapter_that_is_not_there_or_not_whole_is_named(tmp_path):
    cfg_model = dataclasses.replace(CFG.model, peft_adapter=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere.* is missing"):
        models.load_model(cfg_model)
    _, cfg_model = users_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read: "):
        models.load_model(cfg_model)
