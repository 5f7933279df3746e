"""Frozen sentence embeddings: batched, computed once, kept by the hash of (weights, precision, text).

    encoder = Encoder(cfg.model.encoder)
    vectors = encoder.encode(["a post", "a reply"])     # (2, 384) float32, unit norm

Left out on purpose: eviction (60k short texts are 90 MB), pooling or prompt options (the model's own folder
sets them)."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polylib import run, sources

BATCH = 64


class _Settings(NamedTuple):
    """The two fields of a ModelConfig that `run.device_dtype` reads."""

    device: str
    dtype: str


class Encoder:
    """Sentence encoder of one model folder.

    `source` follows the grammar of `sources.resolve` (wheel:…, hub:…, path:…). `device` "auto" takes a GPU if
    there is one. `cache` is a folder or None for the default (`$POLYLIB_CACHE` or ~/.cache/polylib); the file
    in it is SQLite, so several processes may read and add at once and a killed one loses at most its last
    batch.

    `dtype` "auto" computes in bfloat16 where the processor does so natively (twice as fast; against float32
    the cosine of two corpus replies moves by 7e-4 on average, .006 at most), float32 elsewhere. The precision
    is part of the key."""

    def __init__(self, source: str, device: str = "auto", cache: Path | None = None, dtype: str = "auto"):
        self.source = source
        self.path = Path(sources.resolve(source))
        place, precision, _ = run.device_dtype(_Settings(device, dtype))
        self.device, self.dtype = str(place), str(precision).removeprefix("torch.")
        folder = Path(cache or os.environ.get("POLYLIB_CACHE") or Path.home() / ".cache" / "polylib")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "embeddings.sqlite"
        self._memory: dict[bytes, np.ndarray] = {}
        self._salt = f"{_fingerprint(self.path)} {self.dtype} ".encode()
        self._model = None
        self.computed = 0  # texts that really went through the model
        with closing(self._connect()) as db, db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS embedding"
                " (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
            )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Embeddings (N, d), float32, unit norm, in the order of `texts`; equal texts are computed once.

        Unpaired surrogates (legal in JSON, not in UTF-8) become '?', as a tokenizer would refuse them."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, not one string")
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        keys = [hashlib.sha256(self._salt + text.encode()).digest() for text in clean]
        todo = {key: text for key, text in zip(keys, clean) if key not in self._memory}
        if todo:
            self._read(todo)
            missing = {key: text for key, text in todo.items() if key not in self._memory}
            for chunk in _chunks(sorted(missing, key=lambda key: len(missing[key])), 16 * BATCH):
                self._compute({key: missing[key] for key in chunk})
        if not keys:
            return np.zeros((0, self._dimension()), dtype=np.float32)
        return np.stack([self._memory[key] for key in keys])

    def _dimension(self) -> int:
        return self.encode([""]).shape[1]

    def token_states(self, texts: list[str]) -> dict[str, np.ndarray]:
        """{text: (L, d) float32 unit vectors of its tokens in the last layer}, for BERTScore.

        Without CLS and SEP; L is 0 for a text of which the encoder knows no token (empty, emoji only: every
        unknown token has nearly one state). Each distinct text is computed once, and its embedding is kept for
        `encode`; token states are not: a study's would fill gigabytes, so pass a few posts at a time."""
        if not texts:
            return {}
        clean = {text: text.encode("utf-8", "replace").decode("utf-8") for text in dict.fromkeys(texts)}
        keys = [hashlib.sha256(self._salt + text.encode()).digest() for text in clean.values()]
        self._read([key for key in keys if key not in self._memory])
        model = self._load()
        outputs = model.encode(
            list(clean.values()), batch_size=BATCH, show_progress_bar=False, output_value=None
        )
        special, unknown = set(model.tokenizer.all_special_ids), model.tokenizer.unk_token_id
        states = {}
        for text, output in zip(clean, outputs):
            ids = [int(i) if mask else None for i, mask in zip(output["input_ids"], output["attention_mask"])]
            keep = [i for i, token in enumerate(ids) if token is not None and token not in special - {unknown}]
            if all(ids[i] == unknown for i in keep):
                keep = []
            vectors = output["token_embeddings"].float().cpu().numpy()[keep]
            states[text] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        new = {key: output["sentence_embedding"].float().cpu().numpy()
               for key, output in zip(keys, outputs) if key not in self._memory}
        if new:
            self._keep(list(new), np.stack(list(new.values())))
        return states

    @property
    def identity(self) -> dict[str, str]:
        """What decides an embedding, for the record: source, hash of the folder, precision."""
        fingerprint, dtype = self._salt.decode().split()
        return {"source": self.source, "sha256": fingerprint, "dtype": dtype}

    def _load(self):
        if self._model is None:
            from sentence_transformers import (
                SentenceTransformer,  # about 5 s to import: only when a text is new
            )
            from torch import bfloat16, float32

            kind = {"bfloat16": bfloat16, "float32": float32}[self.dtype]
            self._model = SentenceTransformer(
                str(self.path), device=self.device, model_kwargs={"dtype": kind}
            )
        return self._model

    def _compute(self, texts: dict[bytes, str]) -> None:
        vectors = self._load().encode(list(texts.values()), batch_size=BATCH, show_progress_bar=False)
        self._keep(list(texts), np.asarray(vectors, dtype=np.float32))

    def _keep(self, keys: list[bytes], vectors: np.ndarray) -> None:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all():
            raise FloatingPointError(f"encoder {self.source} returned a non-finite embedding")
        self._memory.update(zip(keys, vectors))
        self.computed += len(keys)
        with closing(self._connect()) as db, db:
            db.executemany(
                "INSERT OR IGNORE INTO embedding VALUES (?, ?)",
                [(key, vector.tobytes()) for key, vector in zip(keys, vectors)],
            )

    def _read(self, keys) -> None:
        with closing(self._connect()) as db:
            for chunk in _chunks(list(keys), 500):  # SQLite's bound on ? in one statement
                found = db.execute(
                    f"SELECT key, vector FROM embedding WHERE key IN ({','.join('?' * len(chunk))})", chunk
                )
                self._memory.update((key, np.frombuffer(blob, dtype=np.float32)) for key, blob in found)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=60)  # waits for another process's write instead of failing


def _chunks(items: list, size: int):
    return (items[i : i + size] for i in range(0, len(items), size))


def _fingerprint(folder: Path) -> str:
    """Hash of everything in the folder that decides an embedding: the same weights under another path share a
    cache."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in {".json", ".txt", ".safetensors"}:
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
