"""Tensors in a safetensors file that holds its own checksum: what is damaged is found when it is read.

    write(path, tensors, {"step": 3})
    tensors, note = read(path)          # raises Damaged, a UserError, where a bit of the file has changed

The checksum stands in the file, so that one rename puts both in place: a second file could be newer or older.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from polylib import run


class Damaged(run.UserError):
    """A file that is not what was written."""


def write(path: Path, tensors: dict[str, torch.Tensor], note: dict) -> None:
    """Atomic; the same tensors and note give the same bytes."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry of metadata: several would be written in any order
    entry = json.dumps({"note": note, "sha256": _digest(kept, note)}, sort_keys=True)
    run.atomic_write(path, save(kept, {"sealed": entry}))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict | None]:
    """(tensors, note); the note is None in a file that `write` did not write, of which nothing can be checked. Damaged
    if a bit has changed, FileNotFoundError if there is no file."""
    content = Path(path).read_bytes()
    try:
        tensors = load(content)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if "__metadata__" not in head:
            return tensors, None
        sealed = json.loads(head["__metadata__"]["sealed"])
        note, digest = sealed["note"], sealed["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__})") from error
    if _digest(tensors, note) != digest:
        raise Damaged(f"{path} is damaged (another checksum)")
    return tensors, note


def _digest(tensors: dict[str, torch.Tensor], note: dict) -> str:
    """sha256 of names, kinds, shapes, numbers and note, whatever version of safetensors lays them out."""
    digest = sha256(json.dumps(note, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
