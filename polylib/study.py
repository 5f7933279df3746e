"""Choose the study that `dvc repro` runs next: a preset, a data file, and the name their results go under.

    python -m polylib.study laptop                      # params.yaml: study laptop, the bundled corpus
    python -m polylib.study laptop --data my/tweets.csv # study laptop-tweets, so that nothing is overwritten
    python -m polylib.study gpu --data owner/name@main  # a hub data set, fetched once to data/raw/
"""
from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from polylib import config
from polylib.config import UserError

CORPUS = "polylib/data/corpus.jsonl"
COMMENT = "What `dvc repro` runs; written by `python -m polylib.study PRESET [--data PATH]`."


def select(preset: str, data: str = CORPUS, root: Path | None = None) -> dict:
    """Write `params.yaml` below `root` (default: working directory) if it changes; return its contents.

    `data`: a .jsonl, .jsonl.gz, .csv or .parquet path, or a hub id `owner/name[@revision]`. UserError for an
    unknown preset, a missing file, or a path that cannot stand in a shell command."""
    base = Path(root or ".").resolve()
    cfg = config.load(preset, root)
    place = _place(data, base)
    study = cfg.preset if place == CORPUS else f"{cfg.preset}-{_slug(Path(place).name.split('.')[0])}"
    chosen = {"study": study, "preset": cfg.preset, "data": place,
              "seeds": list(cfg.seeds), "methods": list(cfg.methods)}
    config.write_yaml(base / "params.yaml", chosen, COMMENT)
    return chosen


def _place(data: str, base: Path) -> str:
    """`data` as a path: relative to the project where it lies inside, absolute elsewhere."""
    path = base / Path(data).expanduser()  # an absolute path stays as it is
    if not path.exists() and _is_hub_id(data):
        path = fetch(data, base / "data" / "raw")
    if not path.is_file():
        raise UserError(f"{data}: no such file; give a .jsonl, .csv or .parquet file or a hub id owner/name")
    path = Path(os.path.normpath(path))
    place = path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
    if not re.fullmatch(r"[\w./+ ,=@-]+", place):  # it becomes part of a command line in dvc.yaml
        raise UserError(f"{place}: rename it; usable are letters, digits, spaces and / . _ - + , = @")
    return place


def _is_hub_id(data: str) -> bool:
    is_file_name = data.endswith((".jsonl", ".gz", ".json", ".csv", ".parquet"))
    return not is_file_name and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", data) is not None


def _slug(text: str) -> str:
    """Letters, digits and underscores only: it names DVC stages and folders."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "data"


def fetch(hub_id: str, folder: Path) -> Path:
    """The training split (or the only split) of a hub data set as <folder>/<name>.jsonl, fetched once."""
    target = folder / f"{_slug(hub_id)}.jsonl"
    if target.exists():
        return target
    import datasets  # heavy, and only this branch needs it
    name, _, revision = hub_id.partition("@")
    try:
        splits = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:  # every way a download can fail gets the same advice; the cause stays chained
        raise UserError(f"{hub_id}: neither a file nor a reachable hub data set ({type(error).__name__}); "
                        "download it yourself and pass the file's path") from error
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    splits["train" if "train" in splits else next(iter(splits))].to_json(partial, force_ascii=False)
    os.replace(partial, target)
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m polylib.study", description=__doc__.splitlines()[0])
    parser.add_argument("preset", help="name of a file in params/, without .yaml")
    parser.add_argument("--data", default=CORPUS, help="path of the rows, or a hub id owner/name[@revision]")
    args = parser.parse_args(argv)
    try:
        chosen = select(args.preset, args.data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"params.yaml: {', '.join(f'{key} {value}' for key, value in chosen.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
