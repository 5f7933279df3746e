"""Prompts and ends of turns under chat templates of the common families (shapes as theirs, texts written here)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from tiny import CFG, POSTS, talkative

from polylib import models
from polylib.models import sampling
from polylib.rivals.dpo import pair_tokens
from polylib.run import UserError

S, P = models.SYSTEM, "Rain again."
OPENS = "{% if add_generation_prompt %}"
EACH = "{% for m in messages %}"
CHATML = EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = OPENS + "<|im_start|>assistant\n"
CHAT = (
    f"<|im_start|>system\n{S}<|im_end|>\n<|im_start|>user\n{P}<|im_end|>\n<|im_start|>assistant\n"
)
NO_THOUGHT = "<think>\n\n</think>\n\n"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
TEMPLATES = {  # name: (template, its special tokens, the prompt, the token that ends a reply)
    "SmolLM2, Qwen2.5": (CHATML + ASSISTANT + "{% endif %}", ["<|im_end|>"], CHAT, "<|im_end|>"),
    "Qwen3: a switch that is on": (
        CHATML
        + ASSISTANT
        + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        ["<|im_end|>"],
        CHAT + NO_THOUGHT,
        "<|im_end|>",
    ),
    "Qwen3.5: an open thought unless switched off": (
        CHATML
        + ASSISTANT
        + "<think>\n{{ '\n</think>\n\n' if enable_thinking is false }}{% endif %}",
        ["<|im_end|>"],
        CHAT + NO_THOUGHT,
        "<|im_end|>",
    ),
    "DeepSeek: a switch of another name": (
        "{{ bos_token }}"
        + EACH
        + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<User>{{ m.content }}"
        + "{% else %}<Assistant></think>{{ m.content }}<end>{% endif %}{% endfor %}"
        + OPENS
        + "<Assistant>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        ["<end>"],
        f"<|im_start|>{S}<User>{P}<Assistant></think>",
        "<end>",
    ),
    "QwQ: no switch, an open thought": (
        CHATML + ASSISTANT + "<think>\n{% endif %}",
        ["<|im_end|>"],
        CHAT + NO_THOUGHT,
        "<|im_end|>",
    ),
    "SmolLM3, Llama 3.2: today's date": (
        "{{ strftime_now('%d %B %Y') }}\n" + CHATML + ASSISTANT + "{% endif %}",
        ["<|im_end|>"],
        "01 January 2025\n" + CHAT,
        "<|im_end|>",
    ),
    "Llama 3": (
        "{{ bos_token }}"
        + EACH
        + "<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        + OPENS
        + "<|head|>assistant<|/head|>\n\n{% endif %}",
        ["<|head|>", "<|/head|>", "<|eot|>"],
        f"<|im_start|><|head|>system<|/head|>\n\n{S}<|eot|><|head|>user<|/head|>\n\n{P}<|eot|>"
        "<|head|>assistant<|/head|>\n\n",
        "<|eot|>",
    ),
    "Gemma 2": (
        "{{ bos_token }}"
        + REFUSES
        + EACH
        + "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n"
        + "{% endfor %}"
        + OPENS
        + "<turn>model\n{% endif %}",
        ["<turn>", "<end>"],
        f"<|im_start|><turn>user\n{S}\n\n{P}<end>\n<turn>model\n",
        "<end>",
    ),
    "Llama 2, Mistral": (
        "{{ bos_token }}"
        + REFUSES
        + EACH
        + "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + ' ' + eos_token }}"
        + "{% endfor %}",
        [],
        f"<|im_start|>[INST] {S}\n\n{P} [/INST]",
        "<|im_end|>",
    ),
    "Phi-3": (
        EACH
        + "<|{{ m.role }}|>\n{{ m.content }}<|stop|>\n{% endfor %}"
        + OPENS
        + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ["<|stop|>"],
        f"<|system|>\n{S}<|stop|>\n<|user|>\n{P}<|stop|>\n<|assistant|>\n",
        "<|stop|>",
    ),
    "gpt-oss: a channel between prompt and reply": (
        EACH
        + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
        + "<|message|>{{ m.content }}{{ '<|return|>' if m.role == 'assistant' else '<|end|>' }}"
        + "{% endfor %}"
        + OPENS
        + "<|start|>assistant{% endif %}",
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"],
        f"<|start|>system<|message|>{S}<|end|><|start|>user<|message|>{P}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    "a base model: none": (None, [], f"{S}\n\nPost: {P}\n\nReply:\n", "<|im_end|>"),
}


def tokenizer_of(template, special=(), folder=None, **changes):
    """What load_tokenizer makes of the tiny model's tokenizer with this template."""
    source = models.resolve(CFG.model.source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special]})
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return models.load_tokenizer(dataclasses.replace(CFG.model, source=f"path:{folder}"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_the_templates_and_a_reply_ends_as_its_turns_end(name, tmp_path):
    template, special, prompt, end = TEMPLATES[name]
    tokenizer = tokenizer_of(template, special, tmp_path)
    ids = models.format_prompt(tokenizer, P)
    assert tokenizer.decode(ids) == prompt
    gold = models.encode_reply(tokenizer, "At last.", 20)
    assert tokenizer.convert_ids_to_tokens(gold[-1]) == end and tokenizer.decode(gold[:-1]) == (
        "At last."
    )
    typed = f"{end} and on"  # in a post it closes nothing
    assert models.format_prompt(tokenizer, typed).count(gold[-1]) == ids.count(gold[-1])


@pytest.mark.parametrize("pad", [None, "<|im_end|>", "<|endoftext|>"])
def test_any_pad_token_or_none_gives_the_same_replies(pad, tmp_path):
    template = TEMPLATES["SmolLM2, Qwen2.5"][0]
    tokenizer = tokenizer_of(template, folder=tmp_path, pad_token=pad)
    assert tokenizer.pad_token == (pad or "<|im_end|>")
    plain = models.load_tokenizer(CFG.model)
    model = talkative(models.load_model(CFG.model), plain.eos_token_id)
    posts = [post.text for post in POSTS]
    one, other = (sampling.sample(model, t, posts, 3, CFG.sampling, 0) for t in (tokenizer, plain))
    assert one.texts == other.texts and torch.equal(one.logprobs, other.logprobs)
    assert torch.equal(one.completion_mask, other.completion_mask)


@pytest.mark.parametrize("named", [None, "int", "list", "two", "two and others"])
def test_a_reply_ends_at_any_end_that_the_generation_config_names(named):
    tokenizer = models.load_tokenizer(CFG.model)
    eos, model = tokenizer.eos_token_id, models.load_model(CFG.model)
    model, posts = talkative(model, eos), [post.text for post in POSTS]
    model.generation_config.eos_token_id = None
    before = sampling.sample(model, tokenizer, posts, 4, CFG.sampling, 0)
    stop = next(y for y in before.completion_ids[:, :, 0].flatten().tolist() if y != eos)
    stops = {None: None, "int": eos, "list": [eos], "two": [eos, stop], "two and others": [5, stop]}
    model.generation_config.eos_token_id = stops[named]
    drawn = sampling.sample(model, tokenizer, posts, 4, CFG.sampling, 0)
    ends = {eos, stop} if "two" in str(named) else {eos}
    for ids, mask, cut in zip(
        drawn.completion_ids.flatten(0, 1),
        drawn.completion_mask.flatten(0, 1),
        drawn.truncated.flatten(),
    ):
        y = ids[mask].tolist()
        assert not ends & set(y[:-1]) and cut == (y[-1] not in ends)
    same = torch.equal(drawn.completion_ids, before.completion_ids)
    assert same == ("two" not in str(named))


def test_a_tokenizer_without_any_end_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no token that ends a reply"):
        tokenizer_of(
            "{% for m in messages %}{{ m.content }}\n{% endfor %}", (), tmp_path, eos_token=None
        )


def test_dpo_ends_its_pairs_as_the_template_does(tmp_path):
    tokenizer = tokenizer_of(*TEMPLATES["Phi-3"][:2], tmp_path)
    pair = dataclasses.make_dataclass("Pair", ["tweet", "chosen", "rejected"])("a", "b", "c")
    tokens = pair_tokens(tokenizer, pair, CFG.sampling)
    end = tokenizer.convert_tokens_to_ids("<|stop|>")
    assert tokens["chosen_ids"][-1] == tokens["rejected_ids"][-1] == end
