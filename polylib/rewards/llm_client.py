"""Many questions to an OpenAI-compatible endpoint (/chat/completions): in parallel, within a budget, each paid once.

Works with hosted services and with local servers (vLLM, llama.cpp, Ollama, `transformers serve`). The `openai` library
sends, waits and tries again; budget, cache and what counts as an answer are here. The key is read from $LLM_API_KEY
when a request is sent and is written nowhere; none of the library's own variables ($OPENAI_API_KEY and others) goes to
the endpoint. Left out on purpose: streaming, tools, log-probs and JSON mode (local servers differ in them; one short
answer needs none).

Answers are kept in answers.jsonl by the hash of what was asked. A line holds the hash, the answer and its tokens, never
the post, the reply or the key, so the file may be committed with a paper and replayed without network: same questions,
same tables.
"""

import base64
import hashlib
import json
import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from polylib import run
from polylib.config import LLMJudgeConfig, UserError
from polylib.models.sources import cache_dir

THINKING = re.compile(
    r".*</think(?:ing)?>|<think(?:ing)?>.*", re.S | re.I
)  # before the answer; or cut off inside it
CHARS_PER_TOKEN = 2.5  # pessimistic for English: the guard must not find out afterwards
OVERHEAD = 16  # tokens of a message's frame


class Client:
    """ask(questions) -> answers. `folder` gets answers.jsonl (default: the polylib cache).

    timeout: seconds without a byte; tries: attempts at one question, with growing pauses or those the server wants.
    calls: requests sent so far, retries included; cost: of their answers, in the currency of the prices, with an upper
    guess for questions under way."""

    def __init__(
        self, cfg: LLMJudgeConfig, folder: Path | None = None, timeout: float = 60.0, tries: int = 6
    ):
        if not cfg.model or (not cfg.url and cfg.cache != "replay"):
            raise UserError(
                "llm_judge.url and llm_judge.model are empty; set both, e.g. http://localhost:8000/v1"
            )
        self.cfg, self.timeout, self.tries = cfg, timeout, tries
        self.file = Path(folder or cache_dir() / "llm") / "answers.jsonl"
        self.known = read_answers(self.file)
        self.calls, self.cost, self._lock = 0, 0.0, threading.Lock()

    def ask(self, questions: list[list[dict]]) -> list[str]:
        """The answer texts to lists of chat messages, in order; equal questions are asked once. "" where the endpoint
        gave no text: it is paid, but not kept, so another run asks again.

        Raises UserError, with what is answered kept in the cache: budget spent, endpoint unreachable after all
        tries, request refused (key, model name), answer missing in mode replay."""
        requests = [self._request(messages) for messages in questions]
        keys = [key_of(request) for request in requests]
        todo = {key: r for key, r in zip(keys, requests) if key not in self.known}
        if todo and self.cfg.cache == "replay":
            raise UserError(
                f"{self.file}: no answer to question {min(todo)[:12]}…; llm_judge.cache: live would ask for it"
            )
        found = self.known | (self._ask(todo) if todo else {})
        return [found[key] or "" for key in keys]

    def estimate(self, questions: list[list[dict]]) -> dict[str, float]:
        """What `ask` would cost, without asking: questions, known (stored already), calls, tokens_in, tokens_out, cost.
        Upper guesses; retries come on top."""
        requests = [self._request(messages) for messages in questions]
        todo = {key: request for request in requests if (key := key_of(request)) not in self.known}
        into, out = sum(map(_tokens, todo.values())), self.cfg.max_tokens * len(todo)
        return {
            "questions": len(questions),
            "known": sum(key_of(request) in self.known for request in requests),
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

    def _ask(self, todo: dict[str, dict]) -> dict[str, str | None]:
        import openai  # slow to import, and needed only where something is asked

        # what they note of an answer may hold the key
        for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        http = openai.DefaultHttpxClient(
            timeout=self.timeout, follow_redirects=False, event_hooks={"request": [self._count]}
        )
        with (
            openai.OpenAI(
                base_url=self.cfg.url,
                api_key="-",
                timeout=self.timeout,
                max_retries=self.tries - 1,
                http_client=http,
            ) as endpoint,
            ThreadPoolExecutor(self.cfg.concurrency) as pool,
        ):  # after a failure, and after Ctrl-C, `map` begins nothing new
            answers = pool.map(lambda item: self._answer(openai, endpoint, *item), todo.items())
            return dict(zip(todo, answers))

    def _answer(self, openai, endpoint, key: str, request: dict) -> str | None:
        """The text of one answer, put into the cache; None where there is none."""
        secret, cost = _secret(), 0.0
        guess = self._price(_tokens(request), self.cfg.max_tokens)
        self._reserve(guess)
        try:
            headers = {
                "Authorization": f"Bearer {secret}" if secret else openai.Omit(),
                "OpenAI-Organization": openai.Omit(),
                "OpenAI-Project": openai.Omit(),
            }
            completion = endpoint.chat.completions.create(**request, extra_headers=headers)
            text, into, out = _read(completion, request)
            cost = self._price(into, out)
        except openai.APIError as error:
            raise self._failed(error, secret) from None  # its text may hold the key
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(
                f"llm_judge.url {self.cfg.url}: the answer is no chat completion ({_without(secret, repr(error))})"
            ) from None  # the error quotes the answer
        finally:
            with self._lock:
                self.cost += cost - guess
        if text is not None:
            text = _without(secret, text)
            answer = {"text": text, "tokens_in": into, "tokens_out": out}
            with self._lock:
                self.known[key] = text
                run.append_line(
                    self.file, json.dumps({"key": key, "model": self.cfg.model, **answer})
                )  # ASCII
        return text

    def _failed(self, error, secret: str) -> UserError:
        status, url = getattr(error, "status_code", None), f"llm_judge.url {self.cfg.url}"
        cause = (
            f"status {status}: {error.message}"
            if status
            else f"{error.message} {error.__cause__ or ''}"
        )
        text = " ".join(_without(secret, cause).split())[:300]
        # the library has tried the others again
        if status and status < 500 and status not in (408, 409, 429):
            return UserError(f"{url}: refused with {text}; check url, model and $LLM_API_KEY")
        tries = 1 + int(error.request.headers.get("x-stainless-retry-count", 0))
        return UserError(f"{url}: no answer after {tries} tries ({text}); answers so far are kept")

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.cfg.price_in + tokens_out * self.cfg.price_out) / 1e6

    def _count(self, request: object) -> None:
        """Called by the library before each request, retries included; what it raises ends the question."""
        with self._lock:
            if self.calls >= self.cfg.max_calls:
                raise UserError(
                    f"llm_judge.max_calls: all {self.cfg.max_calls} are spent; answers so far are kept, "
                    "raise it and run again"
                )
            self.calls += 1

    def _reserve(self, guess: float) -> None:
        """Set a question's estimated price aside, or refuse it: several are under way at once."""
        with self._lock:
            if self.cost + guess > self.cfg.max_cost:
                raise UserError(
                    f"llm_judge.max_cost: the next call could exceed {self.cfg.max_cost:g} "
                    f"({self.cost:.4g} spent or under way); answers so far are kept, raise it and run again"
                )
            self.cost += guess


def key_of(request: dict) -> str:
    """sha256 of the request (model, messages, parameters) as canonical JSON."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_answers(file: Path) -> dict[str, str]:
    """{key: answer} of a JSONL file of {key, model, text, tokens_in, tokens_out}; a later line replaces an earlier one.

    Several processes may add to it at once. A line that a killed process left torn is passed over, with a word; a whole
    line that is not an answer is a UserError with file and line."""
    content = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    known = {}
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would split answers as well
        try:
            record = json.loads(line or "null")
        except ValueError:
            print(f"{file}:{number}: torn line passed over")
            continue
        if record is not None:
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise UserError(f"{file}:{number}: not an answer; delete that line")
            known[record.get("key")] = record["text"]
    return known


def _secret() -> str:
    secret = os.environ.get("LLM_API_KEY", "").strip()
    # an HTTP library would quote it in its complaint
    if not (secret.isascii() and secret.isprintable()):
        raise UserError("$LLM_API_KEY holds characters that no key has; set it again")
    return secret


def _without(secret: str, text: str) -> str:
    """The text of a server, which may send back what it was sent: the key, as it is or encoded, becomes "…"."""
    coded = base64.b64encode(secret.encode()).decode().rstrip("=")
    for form in (secret, quote(secret, safe=""), coded) if secret else ():
        text = re.sub(re.escape(form), "…", text, flags=re.I)
    return text


def _read(completion, request: dict) -> tuple[str | None, int, int]:
    """Text and tokens in and out, guessed where the server does not count them. text is None where there is no answer:
    no text, or cut off while still thinking. The library checks no types; local servers send what they like."""
    choice = completion.choices[0]
    said = choice.message.content
    text = THINKING.sub("", said) if isinstance(said, str) else None
    if text is not None and not text.strip() and choice.finish_reason != "stop":
        text = None
    counts = [
        getattr(completion.usage, name, None) for name in ("prompt_tokens", "completion_tokens")
    ]
    priced = all(type(count) is int and count >= 0 for count in counts)
    return text, *(counts if priced else (_tokens(request), request["max_tokens"]))


def _tokens(request: dict) -> int:
    """An upper guess of a request's tokens."""
    return sum(
        OVERHEAD + int(len(m["content"].encode()) / CHARS_PER_TOKEN) for m in request["messages"]
    )
