"""What the benchmarks share: an interleaved stopwatch, the command line, the two models and real posts.

Machines differ and drift, so nothing here reports seconds as a result. Variants run in turn, round after round,
in one process; what counts is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: a spinning thread would count as CPU time
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/x.py` works without an installed package

import torch  # noqa: E402

from polylib import config  # noqa: E402


def arguments(description: str, argv: list[str] | None, parts: tuple[str, ...] = ()):
    """--model wheel (SmolLM2-135M in the dtype that suits the machine) or tiny (random, float32); --rounds; --part."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", choices=["wheel", "tiny"], default="wheel")
    parser.add_argument("--rounds", type=int, default=3)
    if parts:
        parser.add_argument(
            "--part", nargs="+", choices=parts, default=parts, help="default: all of them"
        )
    return parser.parse_args(argv)


def settings(name: str):
    """The laptop study's settings (K = 4, T = 0.7, 40 new tokens, LoRA rank 16) with the model `name`, on CPU.

    tiny: 6 new tokens; it is there to show that the scripts run, its ratios mean nothing.
    """
    cfg = config.load("laptop", ROOT)
    model = dataclasses.replace(cfg.model, device="cpu")
    if name == "tiny":
        model = dataclasses.replace(model, source="tiny:", dtype="float32")
        cfg = dataclasses.replace(cfg, sampling=dataclasses.replace(cfg.sampling, max_new_tokens=6))
    return dataclasses.replace(cfg, model=model)


def posts(n: int) -> list[str]:
    """The first `n` posts of the bundled corpus."""
    with (ROOT / "polylib" / "data" / "corpus.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(next(lines))["tweet"] for _ in range(n)]


def clocks() -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


def interleave(
    variants: dict, rounds: int, warm_up: bool = True
) -> dict[str, list[tuple[float, float, int]]]:
    """{name: function} -> {name: [(CPU s, wall s, units)] one a round}; the order turns by one every round.

    A function returns how many units of work it did (tokens, say), or None for one.
    """
    if warm_up:
        for function in variants.values():
            function()
    names, taken = list(variants), {name: [] for name in variants}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            before = clocks()
            units = variants[name]()
            cpu, wall = (b - a for a, b in zip(before, clocks()))
            taken[name].append((cpu, wall, units or 1))
    return taken


def report(title: str, taken: dict, ours: str) -> dict[str, float]:
    """Print how many times `ours` each variant costs for a unit of work; return the CPU ratios.

    The ratio is of medians over rounds; the range in brackets is that of the ratios within single rounds.
    """
    print(f"\n{title}  [{torch.get_num_threads()} thread(s), {len(taken[ours])} rounds]")
    ratios = {}
    for name in taken:
        texts = []
        for clock in (0, 1):
            per, base = ([x[clock] / x[2] for x in taken[n]] for n in (name, ours))
            ratio = statistics.median(per) / statistics.median(base)
            single = [a / b for a, b in zip(per, base)]
            texts.append(f"{ratio:5.2f} ({min(single):.2f}-{max(single):.2f})")
            if clock == 0:
                ratios[name] = ratio
        print(f"  {name:32s} CPU x {texts[0]:20s} wall x {texts[1]}")
    return ratios
