"""What each method took: time, tokens, memory, money (table T4).

costs.table(results).save(paths.figures)             # costs.csv, .tex
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib.analysis.results import Results, chain_of, section
from polylib.config import UserError
from polylib.figures.plain_tables import Table, number
from polylib.figures.style import METHOD_STYLE

NO_PRICE = "paper_figures.price_per_hour is 0: no price given"
SHOWN = {  # column: (heading, digits)
    "runs": ("runs", 0),
    "minutes": ("minutes", 1),
    "sampled_tokens": ("tokens sampled", 0),
    "trained_tokens": ("tokens trained on", 0),
    "tokens_per_s": ("tokens/s", 1),
    "gpu_hours": ("GPU-hours", 3),
    "core_hours": ("core-hours", 3),
    "hours_with_start": ("hours with start", 3),
    "evaluation_minutes": ("evaluation, min", 1),
    "memory_gb": ("peak GiB", 1),
    "price": ("price", 2),
}


def runs(results: Results) -> pd.DataFrame:
    """One row a training run: method, seed and

    minutes: wall-clock, from env.json; hours_with_start: of the run and of those it starts from, in the unit of its
    device. gpu_hours is 0 on a processor, core_hours (threads x hours) 0 on a GPU. sampled_tokens: tokens of fresh
    replies; trained_tokens: prompt, gold and sampled tokens of the optimizer steps; both from history.csv, NaN where it
    has none. tokens_per_s: trained tokens over the seconds of the steps. price = hours of wall-clock with start x
    paper_figures.price_per_hour, NaN where there is no price. UserError if an env.json is missing."""
    if results.costs.empty:
        raise UserError(
            f"{results.paths.results('data').parent}: no env.json there; run `dvc repro`"
        )
    costs = results.costs.dropna(subset="seed").astype({"seed": int}).set_index(["stage", "seed"])
    rows = []
    for (method, seed), history in results.histories.items():
        chain = chain_of(results, method)
        missing = [name for name in chain if (name, seed) not in costs.index]
        if missing:
            raise UserError(
                f"{results.paths.results(missing[0], seed)}/env.json: missing; run `dvc repro`"
            )
        own, start = costs.loc[method, seed], costs.loc[[(name, seed) for name in chain]]
        settings, steps = (
            section(results, method),
            history.reindex(columns=["length", "tokens", "seconds"]),
        )
        draws = getattr(settings, "samples_per_prompt", 0) * settings.prompts_per_step
        fresh = draws / getattr(
            settings, "updates_per_rollout", 1
        )  # several steps may share their rollouts
        silent = (
            not draws or "length" in history and history["length"].isna().all()
        )  # what samples had no weight
        timed = steps.dropna(subset="tokens")
        on_cpu, price = (
            str(own["device"]).startswith("cpu"),
            results.cfg.paper_figures.price_per_hour or np.nan,
        )
        rows.append(
            {
                "method": method,
                "seed": seed,
                "minutes": own["seconds"] / 60,
                "sampled_tokens": 0.0 if silent else steps["length"].sum(min_count=1) * fresh,
                "trained_tokens": steps["tokens"].sum(min_count=1),
                "tokens_per_s": timed["tokens"].sum() / timed["seconds"].sum(min_count=1),
                "gpu_hours": 0.0 if on_cpu else own["hours"],
                "core_hours": own["hours"] if on_cpu else 0.0,
                "hours_with_start": start["hours"].sum(),
                "evaluation_minutes": costs["seconds"].get((f"evaluation/{method}", seed), np.nan)
                / 60,
                "memory_gb": own["memory_mb"] / 1024,
                "price": start["seconds"].sum() / 3600 * price,
            }
        )
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def table(results: Results) -> Table:
    """`runs`, means over the runs of a method, and a last row with the sums of the whole study."""
    single, costs, price = runs(results), results.costs, results.cfg.paper_figures.price_per_hour
    by_method = (
        single.drop(columns="seed")
        .groupby("method", sort=False)
        .agg(lambda values: values.mean(skipna=False))
    )
    by_method.insert(0, "runs", single.groupby("method", sort=False).size())
    by_method.insert(0, "label", [METHOD_STYLE[method]["label"] for method in by_method.index])
    on_cpu = costs["device"].astype(str).str.startswith("cpu")
    total = {
        "method": "study",
        "label": "whole study",
        "runs": len(costs),
        "minutes": costs["seconds"].sum() / 60,
        "gpu_hours": costs.loc[~on_cpu, "hours"].sum(),
        "core_hours": costs.loc[on_cpu, "hours"].sum(),
        "memory_gb": costs["memory_mb"].max() / 1024,
        "price": costs["seconds"].sum() / 3600 * (price or np.nan),
    }
    numbers = pd.concat([by_method.reset_index(), pd.DataFrame([total])], ignore_index=True)
    printed = {
        heading: [number(value, f",.{digits}f") for value in numbers[name]]
        for name, (heading, digits) in SHOWN.items()
    }
    devices = "; ".join(sorted(set(costs["device"].astype(str))))
    paid = (
        f"Price: wall-clock hours, start included, at {price:g} an hour"
        if price
        else f"No price: {NO_PRICE}"
    )
    return Table(
        "costs",
        numbers.assign(reason=np.where(numbers["price"].isna(), NO_PRICE, "")),
        pd.DataFrame({"method": numbers["label"], **printed}),
        "Means over runs; the last row sums all stages. Hours with start count the runs a method starts from, "
        f"in core-hours on a processor, else GPU-hours. Measured on {devices}. {paid}. {results.note}.",
    )
