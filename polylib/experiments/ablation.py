"""The hybrid at every combination of loss weights in a grid: which weights matter, and what each buys (notebook 10).

    chain = ablation.train(cfg, name, section, seed, ...)        # one cell of ablation.grid(cfg)
    rows = ablation.answers(cfg, name, "validation", chain, ...) # one row a post
    cells, best = ablation.summary(prompts), ablation.choose(prompts)
    ablation.save(prompts, paths.evaluation("ablation", seed))   # prompts.csv, cells.csv

Every cell starts from the SFT model of its seed and is judged on validation posts, which also choose the best. The best
of several noisy cells is lucky (the winner's curse), so that it and the start answer test posts as well: the gain there
is the one to report. Adapters of cells are not kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from polylib import hacking, models, run
from polylib.config import Config, TrainConfig, UserError
from polylib.metrics import mean_pairwise_distance
from polylib.models import generate
from polylib.training import loop

START = "start"  # the SFT model itself: the cell that everything is compared with
WATCHED_POSTS = (
    2  # validation posts that the training loop looks at before and after: not what is judged
)
COLUMNS = ["cell", "split", "post_id", "judge", "reward", "diversity", "length", "level", "z"]


def grid(cfg: Config) -> dict[str, TrainConfig]:
    """{name: hybrid section} of every combination, in the order of the preset: "lam=1 beta=0"."""
    keys = list(cfg.ablation.grid)
    base = dataclasses.replace(
        cfg.hybrid,
        steps=cfg.ablation.steps,
        eval_every=cfg.ablation.steps,
        anatomy_every=0,
        eval_samples=2,
        warmup_steps=min(cfg.hybrid.warmup_steps, cfg.ablation.steps),
    )
    if not keys:
        raise UserError(
            f"params/{cfg.preset}.yaml: ablation.grid is empty; give it one or two weights to vary, such "
            "as {lam: [0, 1, 4]}"
        )
    return {
        " ".join(
            f"{key}={value:g}" for key, value in zip(keys, values, strict=True)
        ): dataclasses.replace(base, **dict(zip(keys, values, strict=True)))
        for values in itertools.product(*cfg.ablation.grid.values())
    }


def train(
    cfg: Config,
    name: str,
    section: TrainConfig,
    seed: int,
    posts: list,
    val_posts: list,
    paths: run.Paths,
    reward: Callable,
    encode: Callable,
    parents: list[Path],
) -> list[Path]:
    """Train one cell and return its chain of adapters. A cell that a killed run had finished is not trained again; one
    that it had begun goes on where it was."""
    # below scratch/: an ablation keeps numbers, not models
    root = paths.scratch("ablation", seed) / name.replace(" ", "_")
    own, mark = (
        run.Paths(paths.study, root),
        loop.fingerprint(cfg, section, posts, parents, reward),
    )
    folder = own.models("cell", seed)
    if not _finished(folder, mark):
        loop.train(
            cfg,
            section,
            "cell",
            seed,
            posts,
            val_posts[:WATCHED_POSTS],
            paths=own,
            reward=reward,
            encode=encode,
            parents=parents,
        )
        note = {"fingerprint": mark, "sha256": models.adapter_digest(folder)}
        run.write_json(folder / "finished.json", note)
    return [*parents, folder]


def _finished(folder: Path, mark: str) -> bool:
    """Whether the cell of this fingerprint was trained, and its adapter is what was written then."""
    done = folder / "finished.json"
    if not (done.is_file() and (folder / "adapter.safetensors").is_file()):
        return False
    note = {"fingerprint": mark, "sha256": models.adapter_digest(folder)}
    try:
        return json.loads(done.read_text(encoding="utf-8")) == note
    except ValueError:
        run.set_aside(done, "the cell is trained again")
        return False


def answers(
    cfg: Config,
    name: str,
    split: str,
    chain: list[Path],
    posts: list,
    reward: Callable,
    judge: Callable,
    encode: Callable,
    detector: hacking.Detector,
) -> pd.DataFrame:
    """COLUMNS: one row a post, means over `ablation.samples` replies of the model with the adapters in `chain`.

    diversity is the mean pairwise cosine distance of the replies to one post; level and z are the detector's verdict
    on all of them together (0 ok, 1 shifted, 2 suspicious), the same in every row."""
    tokenizer = models.load_tokenizer(cfg.model)
    samples = cfg.ablation.samples
    table = generate.replies(
        models.load_model(cfg.model, chain),
        tokenizer,
        posts,
        {cfg.sampling.temperature: samples},
        cfg.sampling,
        cfg.evaluation.seed,
    )
    texts = list(table["post"]), list(table["reply"])
    table = table.assign(judge=judge(*texts), reward=reward(*texts))
    vectors = np.asarray(encode(texts[1])).reshape(len(posts), samples, -1)
    verdict = hacking.evaluate_run(detector, table)
    means = table.groupby("post_id", sort=False)[["judge", "reward", "tokens"]].mean().reset_index()
    means = means.rename(columns={"tokens": "length"}).assign(
        cell=name,
        split=split,
        diversity=[mean_pairwise_distance(group @ group.T) for group in vectors],
        level=verdict["level"],
        z=verdict["z"],
    )
    return means[COLUMNS]


def choose(prompts: pd.DataFrame) -> str:
    """The trained cell with the highest mean judge score on validation posts among those that the detector does not
    call suspicious; if it suspects all, among all."""
    table = prompts[prompts["split"].eq("validation") & prompts["cell"].ne(START)]
    calm = table[table["level"] < 2]
    return (table if calm.empty else calm).groupby("cell", sort=False)["judge"].mean().idxmax()


def summary(prompts: pd.DataFrame) -> pd.DataFrame:
    """cell, split, posts, mean and standard error over posts of judge, reward, diversity and length, level, z, chosen:
    the rows of cells.csv. Test rows exist for the start and for the chosen cell."""
    best = choose(prompts)
    rows = []
    for (cell, split), part in prompts.groupby(["cell", "split"], sort=False):
        row = {"cell": cell, "split": split, "posts": len(part)}
        for name in ("judge", "reward", "diversity", "length"):
            row |= {name: part[name].mean(), f"{name}_se": part[name].sem()}
        rows.append(
            row | {"level": part["level"].iloc[0], "z": part["z"].iloc[0], "chosen": cell == best}
        )
    return pd.DataFrame(rows)


def save(prompts: pd.DataFrame, folder: Path) -> None:
    """prompts.csv (a row a cell, split and post) and cells.csv (their means) in `folder`."""
    for name, table in (("prompts", prompts), ("cells", summary(prompts))):
        run.write_csv(Path(folder) / f"{name}.csv", table)


def forget(paths: run.Paths, seed: int) -> None:
    """Drop this seed's cells below scratch/ once their numbers are saved."""
    shutil.rmtree(paths.scratch("ablation", seed), ignore_errors=True)


def winners_curse(prompts: pd.DataFrame) -> pd.DataFrame:
    """cell, metric, validation, test: gain of the chosen cell over the start where it was chosen and where it was not.
    The first is too high on average: the best of several noisy numbers is partly luck."""
    best, rows = choose(prompts), []
    for metric in ("judge", "reward", "diversity"):
        means = prompts.groupby(["cell", "split"])[metric].mean()
        rows.append(
            {"cell": best, "metric": metric}
            | {split: means[best, split] - means[START, split] for split in ("validation", "test")}
        )
    return pd.DataFrame(rows)
