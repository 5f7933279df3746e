"""What every stage needs around its own work: paths, seeds, files of record, progress, provenance.

Only this room writes files of record, and every write is atomic: a killed stage leaves old or new.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
from tqdm import auto, std

from polylib.config import Config, ModelConfig, UserError, plain

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

STARTED = time.monotonic()  # first import = start of the stage's process
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "sentence-transformers",
    "numpy",
    "pandas",
    "scikit-learn",
)
SUMS = "sha256.json"  # a folder's checksums


# ---- where things are --------------------------------------------------------------------------------------


def root(start: Path | None = None) -> Path:
    """The project folder: the nearest at or above `start` (default: working directory) that holds dvc.yaml.
    Neither $DVC_ROOT nor __file__ is used: in a temporary DVC experiment both name the parent checkout."""
    here = Path(start or Path.cwd()).resolve()
    found = [folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()]
    if not found:
        raise UserError(f"{here}: no dvc.yaml here or above; run this inside the project folder")
    return found[0]


def at_root() -> Path:
    """First line of a notebook: the project folder becomes the working directory, wherever Jupyter was started.
    UserError if polylib was imported from another checkout than the notebook's."""
    folder, code = root(), Path(__file__).resolve().parents[1]
    if folder != code:
        raise UserError(
            f"{folder}: polylib comes from {code}; run `make setup` here, or set PYTHONPATH={folder}"
        )
    os.chdir(folder)
    return folder


_root = root  # Paths takes a parameter of the same name


class Paths:
    """Names of everything a study owns. Arithmetic only: nothing is created or checked."""

    def __init__(self, study: str, root: Path | None = None):
        self.study = study
        self.root = Path(root) if root else _root()
        self.data = self.root / "data" / study
        self.reward_model = self.root / "models" / study / "reward_model"
        self.figures = self.root / "results" / study / "paper_figures"
        self.summary = self.root / "results" / study / "summary.json"

    def models(self, method: str, seed: int) -> Path:
        return self.root / "models" / self.study / method / f"s{seed}"

    def results(self, stage: str, seed: int | None = None) -> Path:
        folder = self.root / "results" / self.study / stage
        return folder if seed is None else folder / f"s{seed}"

    def evaluation(self, method: str, seed: int | None = None) -> Path:
        """`human` has no seed: people's replies are one sample."""
        return self.results(f"evaluation/{method}", seed)

    def scratch(self, stage: str, seed: int | None = None) -> Path:
        """Resumable state; never an output of a stage, removed when the stage succeeds."""
        folder = self.root / "scratch" / self.study / stage
        return folder if seed is None else folder / f"s{seed}"


# ---- files of record ---------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path):
    """Around what writes `path`: a full disk, a read-only folder and the like end as one line, a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or allow writing there and run "
            "again, what was written before is kept"
        ) from error


@contextmanager
def enough_memory(what: str, remedy: str):
    """Around a computation: memory of the processor or of the graphics card that is spent ends as a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, and subclasses of it
        known = ("allocate memory", "out of memory", "bad_alloc")
        if isinstance(error, MemoryError) or any(part in str(error) for part in known):
            raise UserError(f"{what}: out of memory; {remedy} and run again") from error
        raise


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write next to the target, then rename over it. Parents are created. UserError, and nothing of the new content
    left behind, where that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):  # the first failure is the one to be told
                partial.unlink(missing_ok=True)
            raise


def set_aside(path: Path, what: str) -> Path:
    """Rename a damaged file to <name>.damaged, say so in one line and return the new name."""
    aside = Path(path).with_name(f"{Path(path).name}.damaged")
    with writing(aside), suppress(FileNotFoundError):  # another process was first
        os.replace(path, aside)
    say(f"{path}: damaged, set aside as {aside.name}; {what}")
    return aside


def write_csv(path: Path, frame) -> None:
    """A DataFrame as all tables of record are kept: six significant digits, no index."""
    atomic_write(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files beside them, for `check`."""
    files = [file for file in Path(folder).iterdir() if file.is_file() and file.name != SUMS]
    write_json(
        Path(folder) / SUMS, {file.name: sha256(file.read_bytes()).hexdigest() for file in files}
    )


def check(folder: Path, remedy: str) -> None:
    """UserError if a file is missing or, set aside then, is not what it was at `seal`. Without checksums (an older
    version's folder) nothing can be said."""
    file = sums = Path(folder) / SUMS
    if not sums.is_file():
        return
    try:
        known = json.loads(sums.read_text(encoding="utf-8"))
        for name, digest in known.items():
            file = sums.with_name(name)
            if sha256(file.read_bytes()).hexdigest() != digest:
                raise ValueError("another checksum")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; {remedy}") from None
    except (ValueError, AttributeError) as error:
        set_aside(file, remedy)
        raise UserError(f"{file} was damaged and is set aside; {remedy}") from error


def append_line(path: Path, line: str) -> None:
    """Add one line to a log, in one write: processes that share the file cannot mix their lines. It begins a new line
    even behind one that a killed process left without its end."""
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        stream = Path(path).open("a+b", buffering=0)
    with writing(path), stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        stream.write(
            (b"\n" if stream.read(1) not in (b"", b"\n") else b"") + line.encode("utf-8") + b"\n"
        )


def write_json(path: Path, obj: object) -> None:
    """Sorted keys, two spaces, newline at the end. A number that could not be computed is written as
    {"value": null, "reason": "..."}; a bare NaN or infinity, or null without reason, is a ValueError."""
    plain = _plain(obj, Path(path).name)
    atomic_write(path, json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _plain(obj: object, where: str) -> object:
    """Python's own types; ValueError naming the key for a number that JSON or an honest reader refuses."""
    if isinstance(obj, dict):
        if "value" in obj and obj["value"] is None and not obj.get("reason"):
            raise ValueError(f"{where}: a null value needs its reason")
        return {str(key): _plain(value, f"{where}.{key}") for key, value in obj.items()}
    if isinstance(obj, (list, tuple, np.ndarray)):
        return [_plain(value, f"{where}[{i}]") for i, value in enumerate(obj)]
    obj = obj.item() if isinstance(obj, np.generic) else obj
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ValueError(f"{where} is {obj}: write {{'value': None, 'reason': why}} instead")
    return str(obj) if isinstance(obj, Path) else obj


class History:
    """A CSV of one row a step, complete on disk after every append; whoever continues a run sets `rows`.

    An existing file is never read: a checkpoint holds the rows before it. A value not given stays empty; a NaN is
    written as empty too, since a curve has no place for a reason."""

    def __init__(self, path: Path, columns: Iterable[str]):
        self.path, self.columns = Path(path), list(columns)
        self.rows: list[dict[str, str]] = []

    def append(self, row: dict[str, object]) -> None:
        unknown = sorted(set(row) - set(self.columns))
        if unknown:
            raise ValueError(f"{self.path.name}: unknown columns {unknown}")
        self.rows.append({key: _cell(row.get(key)) for key in self.columns})
        lines = [self.columns, *([row.get(key, "") for key in self.columns] for row in self.rows)]
        atomic_write(self.path, "".join(",".join(line) + "\n" for line in lines))


def _cell(value: object) -> str:
    """Numbers only: six significant digits are below run-to-run noise and keep diffs short."""
    if value is None or math.isnan(value):
        return ""
    return str(int(value)) if isinstance(value, (int, np.integer)) else f"{float(value):.6g}"


# ---- what ran, where, at what cost -------------------------------------------------------------------------


def commit(folder: Path) -> tuple[str | None, bool | None, str]:
    """(commit hash, dirty, reason). Dirty = a tracked file differs from that commit, other than what a run
    rewrites (results/, params.yaml, dvc.lock). Read by pygit2, which DVC brings: no process is started."""
    import pygit2

    try:
        repo = pygit2.Repository(str(folder))
        changed = [
            name
            for name in repo.status(untracked_files="no")
            if not name.startswith("results/") and name not in ("params.yaml", "dvc.lock")
        ]
        return str(repo.head.target), bool(changed), ""
    except pygit2.GitError as error:
        return None, None, f"no git history to read: {error}"


def write_env(path: Path, cfg: Config, **extra: object) -> None:
    """env.json: commit, versions, device and dtype with the reason, wall seconds, peak memory, cost.
    It holds timings, so no stage may depend on it. `extra` is added, and replaces a key of the same name.
    Cost in US dollars needs the machine's hourly price in POLYLIB_USD_PER_HOUR; without it, it is null."""
    import torch

    sha, dirty, why = commit(root())
    device, dtype, reason = device_dtype(cfg.model)
    seconds = float(extra.pop("wall_seconds", time.monotonic() - STARTED))
    price = os.environ.get("POLYLIB_USD_PER_HOUR")
    gpu = device.type == "cuda"
    peak = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_json(
        path,
        {
            "commit": sha or {"value": None, "reason": why},
            "dirty": dirty if sha else {"value": None, "reason": why},
            "preset": cfg.preset,
            "platform": platform.platform(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name(device)
            if gpu
            else f"{device.type}, {os.cpu_count()} cores",
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
            "dtype_reason": reason,
            "wall_seconds": round(seconds, 1),
            "peak_memory_mb": {"value": None, "reason": "this system does not tell"}
            if peak is None
            else round(peak / (2**20 if sys.platform == "darwin" else 2**10)),  # bytes, KiB
            "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20)
            if gpu
            else 0,
            "cost_usd": round(float(price) * seconds / 3600, 4)
            if price
            else {"value": None, "reason": "POLYLIB_USD_PER_HOUR is not set"},
            **extra,
        },
    )


def device_dtype(model: ModelConfig):
    """(torch.device, torch.dtype, reason) for this machine; print the reason where a model is loaded. Of several
    processes of one training (torchrun sets LOCAL_RANK) each has a GPU of its own."""
    import torch

    mps = "mps" if torch.backends.mps.is_available() else "cpu"
    auto = "cuda" if torch.cuda.is_available() else mps
    device = torch.device(auto if model.device == "auto" else model.device)
    if device.type == "cuda" and auto != "cuda":
        raise UserError(f"model.device {model.device}: no CUDA device here; use device: auto")
    if device == torch.device("cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if model.dtype != "auto":
        return device, getattr(torch, model.dtype), f"{model.dtype}: set by model.dtype"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        why = "the GPU has it natively" if native else "the GPU has no native bfloat16"
    else:
        native = cpu_flags() & {"amx_bf16", "avx512_bf16"} if device.type == "cpu" else set()
        has = f"the CPU has {' and '.join(sorted(native))}"
        why = has if native else f"no native bfloat16 on this {device.type}"
    dtype = "bfloat16" if native else "float32"
    return device, getattr(torch, dtype), f"{dtype}: {why}"


def cpu_flags() -> set[str]:
    """What Linux says of the CPU; elsewhere no CPU we know of has native bfloat16 that torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return set(next(flags, []))


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global generators. What draws should still take its own generator."""
    from transformers import set_seed

    set_seed(seed)


def progress(iterable: Iterable, total: int, label: str, every: float = 10.0) -> Iterable:
    """Yield the items behind a bar of tqdm's: on a terminal, and as a widget in a notebook that somebody looks at.
    Elsewhere (a log; papermill, which would keep the widget's state) a plain line every `every` seconds, at most."""
    if _watched():
        return auto.tqdm(iterable, label, total, file=sys.stdout)
    return std.tqdm(
        iterable,
        label,
        total,
        file=_Lines(),
        mininterval=every,
        miniters=1,
        bar_format="{desc} {n_fmt}/{total_fmt}, {rate_inv_fmt}, {elapsed} gone, {remaining} left",
    )


def say(line: str) -> None:
    """Print a line; a bar that stands on the terminal makes room for it. What a terminal would obey is spelled out."""
    auto.tqdm.write(plain(line), file=sys.stdout)
    sys.stdout.flush()


class _Lines:
    """The file that a bar writes to where it cannot rewrite its line: each state becomes a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), flush=True)

    def flush(self) -> None:
        pass


def _watched() -> bool:
    """Is there a terminal, or a notebook whose front end could ask its reader something? Papermill, nbconvert and nbval
    tell the kernel with every cell that nobody is there."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython() if ipython else None, "kernel", None)
    return (
        kernel.get_parent().get("content", {}).get("allow_stdin", False)
        if kernel
        else sys.stdout.isatty()
    )
