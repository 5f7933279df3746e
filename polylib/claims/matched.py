"""Gains inside bins of equal length or relevance: replies are compared with replies like them, nothing is extrapolated.

    matched.of_study(results, by="length")               # one row a method and score
    matched.inside_bins(table, "grpo", by="length")      # one row a bin, for a figure

The regression in `gains` assumes a straight line; bins assume nothing but that replies of one bin are alike. Each run's
bins count by the share of replies that both methods have there, so a bin that only one of them reaches counts nothing,
and `covered` says how much of the replies could be compared at all. What is left of a difference within a bin stays in
the gain: more bins, less of it, and fewer replies in each.
"""
from __future__ import annotations

import numpy as np
import pandas as pd

from polylib.claims import replies, stats
from polylib.claims.results import Results
from polylib.evaluation import text

BINS = 8
FEW = 0.5  # share of replies below which the matched gain is that of a minority
NOTHING = "no bin holds replies of both methods in every run"


def of_study(results: Results, by: str = "length", frame: pd.DataFrame | None = None,
             scores: tuple[str, ...] = ("reward", "judge")) -> pd.DataFrame:
    """method, score, by and the columns of `matched_gain` over SFT, for every method of a study. by: length (words) or
    relevance. frame: what `replies.load` gave, if at hand. UserError as there."""
    frame = replies.load(results) if frame is None else frame
    table = frame.rename(columns={"post_id": "prompt_id"})
    table = table[table["method"].isin(results.cfg.methods)]
    if by == "length":
        table = table.assign(length=[len(text.words(reply)) for reply in table["reply"]])
    return pd.DataFrame([{"method": method, "score": score, "by": by,
                          **matched_gain(table.assign(value=table[score]), method, by=by)}
                         for score in scores for method in results.cfg.methods if method != "sft"])


def matched_gain(table: pd.DataFrame, method: str, start: str = "sft", by: str = "length", bins: int = BINS) -> dict:
    """raw, raw_low, raw_high: gain of `method` over `start`; matched, matched_low, matched_high: the same inside `bins`
    quantile bins of column `by`; covered (share of replies compared, mean of runs), reason.

    table: method, seed, prompt_id, `by`, value; a row a reply. Both methods need the same seeds. Values are taken less
    their post's mean, so that bins may hold replies to different posts. Intervals: runs and posts both random, given
    the weights of the bins."""
    rows, weights = _weighted(table, method, start, by, bins)
    plain = 1 / rows.groupby(["method", "seed"])["value"].transform("size") * rows["sign"]
    raw, raw_claim = _contributions(rows, plain)
    covered = weights.groupby(["seed"])["weight"].sum()
    out = {"raw": raw, "raw_low": raw_claim.low, "raw_high": raw_claim.high}
    if covered.min() < 1e-12:
        nothing = dict.fromkeys(("matched", "matched_low", "matched_high"), np.nan)
        return out | nothing | {"covered": float(covered.mean()), "reason": NOTHING}
    share = rows.merge(weights, on=["seed", "bin"], how="left")
    c = share["sign"] * share["weight"] / share["seed"].map(covered) / share["in_bin"]
    gain, claim = _contributions(rows, c.to_numpy())
    few = f"{1 - covered.mean():.0%} of replies have no counterpart of like {by}"
    return out | {"matched": gain, "matched_low": claim.low, "matched_high": claim.high,
                  "covered": float(covered.mean()), "reason": few if covered.mean() < FEW else claim.reason}


def inside_bins(table: pd.DataFrame, method: str, start: str = "sft", by: str = "length",
                bins: int = BINS) -> pd.DataFrame:
    """A row a bin: low, high (edges of `by`), weight (mean of runs), gain, gain_low, gain_high, reason (NaN gain where
    a run has no reply of one of the methods there). Arguments as `matched_gain`."""
    rows, weights = _weighted(table, method, start, by, bins)
    out = []
    for number, part in weights.groupby("bin"):
        row = {"low": rows.attrs["edges"][number], "high": rows.attrs["edges"][number + 1],
               "weight": float(part["weight"].mean())}
        if part["weight"].min() > 0:
            c = np.where(rows["bin"].eq(number), rows["sign"] / rows["in_bin"], 0.0)
            gain, claim = _contributions(rows, c)
            out.append(row | {"gain": gain, "gain_low": claim.low, "gain_high": claim.high, "reason": claim.reason})
        else:
            out.append(row | {"gain": np.nan, "gain_low": np.nan, "gain_high": np.nan,
                              "reason": "a run has no reply of one method here"})
    return pd.DataFrame(out)


def _weighted(table: pd.DataFrame, method: str, start: str, by: str, bins: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of both methods with bin, sign, in_bin (replies of the cell in the bin) and value less its post's mean; and
    seed, bin, weight: the smaller of both methods' shares."""
    rows = table[table["method"].isin([method, start])].dropna(subset=["value", by]).reset_index(drop=True)
    by_method = rows.groupby(["prompt_id", "method"])["value"].mean()
    post = by_method.groupby("prompt_id").mean()  # both methods weigh the same
    edges = np.unique(np.quantile(rows[by], np.linspace(0, 1, bins + 1)))
    edges = np.append(edges, edges[-1] + 1e-9) if len(edges) == 1 else edges
    place = np.clip(np.searchsorted(edges, rows[by], side="right") - 1, 0, len(edges) - 2)
    rows = rows.assign(bin=place, sign=np.where(rows["method"].eq(method), 1.0, -1.0),
                       value=rows["value"] - rows["prompt_id"].map(post))
    rows["in_bin"] = rows.groupby(["method", "seed", "bin"])["value"].transform("size")
    counts = rows.groupby(["method", "seed", "bin"]).size().unstack("bin", fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0)
    mine, other = shares.loc[method].sort_index(), shares.loc[start].sort_index()
    if list(mine.index) != list(other.index):
        raise ValueError(f"{method} has seeds {list(mine.index)} and {start} has {list(other.index)}")
    weights = np.minimum(mine, other).stack().rename("weight").reset_index()
    rows.attrs["edges"] = [float(edge) for edge in edges]
    return rows, weights


def _contributions(rows: pd.DataFrame, c) -> tuple[float, stats.Claim]:
    """Mean and interval of sum(c * value) over runs, written as a mean over posts of each post's contribution."""
    parts = (rows["value"] * np.asarray(c)).groupby([rows["seed"], rows["prompt_id"]]).sum().unstack(fill_value=0.0)
    return stats.interval(parts.to_numpy() * parts.shape[1])
