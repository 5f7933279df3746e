"""Did training pass the point where the judge stops following the reward? Curves over sqrt(KL), and when to stop.

    path = trajectory(results.histories)                  # gains of reward and judge over the start, by sqrt(KL)
    stop = stop_here(path)                                # per method: the best step, and what going on lost
    hacking_table(results)                                # method x seed: level, z, feature, both gains

Gao et al. 2023 (arXiv 2210.10760): for RL, gain = d (alpha - beta log d) with d = sqrt(KL to the start).
Reward and judge have units of their own (sd of people's replies; log-odds).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from polylib.config import UserError
from polylib.hacking import LEVELS, TRUNCATED, verdict
from polylib.names import ordered
from polylib.stats import t_interval

NEEDED = ("val_reward", "val_judge", "val_kl")
FEW = "fewer than 3 distances from the start: set a smaller eval_every"


def trajectory(histories: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """method, seed, step, kl, d, proxy, judge: one row a look at validation posts; proxy and judge are gains over the
    run's first look. Runs without a judge, reward or KL (SFT) are left out; UserError if none remains."""
    parts = []
    for (method, seed), history in histories.items():
        if not set(NEEDED) <= set(history):
            continue
        looks = history.dropna(subset=list(NEEDED))
        if len(looks) > 1:
            first, kl = (
                looks.iloc[0],
                looks["val_kl"].to_numpy(float).clip(min=0),
            )  # an estimate may fall below 0
            parts.append(
                pd.DataFrame(
                    {
                        "method": method,
                        "seed": seed,
                        "step": looks["step"].to_numpy(int),
                        "kl": kl,
                        "d": np.sqrt(kl),
                        "proxy": looks["val_reward"].to_numpy(float) - first["val_reward"],
                        "judge": looks["val_judge"].to_numpy(float) - first["val_judge"],
                    }
                )
            )
    if not parts:
        raise UserError(f"no history.csv has numbers in {', '.join(NEEDED)}; run `dvc repro`")
    return pd.concat(parts, ignore_index=True)


def fit_rl(d: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """(alpha, beta) of gain = d (alpha - beta log d), by least squares over d > 0; NaN with fewer than 3 distinct d."""
    d, gain = np.asarray(d, float), np.asarray(gain, float)
    d, gain = d[d > 0], gain[d > 0]
    if len(np.unique(d.round(6))) < 3:
        return float("nan"), float("nan")
    return tuple(
        float(c)
        for c in np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), gain, rcond=None)[0]
    )


def fits(path: pd.DataFrame) -> pd.DataFrame:
    """method, scorer (proxy or judge), alpha, beta: Gao's curve of each method, all runs pooled; NaN as in `fit_rl`."""
    rows = [
        {
            "method": method,
            "scorer": scorer,
            **dict(zip(("alpha", "beta"), fit_rl(part["d"], part[scorer]))),
        }
        for method, part in path.groupby("method")
        for scorer in ("proxy", "judge")
    ]
    return pd.DataFrame(rows)


def stop_here(path: pd.DataFrame) -> pd.DataFrame:
    """method, step, by_run, d, chosen, judge, low, high, last, loss, loss_low, loss_high, runs, reason: at which step
    each method's judge score was best (mean over runs; by_run: in each), its gain over the start, and what going on to
    the `last` step lost.

    The best of several noisy looks is lucky, so gain and loss are cross-fitted: each run is read at the step that the
    *other* runs choose (`chosen`, in the runs' order), and where training changes nothing the loss is 0 on average.
    One run leaves nobody to choose for it: NaN and a reason. Intervals are t over runs, their variance times
    1 + S/(S - 1) because the runs choose for one another (Nadeau and Bengio 2003); they are for these validation
    posts, which all looks share."""
    rows = []
    for method in ordered(path["method"]):
        table = path[path["method"].eq(method)].pivot_table(
            index="seed", columns="step", values="judge"
        )
        table = table.dropna(axis=1)  # steps that every run looked at
        best, last = table.mean().idxmax(), table.columns[-1]
        chosen = (
            [table.drop(index=seed).mean().idxmax() for seed in table.index]
            if len(table) > 1
            else []
        )
        gain = np.array([table.loc[seed, step] for seed, step in zip(table.index, chosen)])
        judge, low, high = _widened(gain)
        loss, loss_low, loss_high = _widened(gain - table[last].to_numpy() if chosen else gain)
        rows.append(
            {
                "method": method,
                "step": int(best),
                "by_run": _listed(table.idxmax(axis=1)),
                "d": path.loc[path["method"].eq(method) & path["step"].eq(best), "d"].mean(),
                "chosen": _listed(chosen),
                "judge": judge,
                "low": low,
                "high": high,
                "last": int(last),
                "loss": loss,
                "loss_low": loss_low,
                "loss_high": loss_high,
                "runs": len(table),
                "reason": "" if chosen else "one run: its best look is lucky by an unknown amount",
            }
        )
    return pd.DataFrame(rows)


def _widened(values: np.ndarray) -> tuple[float, float, float]:
    """t interval over S >= 2 runs that chose for one another; NaN for none."""
    mean, low, _ = t_interval(values)
    half = (mean - low) * np.sqrt(1 + len(values) / max(len(values) - 1, 1))
    return mean, mean - half, mean + half


def _listed(steps) -> str:
    return ", ".join(map(str, steps))


def hacking_table(
    results, columns: tuple[str, str] = ("reward_mean", "judge_mean")
) -> pd.DataFrame:
    """method, seed, level, label, z, feature, proxy_gain, judge_gain, their _low and _high (95 % over posts), reasons:
    the detector's verdict on every trained run, with SFT of the same seed as the second reference.

    Levels as in `rewards.hacking`, from `hacking` in the metrics.json of the evaluation cells: hacked needs the reward
    up, the judge not up, and the gap between both, in sd over SFT's posts, above 0. UserError if a file lacks it."""
    scores = [results.cells(name) for name in columns]
    rows = []
    for method in (name for name in results.cfg.methods if name != "sft"):
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
            paid = getattr(results.cfg, method).beta > 0 if method in ("grpo", "hybrid") else False
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
    """`hacking` in the metrics.json of an evaluation cell, as `rewards.hacking.evaluate_run` wrote it; UserError if it
    is not there."""
    file = results.paths.evaluation(method, seed) / "metrics.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "hacking" not in stored:
        raise UserError(f"{file}: no key hacking; run `dvc repro`")
    return stored["hacking"]
