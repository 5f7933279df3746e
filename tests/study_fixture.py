"""A FIXTURE, not a result: invented numbers in the shape of a study's files, to test figures and tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from hacking_fixture import write_preflights

from polylib import config
from polylib.run import Paths, atomic_write, write_json

ROOT = Path(__file__).parents[1]
# method: judge, reward, diversity, words, relevance, truncated (invented)
LEVELS = {
    "sft": (0.41, 0.47, 0.75, 17, 0.37, 0.06),
    "lambda0": (0.40, 0.45, 0.755, 16, 0.355, 0.06),
    "polychromic": (0.42, 0.465, 0.80, 14, 0.31, 0.02),
    "grpo": (0.58, 0.64, 0.74, 14, 0.34, 0.02),
    "hybrid": (0.51, 0.56, 0.79, 13, 0.31, 0.01),
    "human": (0.35, 0.34, 0.81, 17, 0.31, np.nan),
}
ENV = {
    "wall_seconds": 25.0,
    "peak_memory_mb": 2100,
    "device": "cpu, 2 cores",
    "threads": 1,
    "dirty": False,
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"numpy": "2.4.6", "torch": "2.13.0"},
}


def small_config(seeds=(42, 123, 456)) -> config.Config:
    cfg = config.load("laptop", ROOT)
    evaluation = dataclasses.replace(
        cfg.evaluation,
        prompts=24,
        samples=10,
        temperatures=[0.85, 1.0],
        judge_quantiles=[0.5, 0.75, 0.9],
        ks=[1, 5, 10],
    )
    return dataclasses.replace(
        cfg,
        seeds=tuple(seeds),
        swept=("sft",),
        evaluation=evaluation,
    )


def write_study(root: Path, cfg: config.Config, prompts: int = 24, study: str = "laptop") -> Paths:
    """All files that `results.load` reads, and the pre-flights, under root/results/<study>/."""
    paths, rng = Paths(study, root), np.random.default_rng(5)
    base = rng.normal(size=(prompts, 1)) * 0.12
    _scores(paths.evaluation("human"), _rows("human", np.nan, base, rng, 5))
    write_json(paths.evaluation("human") / "env.json", ENV)
    for method in cfg.methods:
        for seed in cfg.seeds:
            controls = cfg.evaluation.temperatures if method in cfg.swept else []
            shift = rng.normal(size=6) * 0.02
            temperatures = [cfg.sampling.temperature, *controls]
            rows = pd.concat([_rows(method, t, base, rng, 10, shift) for t in temperatures])
            _scores(paths.evaluation(method, seed), rows)
            folder = paths.results(method, seed)
            atomic_write(folder / "history.csv", _history(method, rng).to_csv(index=False))
            write_json(folder / "env.json", ENV | {"wall_seconds": 150 + 20 * rng.random()})
            write_json(paths.evaluation(method, seed) / "env.json", ENV)
    for stage in ("data", "reward_model"):
        write_json(paths.results(stage) / "env.json", ENV)
    write_json(paths.results("data") / "manifest.json", {"engagement": "simulated"})
    write_json(
        paths.results("reward_model") / "metrics.json",
        {"judge": {"pair_accuracy": 0.661, "pairs": 3210}},
    )
    write_preflights(paths, cfg)
    lines = [
        {
            "dataset": "corpus",
            "model": model,
            "metric": f"pair_accuracy_{name}",
            "value": 0.6,
            "lo": 0.5,
            "hi": 0.7,
            "n": 90,
        }
        for model in ("combined", "judge", "length_only")
        for name in (
            "ratio_1_1.5",
            "ratio_1.5_2",
            "ratio_2_4",
            "ratio_4_inf",
            "length_matched",
            "length_3_inf",
        )
    ]
    atomic_write(
        paths.results("reward_model") / "validation.csv", pd.DataFrame(lines).to_csv(index=False)
    )
    return paths


def _rows(method, temperature, base, rng, n, shift=(0,) * 6):
    judge, reward, diversity, words, relevance, truncated = np.array(LEVELS[method]) + np.array(
        shift
    ) * (1, 1, 1, 20, 1, 0)
    hot = 0.0 if np.isnan(temperature) else (temperature - 0.7) / 0.3
    judge, diversity, relevance = judge - 0.1 * hot, diversity + 0.085 * hot, relevance - 0.08 * hot
    noise = base + 0.05 * rng.normal(size=(len(base), 8))
    quality = judge + noise[:, 0]
    table = {
        "prompt_id": [f"p{i:03d}" for i in range(len(base))],
        "temperature": temperature,
        "n_samples": n,
        "judge_mean": quality,
        "reward_mean": reward + noise[:, 1],
        "diversity": diversity + noise[:, 2] / 3,
        "diversity_tfidf": 0.9 + diversity / 10 + noise[:, 3] / 20,
        "relevance": relevance + noise[:, 4],
        "length_words": words + 10 * noise[:, 5],
        "length_tokens": 1.4 * words + 10 * noise[:, 5],
        "self_bleu": 30 - 25 * diversity + 10 * noise[:, 6],
        "distinct_2": 0.85 + noise[:, 7] / 10,
        "rouge_l": 0.2 + noise[:, 6] / 10,
        "truncated": truncated,
        "repeated_elsewhere": 0.0 if method != "grpo" else 0.01,
    }
    good = 1 / (1 + np.exp(-(quality - 0.35) * 8))
    table |= {
        "effective_diversity": good**2 * diversity,
        "distinct_k": 4 - (1 - diversity),
        "bertscore": 0.3 + noise[:, 6] / 5,
    }
    for k in (1, 2, 4, 5, 8, 10):
        for q, cut in ((0.5, 0.35), (0.75, 0.55), (0.9, 0.7)):
            share = 1 / (1 + np.exp(-(quality - cut) * 8))
            table[f"pass@{k}_q{q:g}"] = np.where(k <= n, 1 - (1 - share) ** k, np.nan)
        table[f"max@{k}"] = np.where(k <= n, quality + 0.22 * np.log2(k) ** 0.8, np.nan)
        table[f"best@{k}"] = np.where(k <= n, quality + 0.12 * np.log2(k) ** 0.7, np.nan)
    return pd.DataFrame(table)


def _scores(folder: Path, rows: pd.DataFrame) -> None:
    atomic_write(folder / "per_prompt.csv", rows.to_csv(index=False, float_format="%.6g"))


def _history(method, rng, steps=20):
    judge, reward, diversity, words, *_ = LEVELS[method]
    t = np.arange(1, steps + 1) / steps
    evaluated = np.arange(1, steps + 1) % 5 == 0

    def curve(start, end, noise):
        return start + (end - start) * (1 - np.exp(-3 * t)) + noise * rng.normal(size=steps)

    frame = pd.DataFrame(
        {
            "step": np.arange(1, steps + 1),
            "loss": curve(4, 3.7, 0.05),
            "ce": curve(4.1, 3.9, 0.05),
            "grad_norm": curve(1, 0.6, 0.1),
            "truncated": curve(0.08, 0.03, 0.03).clip(0),
        }
    )
    frame["val_ce"] = np.where(
        evaluated, curve(4.2 if method == "sft" else 3.98, 3.99, 0.01), np.nan
    )
    if method != "sft":
        frame["reward"], frame["diversity"] = (
            curve(0.46, reward, 0.05),
            curve(0.75, diversity, 0.02),
        )
        frame["kl"], frame["length"] = curve(0, 1.2, 0.1).clip(0), curve(25, words * 1.4, 0.8)
        for name in ("reward", "diversity", "kl", "length"):
            frame[f"val_{name}"] = np.where(evaluated, frame[name], np.nan)
    return frame
