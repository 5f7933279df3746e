"""What each method took: time, tokens, memory and, if the preset names a price, money (table T4).

    table = cost_table.table(results)
    cost_table.save(table, paths.figures, results.note)           # costs.csv, .md, .tex
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polylib.claims.results import Results, chain_of, section
from polylib.config import UserError
from polylib.pages import plain_tables
from polylib.pages.style import METHOD_STYLE

NO_PRICE = "paper_figures.price_per_hour is 0: no price given"
HEADINGS = {"label": "method", "runs": "runs", "minutes": "minutes", "sampled_tokens": "tokens sampled",
            "trained_tokens": "tokens trained on", "tokens_per_s": "tokens/s", "gpu_hours": "GPU-hours",
            "core_hours": "core-hours", "hours_with_start": "hours with start", "evaluation_minutes": "evaluation, min",
            "memory_gb": "peak GiB", "price": "price"}


def table(results: Results) -> pd.DataFrame:
    """One row a method, means over runs, and a last row with the sums of the whole study.

    minutes: wall-clock of a training run, from env.json; hours_with_start: of the run and of those it starts from, in
    the unit of its device. gpu_hours is 0 on a processor, core_hours (threads x hours) 0 on a GPU. sampled_tokens:
    tokens of fresh replies; trained_tokens: prompt, gold and sampled tokens of the optimizer steps; both from
    history.csv, NaN where it has none. tokens_per_s: trained tokens over the seconds of the steps. price = hours of
    wall-clock with start x paper_figures.price_per_hour, NaN with `reason` where there is no price. UserError if an
    env.json is missing."""
    if results.costs.empty:
        raise UserError(f"{results.paths.results('data').parent}: no env.json there; run `dvc repro`")
    price = results.cfg.paper_figures.price_per_hour or np.nan
    rows = [_mean([_run(results, method, seed, price) for seed in results.cfg.seeds], method)
            for method in results.cfg.methods]
    costs = results.costs
    on_cpu = costs["device"].astype(str).str.startswith("cpu")
    total = {"method": "study", "label": "whole study", "runs": len(costs), "minutes": costs["seconds"].sum() / 60,
             "gpu_hours": costs.loc[~on_cpu, "hours"].sum(), "core_hours": costs.loc[on_cpu, "hours"].sum(),
             "memory_gb": costs["memory_mb"].max() / 1024, "price": costs["seconds"].sum() / 3600 * price}
    frame = pd.DataFrame([*rows, total])
    return frame.assign(reason=np.where(frame["price"].isna(), NO_PRICE, ""))


def _run(results: Results, method: str, seed: int, price: float) -> dict:
    own, history = _env(results, method, seed), results.histories[method, seed]
    chain = [_env(results, name, seed) for name in chain_of(results, method)]
    settings = section(results, method)
    draws = getattr(settings, "samples_per_prompt", 0) * settings.prompts_per_step
    fresh = draws / getattr(settings, "updates_per_rollout", 1)  # several steps may share their rollouts
    silent = not draws or "length" in history and history["length"].isna().all()  # a term that samples had no weight
    steps = history.dropna(subset="tokens") if "tokens" in history else history.iloc[:0]
    evaluation = results.costs[results.costs["stage"].eq(f"evaluation/{method}") & results.costs["seed"].eq(seed)]
    on_cpu = str(own["device"]).startswith("cpu")
    return {"minutes": own["seconds"] / 60,
            "sampled_tokens": 0.0 if silent else _sum(history, "length") * fresh,
            "trained_tokens": _sum(history, "tokens"),
            "tokens_per_s": steps["tokens"].sum() / steps["seconds"].sum()
            if len(steps) and "seconds" in steps else np.nan,
            "gpu_hours": 0.0 if on_cpu else own["hours"], "core_hours": own["hours"] if on_cpu else 0.0,
            "hours_with_start": sum(env["hours"] for env in chain),
            "evaluation_minutes": evaluation["seconds"].sum() / 60 if len(evaluation) else np.nan,
            "memory_gb": own["memory_mb"] / 1024, "price": sum(env["seconds"] for env in chain) / 3600 * price}


def _mean(runs: list[dict], method: str) -> dict:
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    return {"method": method, "label": METHOD_STYLE[method]["label"], "runs": len(runs), **means}


def _env(results: Results, method: str, seed: int) -> pd.Series:
    found = results.costs[results.costs["stage"].eq(method) & results.costs["seed"].eq(seed)]
    if found.empty:
        raise UserError(f"{results.paths.results(method, seed)}/env.json: missing; run `dvc repro`")
    return found.iloc[0]


def _sum(history: pd.DataFrame, column: str) -> float:
    return float(history[column].sum()) if column in history and history[column].notna().any() else np.nan


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """As printed; a dash for what does not exist."""
    digits = {"minutes": 1, "gpu_hours": 3, "core_hours": 3, "hours_with_start": 3, "evaluation_minutes": 1,
              "memory_gb": 1, "price": 2, "tokens_per_s": 1}
    out = {heading: [value if isinstance(value, str) else plain_tables.DASH if pd.isna(value)
                     else f"{value:,.{digits.get(name, 0)}f}" for value in table[name]]
           for name, heading in HEADINGS.items()}
    return pd.DataFrame(out)


def caption(results: Results) -> str:
    devices = "; ".join(sorted(set(results.costs["device"].astype(str))))
    price = results.cfg.paper_figures.price_per_hour
    paid = f"Price: wall-clock hours, start included, at {price:g} an hour" if price else f"No price: {NO_PRICE}"
    return (f"Means over runs; the last row sums all stages. Hours with start count the runs a method starts from, in "
            f"core-hours on a processor, else GPU-hours. Measured on {devices}. {paid}. {results.note}.")


def save(table: pd.DataFrame, folder: Path, caption: str) -> None:
    """costs.csv (numbers and reasons), costs.md, costs.tex in `folder`."""
    plain_tables.save("costs", table, shown(table), folder, caption)
