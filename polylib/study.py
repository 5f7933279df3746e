"""Choose the study that `dvc repro` runs next: a preset, a data file, and the name their results go under.

python -m polylib.study laptop                      # params.yaml: study laptop, the bundled corpus
python -m polylib.study laptop --data my/tweets.csv # study laptop-tweets, so that nothing is overwritten
python -m polylib.study gpu --data hub:owner/name@main # a hub data set, fetched once to data/raw/
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from polylib import config, run
from polylib.config import UserError
from polylib.data import prepare, read

CORPUS = "polylib/data/corpus.jsonl"
COMMENT = "What `dvc repro` runs; written by `python -m polylib.study PRESET [--data PATH]`."


def select(preset: str, data: str = CORPUS, root: Path | None = None) -> dict:
    """Write `params.yaml` below `root` (default: working directory) if it changes; return its contents.

    `trained` holds the seeds of each method, none where the preset's `methods` does not list it: DVC defines no stage
    for an empty list, so a study trains what it lists and nothing else. `ablation`: the
    seeds where the preset has a grid and trains the hybrid, whose weights it varies.

    `data`: a .jsonl, .jsonl.gz, .csv or .parquet path, or `hub:owner/name@revision[:split]`. UserError for an
    unknown preset, a missing file, or a path that cannot stand in a shell command."""
    base = Path(root or ".").resolve()
    cfg = config.load(preset, root)
    place = _place(data, base)
    study = (
        cfg.preset if place == CORPUS else f"{cfg.preset}-{_slug(Path(place).name.split('.')[0])}"
    )
    chosen = {
        "study": study,
        "preset": cfg.preset,
        "data": place,
        "seeds": list(cfg.seeds),
        "methods": list(cfg.methods),
        "trained": {
            name: list(cfg.seeds) if name in cfg.methods else [] for name in config.METHODS
        },
        "ablation": list(cfg.seeds) if cfg.ablation.grid and "hybrid" in cfg.methods else [],
    }
    config.write_yaml(base / "params.yaml", chosen, COMMENT)
    return chosen


def _place(data: str, base: Path) -> str:
    """`data` as a path: relative to the project where it lies inside, absolute elsewhere."""
    path = base / Path(data).expanduser()  # an absolute path stays as it is
    if data.startswith("hub:"):
        path = fetch(data, base / "data" / "raw")
    if not path.is_file():
        raise UserError(
            f"{data}: no such file; give a .jsonl, .csv or .parquet or hub:owner/name@revision"
        )
    path = Path(os.path.normpath(path))
    place = path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
    if not re.fullmatch(r"[\w./+ ,=@-]+", place):  # it becomes part of a command line in dvc.yaml
        raise UserError(
            f"{place}: rename it; usable are letters, digits, spaces and / . _ - + , = @"
        )
    return place


def _slug(text: str) -> str:
    """Letters, digits and underscores only: it names DVC stages and folders."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "data"


def fetch(source: str, folder: Path) -> Path:
    """A hub data set (`hub:owner/name@revision[:split]`) as <folder>/<name>.jsonl, fetched once. DVC watches
    that file; columns stay as they came. UserError if the hub or the data set cannot be reached."""
    target = folder / f"{_slug(source)}.jsonl"
    if not target.exists():
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in read.hub_rows(source))
        run.atomic_write(target, "".join(f"{line}\n" for line in lines))
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylib.study", description=__doc__.splitlines()[0]
    )
    parser.add_argument("preset", help="name of a file in params/, without .yaml")
    parser.add_argument(
        "--data", default=CORPUS, help="path of the rows, or hub:owner/name@revision"
    )
    args = parser.parse_args(argv)
    try:
        print(prepare.look(config.load(args.preset).data, _place(args.data, Path.cwd())))
        chosen = select(args.preset, args.data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"params.yaml: {', '.join(f'{key} {value}' for key, value in chosen.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
