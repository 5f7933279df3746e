"""The files of one study as one checked bundle; figures and tables read nothing else.

    results = load(Paths("laptop"), config.load("laptop"))
    results.cells("diversity")       # {("grpo", 42): Series by prompt, ..., ("human", None): ...}

A grid of methods x seeds with holes, or with cells that belong to another study, is refused by name: a mean
over whatever happens to lie there is how tables go wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.config import Config, UserError
from polylib.run import Paths

UNSEEDED = ("human", "base")  # people and the untrained model: one cell each, no training run
SETTINGS = {"lambda0": "polychromic"}  # methods that train with another one's section of the preset


@dataclass(frozen=True)
class Results:
    """frames: {(method, seed, temperature): per_prompt.csv indexed by prompt_id}; seed is None for people and
    the base model, temperature None for people. histories: {(method, seed): history.csv}; costs: one row per
    env.json."""

    cfg: Config
    paths: Paths
    frames: dict[tuple[str, int | None, float | None], pd.DataFrame]
    histories: dict[tuple[str, int], pd.DataFrame]
    costs: pd.DataFrame
    engagement: str
    judge: dict  # pair_accuracy on `pairs` human pairs of threads it was not fitted on
    commit: str  # of the evaluated cells, as a phrase

    @property
    def methods(self) -> list[str]:
        """In the order of the report; people first."""
        present = {method for method, _, _ in self.frames}
        return [name for name in (*UNSEEDED, *self.cfg.methods) if name in present]

    @property
    def trained(self) -> list[str]:
        """The methods that are compared with SFT."""
        return [name for name in self.methods if name not in ("sft", *UNSEEDED)]

    @property
    def columns(self) -> list[str]:
        """Metrics that every file has."""
        first, *others = self.frames.values()
        return [name for name in first if all(name in frame for frame in others)]

    @property
    def temperatures(self) -> list[float]:
        """Those of the temperature control, ascending, the training temperature among them."""
        return sorted({t for method, _, t in self.frames if method == "sft"})

    def cells(
        self, metric: str, temperature: float | None = None
    ) -> dict[tuple[str, int | None], pd.Series]:
        """{(method, seed): values by prompt} at one temperature (default: that of training), people
        always."""
        if not all(metric in frame for frame in self.frames.values()):
            raise UserError(
                f"{self.paths.results('evaluation')}: a per_prompt.csv has no column {metric}; "
                "run `dvc repro`"
            )
        wanted = self.cfg.sampling.temperature if temperature is None else temperature
        return {
            (method, seed): frame[metric]
            for (method, seed, t), frame in self.frames.items()
            if t is None or abs(t - wanted) < 1e-9
        }

    @property
    def people(self) -> pd.DataFrame:
        return self.frames["human", None, None]

    @property
    def note(self) -> str:
        """What every figure and table says below itself."""
        cfg = self.cfg
        replies = self.frames[cfg.methods[0], cfg.seeds[0], cfg.sampling.temperature][
            "n_samples"
        ].iloc[0]
        runs = ("seeds " if len(cfg.seeds) > 1 else "one seed, ") + ", ".join(map(str, cfg.seeds))
        return (
            f"n = {len(self.people)} posts × {replies:g} replies, {runs}, "
            f"T = {cfg.sampling.temperature:g}, preset {cfg.preset}, study {self.paths.study}, {self.engagement} "
            f"engagement, judge right on {self.judge['pair_accuracy']:.0%} of {self.judge['pairs']} human pairs, "
            f"{self.commit}"
        )


def load(paths: Paths, cfg: Config) -> Results:
    """Read a study. Raises UserError naming every missing or foreign cell, or the file that does not fit."""
    expected = [(method, seed) for method in cfg.methods for seed in cfg.seeds]
    frames = _scores(paths, "human", None)
    if (paths.evaluation("base") / "per_prompt.csv").exists():
        frames |= _scores(paths, "base", None)
    _check_grid(paths, set(expected))
    for method, seed in expected:
        frames |= _scores(paths, method, seed)
    _check_frames(paths, frames, cfg)
    histories = {
        cell: read_csv(paths.results(*cell) / "history.csv", ["step"]) for cell in expected
    }
    manifest = _json(paths.results("data") / "manifest.json")
    judge = _json(paths.results("reward_model") / "metrics.json")["judge"]
    return Results(
        cfg,
        paths,
        frames,
        histories,
        _costs(paths),
        manifest["engagement"],
        judge,
        _commit(paths, [("human", None), *expected]),
    )


def section(results: Results, method: str):
    """The settings that a method trained with."""
    return vars(results.cfg)[SETTINGS.get(method, method)]


def chain_of(results: Results, method: str) -> list[str]:
    """The method and what it starts from, back to the base model."""
    chain = [method]
    while (start := section(results, chain[-1]).init) != "base":
        chain.append(start)
    return chain


def means(results: Results, metrics: list[str], temperature: float | None = None) -> pd.DataFrame:
    """method, seed and the mean over prompts of each metric, one row per cell; NaN prompts are left out, and
    a metric that fewer than half of the prompts define is NaN."""
    columns = {metric: results.cells(metric, temperature) for metric in metrics}
    rows = [
        {"method": method, "seed": seed}
        | {
            metric: cells[(method, seed)].mean()
            if cells[(method, seed)].notna().mean() >= 0.5
            else np.nan
            for metric, cells in columns.items()
        }
        for method, seed in columns[metrics[0]]
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _check_grid(paths: Paths, expected: set) -> None:
    folder = paths.results("evaluation")
    found = {
        file.parent.relative_to(folder).as_posix() for file in folder.glob("*/s*/per_prompt.csv")
    }
    wanted = {f"{method}/s{seed}" for method, seed in expected}
    if missing := ", ".join(sorted(wanted - found)):
        raise UserError(f"{folder}: missing: {missing}; run `dvc repro`")
    if foreign := ", ".join(sorted(found - wanted)):
        raise UserError(
            f"{folder}: not part of this study: {foreign}; delete them or list them in the preset"
        )


def _check_frames(paths: Paths, frames: dict, cfg: Config) -> None:
    posts = sorted(frames["human", None, None].index)
    for (method, seed, temperature), frame in frames.items():
        if sorted(frame.index) != posts:
            raise UserError(
                f"{paths.evaluation(method, seed)}/per_prompt.csv: T={temperature} lacks or "
                "repeats posts of the human row; run `dvc repro`"
            )
    for method, seed in {cell[:2] for cell in frames if cell[0] in cfg.methods}:
        needed = {
            cfg.sampling.temperature,
            *(cfg.evaluation.temperatures if method in cfg.swept else ()),
        }
        missing = sorted(needed - {t for m, s, t in frames if (m, s) == (method, seed)})
        if missing:
            raise UserError(
                f"{paths.evaluation(method, seed)}/per_prompt.csv: no rows at temperature "
                f"{missing[0]:g}; run `dvc repro`"
            )


def _scores(paths: Paths, method: str, seed: int | None) -> dict[tuple, pd.DataFrame]:
    file = paths.evaluation(method, seed) / "per_prompt.csv"
    frame = read_csv(file, ["prompt_id", "temperature", "n_samples", "judge_mean"]).set_index(
        "prompt_id"
    )
    return {
        (method, seed, None if pd.isna(t) else float(t)): part
        for t, part in frame.groupby("temperature", dropna=False)
    }


def read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """UserError where the file is missing, has no rows or lacks one of `columns`."""
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro`")
    frame = pd.read_csv(path, dtype={"prompt_id": str})
    absent = [name for name in columns if name not in frame]
    if absent or frame.empty:
        raise UserError(
            f"{path}: {f'no column {absent[0]}' if absent else 'no rows'}; run `dvc repro`"
        )
    return frame


def _json(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro`")
    return json.loads(path.read_text(encoding="utf-8"))


def _commit(paths: Paths, cells: list[tuple[str, int | None]]) -> str:
    """ "commit 93f04b9", or what is missing, mixed or changed, from the env.json beside the evaluated cells."""
    files = [paths.evaluation(*cell) / "env.json" for cell in cells]
    envs = [_json(file) for file in files if file.is_file()]
    known = [env["commit"][:7] for env in envs if isinstance(env.get("commit"), str)]
    if not known:
        return "commit unknown"
    found = sorted(set(known))
    text = f"commit {found[0]}" if len(found) == 1 else f"several commits ({', '.join(found)})"
    bare, changed = len(cells) - len(known), any(env.get("dirty") is True for env in envs)
    remarks = ["uncommitted changes"] * changed
    remarks += [f"{bare} of {len(cells)} cells without one"] * (bare > 0)
    return f"{text} with {', '.join(remarks)}" if remarks else text


def _costs(paths: Paths) -> pd.DataFrame:
    """stage, seed, seconds, memory_mb, device, hours (of cores on a processor, of the device on any other) of every
    env.json; empty where stages did not run on this machine."""
    rows = []
    top = paths.results("data").parent
    for file in sorted(top.glob("**/env.json")):
        stage, env = file.parent.relative_to(top), _json(file)
        seeded = stage.name.startswith("s") and stage.name[1:].isdigit()
        units = env.get("threads", 1) if str(env["device"]).startswith("cpu") else 1
        rows.append(
            {
                "stage": (stage.parent if seeded else stage).as_posix(),
                "seed": int(stage.name[1:]) if seeded else None,
                "seconds": env["wall_seconds"],
                "memory_mb": env["peak_memory_mb"],
                "device": env["device"],
                "hours": env["wall_seconds"] * units / 3600,
            }
        )
    return pd.DataFrame(rows, columns=["stage", "seed", "seconds", "memory_mb", "device", "hours"])
