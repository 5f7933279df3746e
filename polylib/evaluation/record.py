"""What an evaluation leaves: per_prompt.csv, and metrics.json with where every number comes from."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.config import Config
from polylib.evaluation import novelty, score, text
from polylib.evaluation.human_baseline import HumanBaseline
from polylib.run import write_csv, write_json

PACKAGES = ("sacrebleu", "rapidfuzz", "scikit-learn", "sentence-transformers", "scipy")


def summary(table: pd.DataFrame) -> dict:
    """Means over prompts per temperature ("human" for people), a reason for each null, how often a metric is not
    defined."""
    names = [name for name in table if name not in (*score.KEYS, "n_samples")]
    reasons = table.attrs.get("reasons", {})
    means = {}
    for temperature, part in table.groupby("temperature", dropna=False):
        mean = part[
            names
        ].mean()  # over the prompts that define the metric; `reasons` counts the others
        means["human" if pd.isna(temperature) else f"T{temperature:g}"] = {
            name: float(mean[name])
            if np.isfinite(mean[name])
            else {"value": None, "reason": reasons[name]}
            for name in names
        }
    return {
        "prompts": int(table["prompt_id"].nunique()),
        "samples": float(table["n_samples"].mean()),
        "mean": means,
        "undefined": reasons,
    }


def provenance(
    cfg: Config, encoder, tokenizer, judge, judge_file: Path, people: HumanBaseline
) -> dict:
    """What the numbers rest on: section `measured_with` of metrics.json. encoder, tokenizer (of the model) and judge
    as loaded; the judge is named by the hash of its weights."""
    weights = hashlib.sha256(Path(judge_file).read_bytes()).hexdigest()
    return {
        "encoder": encoder.identity,
        "judge": {
            "sha256": weights,
            "pair_accuracy": judge.pair_accuracy,
            "pairs": judge.pairs,
            "human_replies": len(people.judged),
        },
        "tokens": {
            "words": text.TOKEN.pattern,
            "model": cfg.model.source,
            "model_vocabulary": len(tokenizer),
        },
        "sampling": {
            "samples": cfg.evaluation.samples,
            "ks": list(cfg.evaluation.ks),
            "seed": cfg.evaluation.seed,
            "temperature": cfg.sampling.temperature,
            "top_p": cfg.sampling.top_p,
            "top_k": cfg.sampling.top_k,
        },
        "sets": {
            "replies": min(score.SET_SIZE, cfg.evaluation.samples),
            "words": score.TOKEN_BUDGET,
            "most": novelty.MOST_SETS,
        },
        "same_kind": {
            "cosine": score.SAME_KIND,
            "encoder": "TF-IDF of hashed character 3- to 5-grams",
        },
        "off_topic_below": people.off_topic_below,
        "self_bleu": text.bleu_signature(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def save(table: pd.DataFrame, folder: Path, thresholds: dict[float, float], **more: dict) -> None:
    """per_prompt.csv (six significant digits) and metrics.json, with `more` sections, in `folder`."""
    write_csv(Path(folder) / "per_prompt.csv", table)
    bars = {f"q{q:g}": value for q, value in thresholds.items()}
    write_json(Path(folder) / "metrics.json", summary(table) | {"thresholds": bars} | more)
