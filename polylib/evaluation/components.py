"""The trained reward taken apart: what each of its parts pays for replies, and what is left without one.

    table = components.measure(reward, rated)            # a row a post and temperature: parts of the mean reward
    run.write_csv(folder / components.FILE, table)

The parts are those of the reward's own definition, not of a fit: weight times value of the learned score, of every
heuristic rule and of coherence, and what the floor under relevance takes away. They add up to the reward but for one
constant, which no gain sees. `analysis.reward_parts` reads the file.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib.rewards import CombinedReward, HeuristicReward

FILE = "components.csv"
KEYS = ["prompt_id", "temperature"]
WITHOUT = "without_"
CLOSE = 1e-6  # by which the parts may miss the reward: rounding


def measure(reward, replies: pd.DataFrame) -> pd.DataFrame:
    """A row a post and temperature: prompt_id, temperature, reward and the means of its `contributions`.

    replies: post_id, post, reply, temperature, reward: all that `score.rate` returned in one call, since a likelihood
    depends in its last digits on what else is in the call. Raises ValueError where the parts do not add up."""
    total = replies["reward"].to_numpy(dtype=float)
    parts = contributions(reward, list(replies["post"]), list(replies["reply"]))
    named = [name for name in parts if not name.startswith(WITHOUT)]
    rest = total - parts[named].sum(axis=1).to_numpy()
    if len(rest) and (not np.isfinite(rest).all() or np.ptp(rest) > CLOSE):
        raise ValueError(
            f"components: the parts of the {reward.name} reward miss it by up to {np.ptp(rest):.2g}"
        )
    keys = replies[["post_id", "temperature"]].reset_index(drop=True).set_axis(KEYS, axis=1)
    table = pd.concat([keys, pd.Series(total, name="reward"), parts], axis=1)
    return table.groupby(KEYS, dropna=False, sort=True).mean().reset_index()


def contributions(reward, posts: list[str], replies: list[str]) -> pd.DataFrame:
    """Parts of the reward of N replies, in its own units: learned, coherence, floor, heuristic_<rule>, as far as the
    reward has them, summing to it but for a constant; and without_<part>, the reward with that part's weight at 0
    (learned, heuristic, coherence; the floor's threshold as it is) or without the floor.

    A reward of one part only (learned, coherence) is that part."""
    if isinstance(reward, HeuristicReward):
        return _rules(reward, reward.components(posts, replies))
    if not isinstance(reward, CombinedReward):
        return pd.DataFrame({reward.name: np.asarray(reward(posts, replies), dtype=float)})
    values = reward.components(posts, replies)
    top = {
        name: weight * values[name].to_numpy() for name, weight in reward.weights.items() if weight
    }
    weighted = sum(top.values())
    parts = {name: value for name, value in top.items() if name != "heuristic"}
    if "heuristic" in top:
        rules = (
            _rules(reward.heuristic, values)
            * reward.weights["heuristic"]
            / reward.heuristic.scales["sd"]
        )
        parts |= {name: rules[name].to_numpy() for name in rules}
    if reward.floor:
        parts["floor"] = _lowered(reward, values, weighted) - weighted
    without = (
        {name: _lowered(reward, values, weighted - value) for name, value in top.items()}
        if len(top) > 1
        else {}
    )
    without |= {"floor": weighted} if reward.floor else {}
    return pd.DataFrame(parts | {WITHOUT + name: value for name, value in without.items()})


def _rules(heuristic: HeuristicReward, values: pd.DataFrame) -> pd.DataFrame:
    whole = sum(heuristic.weights.values())
    used = {name: weight / whole for name, weight in heuristic.weights.items() if weight}
    return pd.DataFrame(
        {f"heuristic_{name}": weight * values[name] for name, weight in used.items()}
    )


def _lowered(reward: CombinedReward, values: pd.DataFrame, weighted: np.ndarray) -> np.ndarray:
    """The weighted sum less what the floor takes (CombinedReward.fit's equation)."""
    if not reward.floor:
        return weighted
    above = np.maximum(weighted - reward.floor["median"], 0)
    return weighted - values["off_topic"].to_numpy() * (reward.floor["sd"] + above)
