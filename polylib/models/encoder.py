"""Frozen sentence embeddings: computed once in fixed shapes, kept by the hash of (all that decides their bits, text).

    encoder = Encoder(cfg.model.encoder)
    vectors = encoder.encode(["a post", "a reply"])     # (2, 384) float32, unit norm

A matrix product of another shape may sum in another order, so an embedding computed in the batch that happens to come
along depends on that batch: in bfloat16 another batch changes 17 to 31 % of the corpus' embeddings, by up to .007 in
cosine, in float32 as many in their last bits, and a cache that several processes share then keeps whichever came first.
Here every forward pass has BATCH rows, empty ones where texts are missing, and its width depends on a text's own number
of tokens, so a text has one embedding, whatever else is in the call, the order and the cache.

Left out on purpose: eviction (60k short texts are 90 MB), pooling or prompt options (the model's own folder
sets them)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from polylib import run
from polylib.models import sources

BATCH = 16  # rows of every forward pass
WIDTH = (
    16  # tokens: a text is padded to the next multiple, at most to the longest that the model reads
)
SHAPES = f"{BATCH}x{WIDTH}n"
CHUNK = 1024  # texts tokenised, computed and stored at once: what a killed process loses
LIBRARIES = ("torch", "transformers", "sentence-transformers")


class Encoder:
    """Sentence encoder of one model folder.

    `source` follows the grammar of `sources.resolve` (wheel:…, hub:…, path:…). `device` "auto" takes a GPU if
    there is one. `cache` is a folder or None for the default (`$POLYLIB_CACHE` or ~/.cache/polylib); the file
    in it is SQLite, so several processes may read and add at once and a killed one loses at most its last
    batch.

    `dtype` "auto" computes in bfloat16 where the processor does so natively (twice as fast; against float32
    the cosine of two corpus replies moves by 7e-4 on average, .006 at most), float32 elsewhere. The key of a stored
    embedding holds weights, precision, shapes, versions of the libraries and the kind of processor: a cache never
    answers with what another kind of machine or another version computed. The number of threads is not in it: 1, 2, 4
    and 8 gave the same bits in float32, 1 and 2 in bfloat16."""

    def __init__(
        self, source: str, device: str = "auto", cache: Path | None = None, dtype: str = "auto"
    ):
        self.source = source
        self.path = Path(sources.resolve(source))
        place, precision, _ = run.device_dtype(SimpleNamespace(device=device, dtype=dtype))
        self.device, self.dtype = str(place), str(precision).removeprefix("torch.")
        self._file = Path(cache or sources.cache_dir()) / "embeddings.sqlite"
        with run.writing(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
        self._memory: dict[bytes, np.ndarray] = {}
        self._fingerprint = _fingerprint(self.path)
        self._model = None
        self.computed = 0  # texts that really went through the model
        self._in_cache(lambda db: None)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Embeddings (N, d), float32, unit norm, in the order of `texts`; equal texts are computed once.

        Unpaired surrogates (legal in JSON, not in UTF-8) become '?', as a tokenizer would refuse them."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, not one string")
        clean = [plain_utf8(text) for text in texts]
        keys = self._keys(clean)
        todo = {key: text for key, text in zip(keys, clean) if key not in self._memory}
        if todo:
            self._load_cached(todo)
            missing = {key: text for key, text in todo.items() if key not in self._memory}
            for chunk in _chunks(
                sorted(missing, key=lambda key: len(missing[key])), CHUNK
            ):  # like lengths together
                vectors = {}
                for rows, output, _ in self._forward([missing[key] for key in chunk]):
                    found = output["sentence_embedding"][: len(rows)].float().cpu().numpy()
                    vectors.update((chunk[row], vector) for row, vector in zip(rows, found))
                self._store(vectors)
        if not keys:
            return self.encode([""])[:0]
        return np.stack([self._memory[key] for key in keys])

    def token_states(self, texts: list[str]) -> dict[str, np.ndarray]:
        """{text: (L, d) float32 unit vectors of its tokens in the last layer}, for BERTScore.

        Without CLS and SEP; L is 0 for a text of which the encoder knows no token (empty, emoji only: every
        unknown token has nearly one state). Each distinct text is computed once, and its embedding is kept for
        `encode`; token states are not: a study's would fill gigabytes, so pass a few posts at a time."""
        if not texts:
            return {}
        clean = {text: plain_utf8(text) for text in dict.fromkeys(texts)}
        names, keys = list(clean), self._keys(clean.values())
        self._load_cached([key for key in keys if key not in self._memory])
        tokenizer = self._load().tokenizer
        special, unknown = (
            set(tokenizer.all_special_ids) - {tokenizer.unk_token_id},
            tokenizer.unk_token_id,
        )
        states, new = dict.fromkeys(names), {}
        for rows, output, features in self._forward(list(clean.values())):
            tokens, vectors = (
                output["token_embeddings"].float().cpu().numpy(),
                output["sentence_embedding"],
            )
            for place, row in enumerate(rows):
                pairs = zip(
                    features["input_ids"][place].tolist(),
                    features["attention_mask"][place].tolist(),
                )
                ids = [token if seen and token not in special else None for token, seen in pairs]
                keep = [at for at, token in enumerate(ids) if token is not None]
                if all(ids[at] == unknown for at in keep):
                    keep = []
                mine = tokens[place, keep]
                states[names[row]] = mine / np.linalg.norm(mine, axis=1, keepdims=True)
                if keys[row] not in self._memory:
                    new[keys[row]] = vectors[place].float().cpu().numpy()
        if new:
            self._store(new)
        return states

    @property
    def identity(self) -> dict[str, str]:
        """What decides an embedding, machine and versions apart, for the record: source, hash of the folder,
        precision, shapes of the forward passes."""
        return {
            "source": self.source,
            "sha256": self._fingerprint,
            "dtype": self.dtype,
            "shapes": SHAPES,
        }

    def _keys(self, texts) -> list[bytes]:
        """sha256 of everything that may change a bit of an embedding, and of the text."""
        versions = [importlib.metadata.version(name) for name in LIBRARIES]
        salt = "\0".join([self._fingerprint, self.dtype, SHAPES, *versions, *hardware(self.device)])
        return [hashlib.sha256(f"{salt}\0{text}".encode()).digest() for text in texts]

    def _load(self):
        if self._model is None:
            from sentence_transformers import (
                SentenceTransformer,  # about 5 s to import: only when a text is new
            )
            from torch import bfloat16, float32

            kind = {"bfloat16": bfloat16, "float32": float32}[self.dtype]
            self._model = SentenceTransformer(
                str(self.path), device=self.device, model_kwargs={"dtype": kind}
            ).eval()
        return self._model

    def _forward(self, texts: list[str]):
        """Yield (row numbers in `texts`, the model's output, its input) of passes of BATCH rows; rows beyond the
        numbers given are empty texts. Every text is tokenised once, and passes go from narrow to wide."""
        import torch

        model = self._load()
        prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
        features = model.preprocess([*texts, ""], prompt=prompt)  # the last row fills up
        widest = model.max_seq_length or features["input_ids"].shape[1]
        padding = {"input_ids": model.tokenizer.pad_token_id}
        lengths = features["attention_mask"].sum(1)[:-1]
        if not all(mask[:n].all() for mask, n in zip(features["attention_mask"], lengths)):
            raise ValueError(
                f"encoder {self.source}: its tokenizer pads on the left, which fixed shapes do not read"
            )
        widths = (-(-lengths // WIDTH) * WIDTH).clamp(max=widest)
        for width in widths.unique().tolist():  # ascending
            for rows in _chunks((widths == width).nonzero()[:, 0].tolist(), BATCH):
                index = [*rows, *[len(texts)] * (BATCH - len(rows))]
                batch = {}
                for name, value in features.items():
                    if isinstance(value, torch.Tensor) and value.ndim == 2:
                        value = value[index, :width]
                        value = torch.nn.functional.pad(
                            value, (0, width - value.shape[1]), value=padding.get(name, 0)
                        ).to(self.device)
                    batch[name] = value
                with torch.inference_mode():
                    output = model(dict(batch))
                yield rows, output, batch

    def _store(self, raw: dict[bytes, np.ndarray]) -> None:
        keys, vectors = list(raw), np.stack(list(raw.values()))
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all():
            raise FloatingPointError(f"encoder {self.source} returned a non-finite embedding")
        self._memory.update(zip(keys, vectors))
        self.computed += len(keys)
        rows = [(key, blob, zlib.crc32(key + blob)) for key, blob in zip(keys, map(bytes, vectors))]
        self._in_cache(
            lambda db: db.executemany("INSERT OR IGNORE INTO checked VALUES (?, ?, ?)", rows)
        )

    def _load_cached(self, keys) -> None:
        def stored(db: sqlite3.Connection) -> list[tuple]:
            rows = []
            for chunk in _chunks(list(keys), 500):  # SQLite's bound on ? in one statement
                rows += db.execute(
                    f"SELECT * FROM checked WHERE key IN ({','.join('?' * len(chunk))})", chunk
                )
            return rows

        bad = []
        for key, blob, crc in self._in_cache(stored):
            if zlib.crc32(key + blob) == crc:
                self._memory[key] = np.frombuffer(blob, dtype=np.float32)
            else:
                bad.append((key,))
        if bad:
            run.say(f"{self._file}: {len(bad)} embeddings are damaged and computed again")
            self._in_cache(lambda db: db.executemany("DELETE FROM checked WHERE key = ?", bad))

    def _in_cache(self, work: Callable[[sqlite3.Connection], object]):
        """work(db) as one transaction. A file that is no database any more is set aside, and work is done on a new
        one; a full disk or a folder that cannot be written is a UserError."""
        try:
            # waits for another process's write instead of failing
            with closing(sqlite3.connect(self._file, timeout=60)) as db, db:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS checked"
                    " (key BLOB PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID"
                )
                return work(db)
        except sqlite3.OperationalError as error:
            raise run.UserError(
                f"{self._file}: {error}; make room there, delete the file, or name another folder in $POLYLIB_CACHE"
            ) from error
        except sqlite3.DatabaseError:
            # its journal first: it would be played back into the new file
            self._file.with_name(f"{self._file.name}-journal").unlink(missing_ok=True)
            run.set_aside(self._file, "embeddings are computed again")
            return self._in_cache(work)


def hardware(device: str) -> list[str]:
    """What may change the last bits of a matrix product of given shapes on torch device `device`, code apart: the
    graphics card's name, or a CPU's instruction sets and those that torch uses."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return [kind, torch.cuda.get_device_name(device)]
    flags = sorted(flag for flag in run.cpu_flags() if flag.startswith(("avx", "amx", "fma")))
    return [kind, platform.machine(), torch.backends.cpu.get_cpu_capability(), *flags]


def plain_utf8(text: str) -> str:
    """`text` with ? for unpaired surrogates, which are legal in JSON and which a tokenizer refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
