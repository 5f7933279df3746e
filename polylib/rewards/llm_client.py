"""Many questions to an OpenAI-compatible endpoint (/chat/completions): in parallel, within a budget, each paid once.

Works with hosted services and with local servers (vLLM, llama.cpp, Ollama, `transformers serve`). The key is read
from $LLM_API_KEY when a request is sent and is written nowhere. Left out on purpose: streaming, tools, log-probs and
JSON mode (local servers differ in them; one short answer needs none).
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from polylib import run
from polylib.config import LLMJudgeConfig, UserError
from polylib.models.sources import cache_dir
from polylib.rewards.llm_cache import Cache, Ledger, key_of

PARAMETERS = {"temperature": 0.0, "max_tokens": 8}
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
CHARS_PER_TOKEN = 2.5  # pessimistic for English: the guard must not find out afterwards
OVERHEAD = 16  # tokens of a message's frame


class _Temporary(Exception):
    """Worth another try; `wait` is what the server asked for, in seconds, or None."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Client:
    """ask(questions) -> answers. `folder` gets answers.jsonl and ledger.jsonl (default: the polylib cache).

    tries: attempts at one question; pause: seconds before the second, doubled each time, with jitter."""

    def __init__(self, cfg: LLMJudgeConfig, folder: Path | None = None, timeout: float = 60.0, tries: int = 6,
                 pause: float = 1.0):
        if not cfg.model or (not cfg.url and cfg.cache != "replay"):
            raise UserError("llm_judge.url and llm_judge.model are empty; set both, e.g. http://localhost:8000/v1")
        if cfg.url and not cfg.url.startswith(("http://", "https://")):
            raise UserError(f"llm_judge.url {cfg.url!r} must start with http:// or https://")
        self.cfg, self.timeout, self.tries, self.pause = cfg, timeout, tries, pause
        self.folder = Path(folder or cache_dir() / "llm")
        self.cache, self.ledger = Cache(self.folder / "answers.jsonl", cfg.cache), Ledger()
        self._lock, self._jitter, self._promised = threading.Lock(), random.Random(), 0.0

    def ask(self, questions: list[list[dict]]) -> list[str]:
        """The answer texts to lists of chat messages, in order; equal questions are asked once.

        Raises UserError, with what is answered kept in the cache: budget spent, endpoint unreachable after all
        tries, request refused (key, model name), answer missing in mode replay."""
        requests = [{"model": self.cfg.model, "messages": messages, **PARAMETERS} for messages in questions]
        keys = [key_of(request) for request in requests]
        known = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        todo: queue.SimpleQueue = queue.SimpleQueue()
        for key, request in dict(zip(keys, requests)).items():
            if known[key] is None:
                todo.put((key, request))
        start, asked = time.monotonic(), todo.qsize()
        failures: list[BaseException] = []
        workers = [threading.Thread(target=self._work, args=(todo, known, failures), daemon=True)
                   for _ in range(min(max(1, self.cfg.concurrency), asked))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.ledger.known += len(keys) - asked
        self.ledger.seconds += time.monotonic() - start
        if asked:
            run.append_line(self.folder / "ledger.jsonl", self.ledger.line(self.cfg.model))
        if failures:
            raise failures[0]
        return [known[key]["text"] for key in keys]

    def estimate(self, questions: list[list[dict]]) -> dict[str, float]:
        """What `ask` would cost, without asking: questions, known (stored already), calls, tokens_in, tokens_out, cost.
        Upper guesses; retries come on top."""
        requests = [{"model": self.cfg.model, "messages": messages, **PARAMETERS} for messages in questions]
        todo = {key: request for request in requests if (key := key_of(request)) not in self.cache}
        into, out = sum(map(_tokens, todo.values())), PARAMETERS["max_tokens"] * len(todo)
        known = sum(key_of(request) in self.cache for request in requests)
        return {"questions": len(questions), "known": known, "calls": len(todo), "tokens_in": into, "tokens_out": out,
                "cost": self._price(into, out)}

    def _work(self, todo: queue.SimpleQueue, known: dict, failures: list) -> None:
        while not failures:  # the first failure stops all workers after their current question
            try:
                key, request = todo.get_nowait()
            except queue.Empty:
                return
            try:
                known[key] = self._answer(request)
                self.cache.put(key, self.cfg.model, known[key])
            except BaseException as error:  # re-raised by `ask`, in the caller's thread
                failures.append(error)

    def _answer(self, request: dict) -> dict:
        for attempt in range(1, self.tries + 1):
            guess = self._reserve(request)
            try:
                answer, priced = self._send(request)
            except _Temporary as error:
                self._settle(guess, None, True)
                if attempt == self.tries:
                    raise UserError(f"llm_judge.url {self.cfg.url}: no answer after {attempt} tries ({error}); "
                                    "answers so far are kept") from error
                backoff = self.pause * 2 ** (attempt - 1) * (0.5 + self._jitter.random())
                time.sleep(min(60.0, backoff if error.wait is None else error.wait))
                continue
            except BaseException:
                self._settle(guess, None, True)
                raise
            self._settle(guess, answer, priced)
            return answer
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.cfg.price_in + tokens_out * self.cfg.price_out) / 1e6

    def _reserve(self, request: dict) -> float:
        """Count a call and set its estimated price aside, or refuse it: several calls are under way at once."""
        guess = self._price(_tokens(request), PARAMETERS["max_tokens"])
        with self._lock:
            spent = self.ledger.cost + self._promised
            if self.ledger.calls >= self.cfg.max_calls:
                raise UserError(f"llm_judge.max_calls: all {self.cfg.max_calls} are spent; answers so far are kept, "
                                "raise it and run again")
            if spent + guess > self.cfg.max_cost:
                raise UserError(f"llm_judge.max_cost: the next call could exceed {self.cfg.max_cost:g} "
                                f"({spent:.4g} spent or under way); answers so far are kept, raise it and run again")
            self.ledger.calls += 1
            self._promised += guess
        return guess

    def _settle(self, guess: float, answer: dict | None, priced: bool) -> None:
        with self._lock:
            self._promised -= guess
            if answer:
                self.ledger.tokens_in += answer["tokens_in"]
                self.ledger.tokens_out += answer["tokens_out"]
                self.ledger.cost += self._price(answer["tokens_in"], answer["tokens_out"])
                self.ledger.unpriced += not priced

    def _send(self, request: dict) -> tuple[dict, bool]:
        body = json.dumps(request).encode()
        url = self.cfg.url.rstrip("/") + "/chat/completions"
        call = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "polylib"})
        if os.environ.get("LLM_API_KEY"):  # not passed on when the endpoint redirects to another host
            call.add_unredirected_header("Authorization", f"Bearer {os.environ['LLM_API_KEY']}")
        try:
            with urllib.request.urlopen(call, timeout=self.timeout) as response:
                raw = response.read()
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode("utf-8", "replace").replace("\n", " ")
            if error.code in RETRIED:
                raise _Temporary(f"status {error.code}", _seconds(error.headers.get("Retry-After"))) from error
            raise UserError(f"llm_judge.url {url}: refused with status {error.code}: {detail}; check url, model and "
                            "$LLM_API_KEY") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _Temporary(f"{type(error).__name__}: {error}") from error
        return _read(raw, request, url)


def _read(raw: bytes, request: dict, url: str) -> tuple[dict, bool]:
    """{text, tokens_in, tokens_out} and whether the server counted the tokens itself."""
    try:
        body = json.loads(raw)
        text = body["choices"][0]["message"]["content"] or ""
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"llm_judge.url {url}: the answer is no chat completion ({error!r})") from error
    usage = body.get("usage") or {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    priced = all(isinstance(count, int) for count in counts)
    into, out = counts if priced else (_tokens(request), PARAMETERS["max_tokens"])
    return {"text": text, "tokens_in": into, "tokens_out": out}, priced


def _tokens(request: dict) -> int:
    """An upper guess of a request's tokens."""
    return sum(OVERHEAD + int(len(m["content"].encode()) / CHARS_PER_TOKEN) for m in request["messages"])


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.replace(".", "", 1).isdigit() else None
