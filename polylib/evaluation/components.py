"""The trained reward taken apart: which of its parts produced a gain, and what is left of the gain without one.

    table = components.measure(reward, own)              # a row a post: the parts of the mean reward
    components.save(table, folder)                       # components.csv
    components.decompose(results)                        # a row a method and part: share of its gain over SFT

The parts are those of the reward's own definition, not of a fit: weight times value of the learned score, of every
heuristic rule and of coherence, and what the floor under relevance takes away. They add up to the reward but for one
constant, which no gain sees. A part's gain may be negative, and its share then too.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polylib.config import UserError
from polylib.evaluation import stats
from polylib.evaluation.results import Results
from polylib.rewards import CombinedReward, HeuristicReward
from polylib.run import atomic_write

FILE = "components.csv"
KEYS = ["prompt_id", "temperature"]
WITHOUT = "without_"
UNCLEAR = "the whole gain is not clear of 0: there is nothing to share out"
SHARES = ["component", "gain", "gain_low", "gain_high", "share", "gain_without", "without_low", "without_high",
          "reason"]
CLOSE = 1e-6  # by which the parts may miss the reward: rounding


def measure(reward, replies: pd.DataFrame) -> pd.DataFrame:
    """A row a post and temperature: prompt_id, temperature, reward and the means of its `contributions`.

    replies: post_id, post, reply, temperature. Raises ValueError where the parts do not add up to the reward."""
    posts, texts = list(replies["post"]), list(replies["reply"])
    total, parts = np.asarray(reward(posts, texts), dtype=float), contributions(reward, posts, texts)
    named = [name for name in parts if not name.startswith(WITHOUT)]
    rest = total - parts[named].sum(axis=1).to_numpy()
    if len(rest) and (not np.isfinite(rest).all() or np.ptp(rest) > CLOSE):
        raise ValueError(f"components: the parts of the {reward.name} reward miss it by up to {np.ptp(rest):.2g}")
    keys = replies[["post_id", "temperature"]].reset_index(drop=True).set_axis(KEYS, axis=1)
    table = pd.concat([keys, pd.Series(total, name="reward"), parts], axis=1)
    return table.groupby(KEYS, dropna=False, sort=True).mean().reset_index()


def contributions(reward, posts: list[str], replies: list[str]) -> pd.DataFrame:
    """Parts of the reward of N replies, in its own units: learned, coherence, floor, heuristic_<rule>, as far as the
    reward has them, summing to it but for a constant; and without_<part>, the reward with that part's weight at 0
    (learned, heuristic, coherence; the floor's threshold as it is) or without the floor.

    A reward of one part only (learned, coherence, llm) is that part."""
    if isinstance(reward, HeuristicReward):
        return _rules(reward, reward.components(posts, replies))
    if not isinstance(reward, CombinedReward):
        return pd.DataFrame({reward.name: np.asarray(reward(posts, replies), dtype=float)})
    values = reward.components(posts, replies)
    top = {name: weight * values[name].to_numpy() for name, weight in reward.weights.items() if weight}
    weighted = sum(top.values())
    parts = {name: value for name, value in top.items() if name != "heuristic"}
    if "heuristic" in top:
        rules = _rules(reward.heuristic, values) * reward.weights["heuristic"] / reward.heuristic.scales["sd"]
        parts |= {name: rules[name].to_numpy() for name in rules}
    if reward.floor:
        parts["floor"] = _lowered(reward, values, weighted) - weighted
    without = {name: _lowered(reward, values, weighted - value) for name, value in top.items()} if len(top) > 1 else {}
    without |= {"floor": weighted} if reward.floor else {}
    return pd.DataFrame(parts | {WITHOUT + name: value for name, value in without.items()})


def _rules(heuristic: HeuristicReward, values: pd.DataFrame) -> pd.DataFrame:
    whole = sum(heuristic.weights.values())
    used = {name: weight / whole for name, weight in heuristic.weights.items() if weight}
    return pd.DataFrame({f"heuristic_{name}": weight * values[name] for name, weight in used.items()})


def _lowered(reward: CombinedReward, values: pd.DataFrame, weighted: np.ndarray) -> np.ndarray:
    """The weighted sum less what the floor takes (CombinedReward.fit's equation)."""
    if not reward.floor:
        return weighted
    above = np.maximum(weighted - reward.floor["median"], 0)
    return weighted - values["off_topic"].to_numpy() * (reward.floor["sd"] + above)


def save(table: pd.DataFrame, folder: Path) -> None:
    """components.csv in `folder`, six significant digits."""
    atomic_write(Path(folder) / FILE, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read(results: Results) -> pd.DataFrame:
    """method, seed (NaN for human and base) and the columns of components.csv of every cell, at the training
    temperature. UserError for a cell that has none, or other parts than the first."""
    parts = []
    for method, seed in dict.fromkeys((method, seed) for method, seed, _ in results.frames):
        file = results.paths.evaluation(method, seed) / FILE
        if not file.is_file():
            raise UserError(f"{file}: missing; run `dvc repro`")
        part = pd.read_csv(file, dtype={"prompt_id": str})
        if parts and list(part.columns) != list(parts[0].columns)[2:]:
            raise UserError(f"{file}: its columns are those of another reward; run `dvc repro`")
        here = part["temperature"].isna() | np.isclose(part["temperature"], results.cfg.sampling.temperature)
        part = part[here].assign(method=method, seed=np.nan if seed is None else seed)
        parts.append(part[["method", "seed", *(name for name in part if name not in ("method", "seed"))]])
    return pd.concat(parts, ignore_index=True)


def decompose(results: Results, start: str = "sft") -> pd.DataFrame:
    """`shares` of every method of a study over `start`, method first."""
    table = read(results)
    return pd.concat([shares(table, method, start).assign(method=method) for method in results.cfg.methods
                      if method != start], ignore_index=True)[["method", *SHARES]]


def shares(table: pd.DataFrame, method: str, start: str = "sft") -> pd.DataFrame:
    """A row a part, the whole (`reward`) first and `heuristic` (sum of its rules) before the rules: gain of `method`
    over `start`, paired by post, with interval (runs and posts both random); share of the whole gain, NaN with reason
    where that is not clear of 0; gain_without, the gain re-scored with the part removed, where the reward has others.

    table: method, seed, prompt_id, reward and parts, as from `read`."""
    rules = [name for name in table if name.startswith("heuristic_")]
    if rules:
        table = table.assign(heuristic=table[rules].sum(axis=1))
    parts = [name for name in table if name not in ("method", "seed", "reward", "heuristic", *KEYS)
             and not name.startswith(WITHOUT)]
    place = parts.index(rules[0]) if rules else 0
    parts = ["reward", *parts[:place], *(["heuristic"] if rules else []), *parts[place:]]
    whole, claim = _gain(table, "reward", method, start)
    clear = claim.low > 0 or claim.high < 0
    rows = []
    for name in parts:
        gain, own = _gain(table, name, method, start)
        row = {"component": name, "gain": gain, "gain_low": own.low, "gain_high": own.high,
               "share": gain / whole if clear else np.nan, "gain_without": np.nan, "without_low": np.nan,
               "without_high": np.nan, "reason": "" if clear else UNCLEAR}
        if WITHOUT + name in table:
            left, other = _gain(table, WITHOUT + name, method, start)
            row |= {"gain_without": left, "without_low": other.low, "without_high": other.high}
        rows.append(row)
    return pd.DataFrame(rows, columns=SHARES)


def _gain(table: pd.DataFrame, name: str, method: str, start: str) -> tuple[float, stats.Claim]:
    values = table.set_index(["method", "seed", "prompt_id"])[name]
    return stats.interval((values.loc[method] - values.loc[start]).unstack("prompt_id").to_numpy())
