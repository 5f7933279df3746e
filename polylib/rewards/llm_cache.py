"""Answers of a language-model judge, kept by the hash of what was asked: the same question is paid for once.

A line holds the hash, the answer and its cost, never the post, the reply or the key, so the file may be committed
with a paper and replayed without network: same questions, same tables.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from polylib import run
from polylib.config import UserError

MODES = ("live", "record", "replay", "off")


def key_of(request: dict) -> str:
    """sha256 of the request (model, messages, parameters) as canonical JSON."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """`path` is a JSONL file of {key, model, text, tokens_in, tokens_out}; a later line replaces an earlier one.

    Modes: live = read and add; record = ask again, add; replay = read only, a missing answer is an error; off = no
    file. Several processes may add at once. A line that a killed process left torn is passed over, with a word; a whole
    line that is not an answer is a UserError with file and line."""

    def __init__(self, path: Path, mode: str):
        if mode not in MODES:
            raise UserError(f"llm_judge.cache: unknown mode {mode!r}; use {', '.join(MODES)}")
        self.path, self.mode, self._lock = Path(path), mode, threading.Lock()
        self._answers: dict[str, dict] = {}
        if mode in ("live", "replay") and self.path.is_file():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            for number, line in enumerate(
                text.split("\n"), 1
            ):  # splitlines would split answers as well
                self._read(line, number)

    def _read(self, line: str, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            if line.strip():
                print(f"{self.path}:{number}: torn line passed over")
            return
        try:
            if not isinstance(record["text"], str):
                raise TypeError(record["text"])
            self._answers[record["key"]] = {
                name: record[name] for name in ("text", "tokens_in", "tokens_out")
            }
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}:{number}: not an answer ({error!r}); delete that line"
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> dict | None:
        """The stored {text, tokens_in, tokens_out} or None. In mode replay None is a UserError."""
        found = self._answers.get(key)
        if found is None and self.mode == "replay":
            raise UserError(
                f"{self.path}: no answer to question {key[:12]}…; llm_judge.cache: live would ask for it"
            )
        return found

    def put(self, key: str, model: str, answer: dict) -> None:
        with self._lock:
            if self.mode != "off":
                self._answers[key] = answer
                run.append_line(
                    self.path, json.dumps({"key": key, "model": model, **answer})
                )  # ASCII


@dataclass
class Ledger:
    """What was spent. calls: requests sent, retries included; known: answers that cost nothing; cost in the currency
    of the prices; unpriced: answers whose token counts the server did not give (estimated)."""

    calls: int = 0
    known: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    unpriced: int = 0
    seconds: float = 0.0

    def line(self, model: str) -> str:
        return json.dumps({"model": model, **asdict(self)})
