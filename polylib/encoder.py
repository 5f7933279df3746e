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

    def _compute(self, texts: dict[bytes, str]) -> None:
        if self._model is None:
            from sentence_transformers import (
                SentenceTransformer,  # about 5 s to import: only when a text is new
            )
            from torch import bfloat16, float32

            kind = {"bfloat16": bfloat16, "float32": float32}[self.dtype]
            self._model = SentenceTransformer(
                str(self.path), device=self.device, model_kwargs={"dtype": kind}
            )
        vectors = self._model.encode(list(texts.values()), batch_size=BATCH, show_progress_bar=False)
        vectors = np.asarray(vectors, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all():
            raise FloatingPointError(f"encoder {self.source} returned a non-finite embedding")
        self._memory.update(zip(texts, vectors))
        self.computed += len(texts)
        with closing(self._connect()) as db, db:
            db.executemany(
                "INSERT OR IGNORE INTO embedding VALUES (?, ?)",
                [(key, vector.tobytes()) for key, vector in zip(texts, vectors)],
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
