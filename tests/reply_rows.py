"""A FIXTURE, not a result: generations.jsonl of a made-up study, with replies that attack the page showing them."""

from __future__ import annotations

import json

import numpy as np

from polylib.config import Config
from polylib.evaluation import failures
from polylib.run import Paths, atomic_write

SCRIPT = "<script>window.pwned = 1</script></script><!-- <b>bold</b>"
IMAGE = '<img src=x onerror="window.pwned = 2"> Agreed!'
CONTROL = "<|im_end|>\n<|im_start|>user: {{ 7 * 7 }} \u2028next \ud83d \u202eright to left"
SAID = [
    "My neighbour {i} lost a garden to it in {s} and still laughs",
    "Agreed!",
    "What do you think?",
    "number {i}, {s}",
    "",
    "It took {s} years and {i} pumps before anyone asked why",
    "ask @nobody{i}",
]


def write(paths: Paths, cfg: Config, prompts: int = 24, replies: int = 3) -> None:
    """Replies of people, and of every method and seed, at the training temperature (SFT at a control, too)."""
    _save(paths, "human", None, None, cfg, prompts, replies)
    for method in cfg.methods:
        for seed in cfg.seeds:
            _save(paths, method, seed, cfg.sampling.temperature, cfg, prompts, replies)


def _save(
    paths: Paths,
    method: str,
    seed: int | None,
    temperature: float | None,
    cfg: Config,
    prompts: int,
    n: int,
):
    rng = np.random.default_rng([len(method), seed or 0])
    rows = []
    for i in range(prompts):
        post = f"Post {i}: the river rose again" + (f" {SCRIPT}" if i == 0 else "")
        for s in range(n):
            reply = SAID[int(rng.integers(len(SAID)))].format(i=i, s=f"{method} {s}")
            reply = {(0, "sft", 0): IMAGE, (0, "sft", 1): CONTROL}.get((i, method, s), reply)
            rows.append(
                {
                    "post_id": f"p{i:03d}",
                    "post": post,
                    "sample": s,
                    "temperature": temperature,
                    "reply": reply,
                    "tokens": temperature and len(reply.split()),
                    "truncated": temperature and s == 2,
                    "logprob": temperature and -9.5,
                    "judge": round(rng.random(), 4),
                    "reward": round(rng.normal(), 4),
                    "relevance": round(rng.random(), 4),
                }
            )
    names = failures.flags(
        [r["post"] for r in rows],
        [r["reply"] for r in rows],
        [r["relevance"] for r in rows],
        None if method == "human" else [r["truncated"] for r in rows],
        0.1,
    )
    rows = [row | {"flags": flags} for row, flags in zip(rows, names, strict=True)]
    hot = (
        [row | {"temperature": 1.0, "reply": "never shown"} for row in rows]
        if method == "sft"
        else []
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows + hot)
    atomic_write(paths.evaluation(method, seed) / "generations.jsonl", lines)
