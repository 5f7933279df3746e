"""Choose the study that `dvc repro` runs next: a preset, a data file, and the name their results go under.

python -m polylib.study laptop                      # params.yaml: study laptop, the bundled corpus
python -m polylib.study laptop --data my/tweets.csv # study laptop-tweets, so that nothing is overwritten
python -m polylib.study gpu --data hub:owner/name@main # a hub data set, fetched once to data/raw/
python -m polylib.study laptop --data my/tweets.csv --name second # another name for the results
python -m polylib.study                             # the study in params.yaml, looked at again

A study is the preset and the data that it was first chosen with: results/<study>/study.yaml remembers both, the data by
its sha256, and nothing else can run under that name. scratch/<study>/params.yaml holds what params.yaml held: a run of
tools/reproduce.sh reads it to its end, whatever study is chosen meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from polylib import config, run
from polylib.config import UserError
from polylib.data import files, prepare, read

CORPUS = "polylib/data/corpus.jsonl"
SUFFIX = re.compile(r"(\.(csv|tsv|jsonl|ndjson|json|parquet|pq))?(\.gz)?$", re.IGNORECASE)
COMMENT = "What `dvc repro` runs; written by `python -m polylib.study PRESET [--data PATH]`."


def select(preset: str, data: str = CORPUS, root: Path | None = None, name: str = "") -> dict:
    """Write `params.yaml` below `root` (default: working directory) if it changes; return its contents.

    `trained` holds the seeds of each method, none where the preset's `methods` does not list it: DVC defines no stage
    for an empty list, so a study trains what it lists and nothing else. `ablation`: the
    seeds where the preset has a grid and trains the hybrid, whose weights it varies.

    `data`: the path of a file (`files.FORMATS`), or `hub:owner/name@revision`. `name`: of the study, in place of the
    preset's, followed by the file's where the data are not the bundled corpus. UserError, and nothing written, for an
    unknown preset or one outside params/, a missing file, a path that cannot stand in a shell command, or a name whose
    results are of other data or another preset."""
    base = Path(root or ".").resolve()
    cfg = config.load(preset, root)
    here = base / "params" / f"{cfg.preset}.yaml"
    if preset.endswith(".yaml") and not (here.is_file() and here.samefile(preset)):
        raise UserError(
            f"{preset}: a study reads its preset from params/; copy the file there, under a name that is still free, "
            "and give that name"
        )
    place = _place(data, base)
    file = _slug(SUFFIX.sub("", Path(place).name))
    study = name or (cfg.preset if place == CORPUS else f"{cfg.preset}-{file}")
    config.check_name(study, "study")
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
    _claim(base / "results" / study, cfg.preset, base / place)
    config.write_yaml(base / "scratch" / study / "params.yaml", chosen, COMMENT)
    config.write_yaml(base / "params.yaml", chosen, COMMENT)
    return chosen


def _claim(folder: Path, preset: str, data: Path) -> None:
    """Write down whose results a folder holds; UserError where it holds those of another preset or other data."""
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    mine = {"study": folder.name, "preset": preset, "data": data.name, "sha256": digest}
    first, manifest = mine, folder / "data" / "manifest.json"
    if (folder / "study.yaml").exists():
        first = config.read_yaml(folder / "study.yaml")
    elif manifest.exists():  # of a study that is older than study.yaml
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        first = mine | {"sha256": stored["sha256"]["source"] or mine["sha256"]}
    for key in [key for key in ("study", "preset", "sha256") if first.get(key) != mine[key]]:
        raise UserError(
            f"{data.name}: results/{folder.name} is of other {'data' if key == 'sha256' else 'settings'} "
            f"({key} {first.get(key)}, now {mine[key]}); give this one a name of its own (--name NAME, "
            f"make reproduce NAME=...), or delete results/{folder.name} to start it anew"
        )
    config.write_yaml(
        folder / "study.yaml", mine, "What these results are of; written by polylib.study."
    )


def _place(data: str, base: Path) -> str:
    """`data` as a path: relative to the project where it lies inside, absolute elsewhere."""
    path = base / Path(data).expanduser()  # an absolute path stays as it is
    if data.startswith("hub:"):
        path = fetch(data, base / "data" / "raw")
    if not path.is_file():
        raise UserError(f"{data}: no such file; give {files.FORMATS}, or hub:owner/name@revision")
    path = Path(os.path.normpath(path))
    place = path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
    if not re.fullmatch(r"[\w./+ ,=@-]+", place):  # it becomes part of a command line in dvc.yaml
        raise UserError(
            f"{place}: rename it; usable are letters, digits, spaces and / . _ - + , = @"
        )
    return place


def _slug(text: str) -> str:
    """Letters of any script, digits and underscores only: it names DVC stages and folders."""
    return re.sub(r"[\W_]+", "_", text).strip("_")[:60] or "data"


def fetch(source: str, folder: Path) -> Path:
    """A hub data set (`hub:owner/name@revision[:split]`) as <folder>/<name>.jsonl, fetched once. DVC watches
    that file; columns stay as they came. UserError if the hub or the data set cannot be reached."""
    key = hashlib.sha256(source.encode()).hexdigest()[:8]  # owner/a_b and owner_a/b are two
    target = folder / f"{_slug(source)}_{key}.jsonl"
    if not target.exists():
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in read.hub_rows(source))
        run.atomic_write(target, "".join(f"{line}\n" for line in lines))
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylib.study", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "preset",
        nargs="?",
        help="name of a file in params/, without .yaml; left out: the study in params.yaml again",
    )
    parser.add_argument(
        "--data", default=CORPUS, help="path of the rows, or hub:owner/name@revision"
    )
    parser.add_argument("--name", default="", help="of the study; default: preset, and data file")
    args = parser.parse_args(argv)
    try:
        if args.preset is None:
            now = config.read_yaml(Path("params.yaml"))
            args.preset, args.data, args.name = (
                str(now.get(key)) for key in ("preset", "data", "study")
            )
        else:
            print(prepare.look(config.load(args.preset), _place(args.data, Path.cwd())))
        chosen = select(args.preset, args.data, name=args.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"params.yaml: {', '.join(f'{key} {value}' for key, value in chosen.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
