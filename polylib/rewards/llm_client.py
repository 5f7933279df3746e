"""Many questions to an OpenAI-compatible endpoint (/chat/completions): in parallel, within a budget, each paid once.

Works with hosted services and with local servers (vLLM, llama.cpp, Ollama, `transformers serve`). The `openai` library
sends, waits and tries again; budget, cache and what counts as an answer are here. The key is read from $LLM_API_KEY
when a request is sent and is written nowhere; none of the library's own variables ($OPENAI_API_KEY and others) goes to
the endpoint. Left out on purpose: streaming, tools, log-probs and JSON mode (local servers differ in them; one short
answer needs none).
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import re
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from polylib import run
from polylib.config import LLMJudgeConfig, UserError
from polylib.models.sources import cache_dir
from polylib.rewards.llm_cache import Cache, Ledger, key_of

if TYPE_CHECKING:  # slow to import, and needed only where something is asked
    import openai

THINKING = re.compile(
    r".*</think(?:ing)?>|<think(?:ing)?>.*", re.S | re.I
)  # before the answer; or cut off inside it
LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
CHARS_PER_TOKEN = 2.5  # pessimistic for English: the guard must not find out afterwards
OVERHEAD = 16  # tokens of a message's frame


class Client:
    """ask(questions) -> answers. `folder` gets answers.jsonl and ledger.jsonl (default: the polylib cache).

    timeout: seconds without a byte; tries: attempts at one question, with growing pauses or those the server wants."""

    def __init__(
        self, cfg: LLMJudgeConfig, folder: Path | None = None, timeout: float = 60.0, tries: int = 6
    ):
        if not cfg.model or (not cfg.url and cfg.cache != "replay"):
            raise UserError(
                "llm_judge.url and llm_judge.model are empty; set both, e.g. http://localhost:8000/v1"
            )
        if cfg.url and not cfg.url.startswith(("http://", "https://")):
            raise UserError(f"llm_judge.url {cfg.url!r} must start with http:// or https://")
        self.cfg, self.timeout, self.tries = cfg, timeout, tries
        self.folder = Path(folder or cache_dir() / "llm")
        self.cache, self.ledger = Cache(self.folder / "answers.jsonl", cfg.cache), Ledger()
        self._lock, self._promised = threading.Lock(), 0.0

    def ask(self, questions: list[list[dict]]) -> list[str]:
        """The answer texts to lists of chat messages, in order; equal questions are asked once. "" where the endpoint
        gave no text: it is paid, but not kept, so another run asks again.

        Raises UserError, with what is answered kept in the cache: budget spent, endpoint unreachable after all
        tries, request refused (key, model name), answer missing in mode replay."""
        requests = [self._request(messages) for messages in questions]
        keys = [key_of(request) for request in requests]
        known = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        todo = {key: request for key, request in zip(keys, requests) if known[key] is None}
        start = time.monotonic()
        try:
            if todo:
                known |= self._ask(todo)
        finally:
            self.ledger.known += len(keys) - len(todo)
            self.ledger.seconds += time.monotonic() - start
            if todo:
                run.append_line(self.folder / "ledger.jsonl", self.ledger.line(self.cfg.model))
        return [known[key]["text"] or "" for key in keys]

    def estimate(self, questions: list[list[dict]]) -> dict[str, float]:
        """What `ask` would cost, without asking: questions, known (stored already), calls, tokens_in, tokens_out, cost.
        Upper guesses; retries come on top."""
        requests = [self._request(messages) for messages in questions]
        todo = {key: request for request in requests if (key := key_of(request)) not in self.cache}
        into, out = sum(map(_tokens, todo.values())), self.cfg.max_tokens * len(todo)
        known = sum(key_of(request) in self.cache for request in requests)
        return {
            "questions": len(questions),
            "known": known,
            "calls": len(todo),
            "tokens_in": into,
            "tokens_out": out,
            "cost": self._price(into, out),
        }

    def _request(self, messages: list[dict]) -> dict:
        return {
            "model": self.cfg.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": self.cfg.max_tokens,
        }

    @functools.cached_property
    def _endpoint(self) -> openai.OpenAI:
        import openai

        for name in LOGGERS:  # what they note of an answer may hold the key
            logging.getLogger(name).setLevel(logging.WARNING)
        http = openai.DefaultHttpxClient(
            timeout=self.timeout, follow_redirects=False, event_hooks={"request": [self._count]}
        )
        return openai.OpenAI(
            base_url=self.cfg.url,
            api_key="-",
            timeout=self.timeout,
            max_retries=self.tries - 1,
            http_client=http,
        )

    def _ask(self, todo: dict[str, dict]) -> dict[str, dict]:
        endpoint = self._endpoint
        with ThreadPoolExecutor(min(self.cfg.concurrency, len(todo))) as pool:
            asked = {
                key: pool.submit(self._answer, endpoint, key, request)
                for key, request in todo.items()
            }
            try:
                wait(asked.values(), return_when=FIRST_EXCEPTION)
            finally:  # after a failure, and after Ctrl-C, what is under way is the last
                pool.shutdown(cancel_futures=True)
            for failed in [
                one for one in asked.values() if not one.cancelled() and one.exception()
            ]:
                failed.result()  # raises
            return {key: one.result() for key, one in asked.items()}

    def _answer(self, endpoint: openai.OpenAI, key: str, request: dict) -> dict:
        import openai

        secret, answer, priced = _secret(), None, False
        guess = self._reserve(request)
        try:
            headers = {
                "Authorization": f"Bearer {secret}" if secret else openai.Omit(),
                "OpenAI-Organization": openai.Omit(),
                "OpenAI-Project": openai.Omit(),
            }
            answer, priced = _read(
                endpoint.chat.completions.create(**request, extra_headers=headers), request
            )
        except openai.APIError as error:
            raise self._failed(error, secret) from None  # its text may hold the key
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(
                f"llm_judge.url {self.cfg.url}: the answer is no chat completion ({_without(secret, repr(error))})"
            ) from None  # the error quotes the answer
        finally:
            self._settle(guess, answer, priced)
        if answer["text"] is not None:
            answer["text"] = _without(secret, answer["text"])
            self.cache.put(key, self.cfg.model, answer)
        return answer

    def _failed(self, error: openai.APIError, secret: str) -> UserError:
        status, url = getattr(error, "status_code", None), self.cfg.url
        text = (
            f"status {status}: {error.message}"
            if status
            else f"{error.message} {error.__cause__ or ''}"
        )
        text = " ".join(_without(secret, text).split())[:300]
        if (
            status and status < 500 and status not in (408, 409, 429)
        ):  # the others the library has tried again
            return UserError(
                f"llm_judge.url {url}: refused with {text}; check url, model and $LLM_API_KEY"
            )
        tries = 1 + int(error.request.headers.get("x-stainless-retry-count", 0))
        return UserError(
            f"llm_judge.url {url}: no answer after {tries} tries ({text}); answers so far are kept"
        )

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.cfg.price_in + tokens_out * self.cfg.price_out) / 1e6

    def _count(self, request: object) -> None:
        """Called by the library before each request, retries included; what it raises ends the question."""
        with self._lock:
            if self.ledger.calls >= self.cfg.max_calls:
                raise UserError(
                    f"llm_judge.max_calls: all {self.cfg.max_calls} are spent; answers so far are kept, "
                    "raise it and run again"
                )
            self.ledger.calls += 1

    def _reserve(self, request: dict) -> float:
        """Set a question's estimated price aside, or refuse it: several are under way at once."""
        guess = self._price(_tokens(request), self.cfg.max_tokens)
        with self._lock:
            spent = self.ledger.cost + self._promised
            if spent + guess > self.cfg.max_cost:
                raise UserError(
                    f"llm_judge.max_cost: the next call could exceed {self.cfg.max_cost:g} "
                    f"({spent:.4g} spent or under way); answers so far are kept, raise it and run again"
                )
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


def _secret() -> str:
    secret = os.environ.get("LLM_API_KEY", "").strip()
    if not (
        secret.isascii() and secret.isprintable()
    ):  # an HTTP library would quote it in its complaint
        raise UserError("$LLM_API_KEY holds characters that no key has; set it again")
    return secret


def _without(secret: str, text: str) -> str:
    """The text of a server, which may send back what it was sent: the key, as it is or encoded, becomes "…"."""
    coded = base64.b64encode(secret.encode()).decode().rstrip("=")
    for form in (secret, quote(secret, safe=""), coded) if secret else ():
        text = re.sub(re.escape(form), "…", text, flags=re.I)
    return text


def _read(completion: openai.types.chat.ChatCompletion, request: dict) -> tuple[dict, bool]:
    """{text, tokens_in, tokens_out} and whether the server counted the tokens itself. text is None where there is no
    answer: no text, or cut off while still thinking. The library checks no types; local servers send what they like."""
    choice = completion.choices[0]
    said = choice.message.content
    if isinstance(said, list):  # parts, some of them not for the reader
        said = "".join(
            str(part["text"])
            for part in said
            if isinstance(part, dict) and part.get("type") == "text"
        )
    text = THINKING.sub("", said) if isinstance(said, str) else None
    if text is not None and not text.strip() and choice.finish_reason != "stop":
        text = None
    counts = [
        getattr(completion.usage, name, None) for name in ("prompt_tokens", "completion_tokens")
    ]
    priced = all(type(count) is int and count >= 0 for count in counts)
    into, out = counts if priced else (_tokens(request), request["max_tokens"])
    return {"text": text, "tokens_in": into, "tokens_out": out}, priced


def _tokens(request: dict) -> int:
    """An upper guess of a request's tokens."""
    return sum(
        OVERHEAD + int(len(m["content"].encode()) / CHARS_PER_TOKEN) for m in request["messages"]
    )
