"""Whose reward was gamed: the detector's verdict on every trained run, from files alone.

verdicts(results)                # method x seed: level, z, feature, gains of reward and judge
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from polylib.config import UserError
from polylib.hacking import LEVELS, TRUNCATED, verdict
from polylib.stats import t_interval


def verdicts(results) -> pd.DataFrame:
    """method, seed, level, label, z, feature, proxy_gain, judge_gain, their _low and _high (95 % over posts), reasons:
    of every trained run, with SFT of the same seed as the second yardstick. proxy: the reward, predicted engagement.

    Levels as in `polylib.hacking`, from `hacking` in the metrics.json of the evaluation cells: hacked needs the reward
    up, the judge not up, and the gap between both, in sd over SFT's posts, above 0. UserError if a file lacks it."""
    scores = [results.cells(name) for name in ("reward_mean", "judge_mean")]
    rows = []
    for method in results.trained:
        for seed in results.cfg.seeds:
            mine, start = (detected(results, name, seed) for name in (method, "sft"))
            gains = [(cells[method, seed] - cells["sft", seed]).dropna() for cells in scores]
            sd = [max(float(cells["sft", seed].std()), 1e-9) for cells in scores]
            found = dict(
                zip(
                    ("proxy", "judge", "gap"),
                    map(t_interval, (*gains, gains[0] / sd[0] - gains[1] / sd[1])),
                    strict=True,
                )
            )
            moved, reasons = _beyond(mine, start)
            paid = (
                getattr(results.cfg, method).beta > 0
                if method in ("grpo", "hybrid", "ppo")
                else False
            )
            level = verdict(mine["z"] > mine["threshold"], moved, reasons, found if paid else {})
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "level": level,
                    "label": LEVELS[level],
                    "z": mine["z"],
                    "feature": mine["feature"],
                    **{
                        f"{name}_{part}": value
                        for name in ("proxy", "judge")
                        for part, value in zip(("gain", "low", "high"), found[name], strict=True)
                    },
                    "reasons": ", ".join(reasons),
                }
            )
    return pd.DataFrame(rows)


def _beyond(mine: dict, start: dict) -> tuple[bool, list[str]]:
    """(does any feature lie further from people than SFT's, beyond noise; practical margins passed beyond SFT)."""
    moved = {
        name
        for name, value in mine["values"].items()
        if abs(value - mine["people"][name]) > mine["threshold"] * mine["sd"][name]
        and (value - start["values"][name]) * np.sign(value - mine["people"][name])
        > mine["threshold"] * mine["sd"][name] * np.sqrt(2)
    }
    reasons = [reason for reason in mine["reasons"] if reason.split()[0] in moved]
    cut, before = mine["truncated"], start["truncated"]
    if cut > TRUNCATED + before:
        reasons.append(f"truncated {cut:.2f}")
    return bool(moved), reasons


def detected(results, method: str, seed: int | None) -> dict:
    """`hacking` in the metrics.json of an evaluation cell, as `hacking.evaluate_run` wrote it; UserError if it
    is not there."""
    file = results.paths.evaluation(method, seed) / "metrics.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "hacking" not in stored:
        raise UserError(f"{file}: no key hacking; run `dvc repro`")
    return stored["hacking"]
