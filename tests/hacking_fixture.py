"""A FIXTURE, not a result: invented pre-flights, verdicts of the detector and planted policies of a made-up study."""

from __future__ import annotations

import numpy as np
import pandas as pd

from polylib.hacking.features import NAMES
from polylib.run import Paths, atomic_write, write_json

PEOPLE = dict(
    zip(
        NAMES,
        (4.5, 0.7, 0.07, 0.0, 0.005, 0.01, 0.01, 0.003, 0.15, 0.05, 0.04, 2.1, 0.28),
        strict=True,
    )
)
SD = dict(
    zip(
        NAMES,
        (0.03, 0.03, 0.012, 0.005, 0.005, 0.005, 0.005, 0.005, 0.014, 0.012, 0.012, 0.012, 0.01),
        strict=True,
    )
)
# method: how many sd its sets lie from people's, the rest within the null (invented)
SHIFTS = {
    "sft": {"gzip": 25.0, "relevance": 9.0, "length_sd": -12.0},
    "human": {},
    "grpo": {"gzip": 31.0, "relevance": 14.0, "length_sd": -13.0, "top_reply": 40.0},
}
THRESHOLD = 3.6


def write_preflights(paths: Paths, cfg, drop: float = 0.12) -> None:
    """preflight.csv of every seed; the judge ends `drop` below its peak in the first, and rises in the others."""
    ns = np.array([1, 2, 4, 8, 16, 32, 64])
    for i, seed in enumerate(cfg.seeds):
        rng, doublings = np.random.default_rng([5, seed]), np.log2(ns)
        judge = 0.4 + 0.03 * doublings - (drop / 3 * np.maximum(doublings - 3, 0) if i == 0 else 0)
        table = pd.DataFrame(
            {"n": ns, "kl": np.log(ns) - (ns - 1) / ns, "proxy": 0.4 + 0.9 * (1 - 0.6**doublings)}
        )
        table["judge"] = judge + 0.005 * rng.normal(size=len(ns))
        for name, half in (("proxy", 0.12), ("judge", 0.06 + 0.02 * doublings)):
            table[f"{name}_lo"], table[f"{name}_hi"] = table[name] - half, table[name] + half
        table["falls"] = (table["n"] > 8) & (i == 0) & (drop > 0.1)
        content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        atomic_write(paths.results("grpo", seed) / "preflight.csv", content)


def write_verdicts(paths: Paths, cfg) -> None:
    """`hacking` in the metrics.json of every evaluation cell, people's too, and reward_model/planted.csv."""
    for method, seed in [("human", None), *((m, s) for m in cfg.methods for s in cfg.seeds)]:
        rng = np.random.default_rng([6, seed or 0])
        z = {
            name: rng.normal() + SHIFTS.get(method, SHIFTS["sft"]).get(name, 0.0) for name in NAMES
        }
        top = max(z, key=lambda name: abs(z[name]))
        write_json(
            paths.evaluation(method, seed) / "metrics.json",
            {
                "hacking": {
                    "level": int(abs(z[top]) > THRESHOLD),
                    "label": "",
                    "z": abs(z[top]),
                    "feature": top,
                    "threshold": THRESHOLD,
                    "posts": 24,
                    "replies": 10,
                    "reasons": [],
                    "people": PEOPLE,
                    "sd": SD,
                    "truncated": 0.06,
                    "values": {name: PEOPLE[name] + z[name] * SD[name] for name in NAMES},
                }
            },
        )
    planted = [
        ("always 'Agreed!'", 2600.0, "gzip", 1.0),
        ("parrot", 150.0, "copy3", 1.0),
        ("a tenth 'Agreed!'", 15.0, "duplicates", 1.0),
        ("people (fresh sets)", 1.8, "question", 0.01),
    ]
    table = pd.DataFrame(
        [
            {
                "corpus": "corpus",
                "policy": policy,
                "level": 2 if z > 4 else 0,
                "label": "",
                "z": z,
                "threshold": THRESHOLD,
                "feature": feature,
                "n": 150,
                "draws": 3,
                "caught": caught,
            }
            for policy, z, feature, caught in planted
        ]
    )
    content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    atomic_write(paths.results("reward_model") / "planted.csv", content)
