"""How models are dressed: tokenizer, prompt, dtype, LoRA, adapters and their warm starts."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from polylib.models import attention, sealed
from polylib.models.sources import resolve
from polylib.run import UserError, atomic_write, device_dtype, set_aside

SYSTEM = "Write a short reply to the post."
MORE_THAN_LORA = (  # settings of PEFT under which some weight is not W + alpha/r · B·A with tensors of that name
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "use_qalora",
)
THINKING_OFF = {"enable_thinking": False, "thinking": False}  # a template knows one of them or none
SAME_DAY = "{% macro strftime_now(format) %}01 January 2025{% endmacro %}"
PLAIN = (  # of models without a chat template
    "{% for m in messages %}{{ m.content + {'system': '\n\nPost: ', 'user': '\n\nReply:\n', "
    "'assistant': eos_token}[m.role] }}{% endfor %}"
)
TINY_SEED = 6  # a random model of `tiny:` that says more than one thing


def load_tokenizer(cfg_model):
    """Tokenizer of `cfg_model.source`. Its EOS is what ends a reply in its chat template, as all gold replies end; a
    base model's, which has no template, gets PLAIN. Without a pad token EOS pads: masks say what padding is.
    UserError if there is no end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(cfg_model.source), local_files_only=True)
    if tokenizer.chat_template is None:
        begins = tokenizer.bos_token_id in tokenizer("").input_ids
        tokenizer.chat_template = "{{ bos_token }}" * begins + PLAIN
    if "strftime_now" in tokenizer.chat_template:  # the same prompts on every day
        tokenizer.chat_template = SAME_DAY + tokenizer.chat_template
    special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    after = tokenizer(_rendered(tokenizer, "\u2063")[1], add_special_tokens=False).input_ids
    end = next((at for at in after if at in special), tokenizer.eos_token_id)
    if end is None:
        raise UserError(f"tokenizer of {cfg_model.source} has no token that ends a reply")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def format_prompt(tokenizer, post: str, max_post_tokens: int = 256) -> list[int]:
    """Token ids of the chat prompt for one post: everything before the first reply token.

    The post is user text: it is tokenised apart from the template and with special tokens split, so
    `<|im_end|>` typed by a user stays five harmless characters and cannot close the turn. UserError if the
    tokenizer has no chat template that takes it.
    """
    marker = "\u2063POST\u2063"  # invisible separators: cannot collide with the template
    before, after = _rendered(tokenizer, marker)[0].split(marker)
    ids = tokenizer(post, add_special_tokens=False, split_special_tokens=True).input_ids
    start, end = (
        tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids
        for text in (before, after)
    )
    return start + ids[:max_post_tokens] + end


def _rendered(tokenizer, text: str) -> tuple[str, str]:
    """(the chat prompt, what follows the reply in its turn) as text.

    Thinking is off: by the template's own switch where it has one, else a <think> left open is closed. What the
    template writes between prompt and reply (a channel, an empty thought) belongs to the prompt. A template that
    refuses or drops a system turn (Gemma's) gets the instruction before the post instead.
    """
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    folded, why = [{"role": "user", "content": f"{SYSTEM}\n\n{text}"}], "drops what it is given"
    for messages in (turns, folded):
        reply = {"role": "assistant", "content": "\u2063REPLY\u2063"}
        try:
            prompt, whole = (
                tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=open_, **THINKING_OFF
                )
                for conversation, open_ in ((messages, True), ([*messages, reply], False))
            )
        except (TemplateError, ValueError, TypeError) as error:
            why = str(error)[:80]
            continue
        if SYSTEM in prompt and prompt.count(text) == 1:
            lead, _, end = whole.partition(reply["content"])
            if end and lead.startswith(prompt) and lead[len(prompt) :].strip():
                prompt = lead
            if prompt.rstrip().endswith("<think>"):
                prompt = prompt.rstrip() + "\n\n</think>\n\n"
            return prompt, end
    raise UserError(
        f"{tokenizer.name_or_path}: its chat template cannot be used ({why}); choose a model.source made for chat"
    )


def encode_reply(tokenizer, reply: str, max_new_tokens: int) -> list[int]:
    """Token ids of a reply and its EOS; cut (without EOS) when longer than `max_new_tokens`."""
    ids = tokenizer(reply, add_special_tokens=False, split_special_tokens=True).input_ids + [
        tokenizer.eos_token_id
    ]
    return ids[:max_new_tokens]


def load_model(cfg_model, parents: list[Path] = (), seed: int = 0):
    """The causal LM of `cfg_model`, parents' adapters merged in, in evaluation mode on its device.

    `parents` are adapter folders in the order they were trained (e.g. the SFT adapter before GRPO), ours or in PEFT's
    format; the user's own, `cfg_model.peft_adapter`, goes before them. Each is merged and the merge is verified: a
    warm start that loads nothing raises. What comes out is compared with a plain forward pass (`check`).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from polylib.models.check import against_plain  # it imports this module

    logging.disable_progress_bar()  # loading takes a fifth of a second; its bar litters every notebook
    device, dtype, _ = device_dtype(cfg_model)
    folder = resolve(cfg_model.source)
    if cfg_model.source.startswith("tiny:"):
        model = _tiny_model(folder, seed).to(dtype)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention.NAME, local_files_only=True
            )
        except SafetensorError as error:
            raise UserError(
                f"{folder}: its weights are damaged ({error}); delete that folder and run again"
            ) from error
    model = model.to(device).eval().requires_grad_(False)
    for parent in filter(None, [cfg_model.peft_adapter, *parents]):
        _merge_adapter(model, Path(parent))
    against_plain(model, cfg_model)
    return model


def _tiny_model(folder: Path, seed: int):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.update(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + TINY_SEED)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)


class Head(torch.nn.Module):
    """Last hidden states (..., d) -> logits (..., V), as the model's own forward pass makes them: the output matrix,
    then Cohere's logit_scale, Granite's logits_scaling, Gemma's soft cap c·tanh(logits / c), where its config has one.
    """

    def __init__(self, model):
        super().__init__()
        self.matrix, config = model.get_output_embeddings(), vars(model.config.get_text_config())
        self.scale = config.get("logit_scale") or 1 / (config.get("logits_scaling") or 1)
        self.cap = config.get("final_logit_softcapping")

    def forward(self, hidden):
        logits = self.matrix(hidden) if self.scale == 1 else self.matrix(hidden) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def add_lora(model, cfg_model, seed: int):
    """Fresh LoRA on every linear layer except the output head; A random from `seed`, B zero."""
    from peft import LoraConfig, get_peft_model

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        if module is not model.get_output_embeddings()
    ]
    config = LoraConfig(
        r=cfg_model.lora_rank,
        lora_alpha=cfg_model.lora_alpha,
        lora_dropout=cfg_model.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # peft warns about tied embeddings, which all-linear leaves alone
        torch.manual_seed(seed)
        # adapters in the model's dtype: the loop keeps float32 masters, so the forward pass needs no casts
        # eval: a fresh adapter's dropout is on, and two scores of the same reply would differ
        return get_peft_model(model, config, autocast_adapter_dtype=False).eval()


def lora_layers(model) -> list:
    """[(name in the plain model, LoRA layer)] of a peft model."""
    from peft.tuners.lora import LoraLayer

    return [
        (name, module)
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    ]


def save_adapter(folder: Path, masters: dict[str, torch.Tensor], cfg_model, extra: dict) -> None:
    """Write float32 adapter weights (safetensors) and adapter.json (rank, alpha, parents, provenance), which the
    weights hold as well: see `sealed`."""
    note = {
        "source": cfg_model.source,
        "rank": cfg_model.lora_rank,
        "alpha": cfg_model.lora_alpha,
        **extra,
    }
    sealed.write(folder / "adapter.safetensors", masters, note)
    atomic_write(folder / "adapter.json", json.dumps(note, indent=2, sort_keys=True) + "\n")


def adapter_digest(folder: Path) -> str:
    """sha256 of the weights in an adapter folder; UserError if there are none."""
    file = Path(folder) / "adapter.safetensors"
    if not file.is_file():
        raise UserError(f"warm start: {file} is missing; run the stage that trains it first")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def adapter_chain(folder: Path, root: Path) -> list[Path]:
    """The adapter folders to merge, oldest first, for the model saved in `folder`.

    Raises UserError when a parent was retrained since: the child would sit on weights it never saw.
    """
    chain = []
    for parent in _adapter(folder)[0]["parents"]:
        if adapter_digest(root / parent["folder"]) != parent["sha256"]:
            raise UserError(
                f"{folder}: its parent {parent['folder']} has changed since; train this stage again"
            )
        chain.append(root / parent["folder"])
    return [*chain, folder]


def _adapter(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """(what adapter.json says, weights), of a PEFT folder what amounts to it. UserError if a file is missing, or is not
    what was written: then it is set aside, and the stage that trains it writes both anew."""
    if (folder / "adapter_config.json").is_file():
        return _peft_adapter(folder)
    file, remedy = folder / "adapter.safetensors", "run the stage that trains it"
    try:
        tensors, known = sealed.read(file)
        file = folder / "adapter.json"
        note = json.loads(file.read_text(encoding="utf-8"))
        if known is not None and note != known:
            raise ValueError("other than in the weights")
    except FileNotFoundError:
        raise UserError(f"warm start: {file} is missing; {remedy} first") from None
    except (ValueError, sealed.Damaged) as error:
        set_aside(file, remedy)
        raise UserError(f"warm start: {file} was damaged and is set aside; {remedy}") from error
    return note, tensors


def _peft_adapter(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The same of a LoRA in PEFT's format, whoever trained it. UserError if W + scale·B·A is not all of it."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"adapter {folder} cannot be read: {error}") from error
    others = (name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    if odd := [*filter(config.get, MORE_THAN_LORA), *others]:
        raise UserError(
            f"adapter {folder}: only LoRA of one rank on linear layers can be merged, and it has {odd[0]}; merge it "
            "with PEFT and let model.source name the result"
        )
    scaled = config["lora_alpha"] * (config["r"] ** 0.5 if config.get("use_rslora") else 1)
    return {"rank": config["r"], "alpha": scaled, "parents": []}, {
        name.removeprefix("base_model.model.").removesuffix(".weight"): tensor.float()
        for name, tensor in tensors.items()
    }


def save_peft(folder: Path, cfg_model, chain: list[Path]) -> None:
    """What `load_model(cfg_model, chain)` adds to its base, as one adapter in PEFT's format (Mangrulkar et al. 2022):
    adapter_config.json and adapter_model.safetensors in `folder`. LoRAs that were trained one on the other are one of
    the ranks' sum: s₁B₁A₁ + s₂B₂A₂ = [s₁B₁ s₂B₂][A₁; A₂]."""
    parts = [_adapter(Path(each)) for each in filter(None, [cfg_model.peft_adapter, *chain])]
    rank, stacked = sum(note["rank"] for note, _ in parts), {}
    names = sorted({name.rsplit(".lora_", 1)[0] for _, tensors in parts for name in tensors})
    for name in names:
        pairs = [
            (note["alpha"] / note["rank"] * tensors[f"{name}.lora_B"], tensors[f"{name}.lora_A"])
            for note, tensors in parts
            if f"{name}.lora_A" in tensors
        ]
        b, a = torch.cat([b for b, _ in pairs], 1), torch.cat([a for _, a in pairs])
        free = rank - len(a)  # of a parent that left this layer alone
        stacked[f"base_model.model.{name}.lora_A.weight"] = F.pad(a, (0, 0, 0, free))
        stacked[f"base_model.model.{name}.lora_B.weight"] = F.pad(b, (0, free))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": cfg_model.source.partition(":")[2].partition("@")[0],
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": names,
        "inference_mode": True,
    }
    atomic_write(folder / "adapter_model.safetensors", save(stacked, {"format": "pt"}))
    atomic_write(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")


def save_merged(folder: Path, cfg_model, chain: list[Path]) -> None:
    """The model with its adapters merged, and its tokenizer, in Hugging Face format: `path:` takes it as a source."""
    load_model(cfg_model, chain).save_pretrained(folder)
    load_tokenizer(cfg_model).save_pretrained(folder)


def _merge_adapter(model, folder: Path) -> None:
    """W <- W + (alpha/r)·B·A for every LoRA pair in `folder`; raises unless every pair moved its weight."""
    note, tensors = _adapter(folder)
    names = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    scale = note["alpha"] / note["rank"]
    moved = 0
    for name in names:
        weight = model.get_submodule(name).weight
        delta = scale * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
        if delta.shape != weight.shape:
            raise UserError(
                f"warm start: {folder} does not fit the model at {name}: {tuple(delta.shape)} "
                f"against {tuple(weight.shape)}"
            )
        before = weight.detach().clone()
        weight.data.copy_(weight.float() + delta.to(weight.device))  # add in float32, round once
        moved += int(bool(delta.any()) and not torch.equal(before, weight))
    if not names or moved < len(names):
        raise UserError(
            f"warm start: {folder} moved only {moved} of {len(names)} weights; train its stage again"
        )


def sampling_copy(model):
    """A second copy of the plain model (before LoRA) for decoding; `refresh_sampling_copy` keeps it merged."""
    return copy.deepcopy(model)


@torch.no_grad()
def refresh_sampling_copy(sampler, peft_model) -> None:
    """Write W + (alpha/r)·B·A into the sampling copy: decoding then runs without adapters and never drifts,
    because nothing is ever un-merged from the trained weights."""
    for name, layer in lora_layers(peft_model):
        b, a = layer.lora_B["default"].weight.float(), layer.lora_A["default"].weight.float()
        delta = layer.scaling["default"] * b @ a
        sampler.get_submodule(name).weight.copy_(layer.base_layer.weight.float() + delta)
