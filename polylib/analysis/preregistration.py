"""What a study set out to test, written down before it ran, and where the results depart from it.

    registered = load(results.paths)               # params/preregistration/<study>.yaml; None: nothing was registered
    deviations(results, registered)                # one row a departure, computed; an empty table = none
    first(results, registered)                     # was the file committed before each run's code?

After Nosek et al. 2018: the point is not to forbid departures but to state them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from polylib.analysis.provenance import environments
from polylib.analysis.results import Results
from polylib.config import Config, UserError, read_yaml
from polylib.run import Paths

# What `effects` and `significance` do; a registration that says otherwise is a deviation by its first row.
TESTS = {
    "difference": "two-way t over runs and posts, Satterthwaite",
    "matched": "two-way t over runs and posts of the distance from SFT's temperature curve",
    "equivalence": "two one-sided t tests, Satterthwaite",
}
MULTIPLICITY = {"primary": "holm", "equivalence": "holm", "rest": "benjamini-hochberg"}
SECTIONS = (
    "model",
    "sampling",
    "data",
    "reward_model",
    "sft",
    "polychromic",
    "grpo",
    "hybrid",
    "dpo",
    "evaluation",
)
KINDS = {
    "difference": {"question", "kind", "method", "metric"},
    "matched": {"question", "kind", "method", "metric", "equal"},
    "equivalence": {"question", "method", "metric", "margin", "because"},
}


@dataclass(frozen=True)
class Question:
    """One registered comparison against `control`: `kind` difference | matched (at equal `equal`) | equivalence."""

    name: str
    question: str
    kind: str
    method: str
    metric: str
    equal: str = ""
    margin: float = math.nan
    because: str = ""


@dataclass(frozen=True)
class Registration:
    path: Path
    study: str
    date: str
    known: str  # what its authors had already seen
    control: str
    alpha: float
    primary: tuple[Question, ...]
    equivalence: tuple[Question, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    prompts: int
    samples: int
    temperature: float
    temperatures: tuple[float, ...]
    tests: dict[str, str]
    multiplicity: dict[str, str]
    max_dropped: float  # share of posts that a comparison may lose because some cell leaves the metric undefined
    exclusions: str
    stopping: str
    settings: dict[str, str]  # section of the preset: `settings_hash`

    @property
    def metrics(self) -> list[str]:
        """Columns that the registered comparisons read."""
        names = [
            name for q in (*self.primary, *self.equivalence) for name in (q.metric, q.equal) if name
        ]
        return list(dict.fromkeys(names))


def load(paths: Paths) -> Registration | None:
    """The study's registration, None where there is no file. UserError names a missing, unknown or impossible entry."""
    file = paths.root / "params" / "preregistration" / f"{paths.study}.yaml"
    if not file.is_file():
        return None
    values = read_yaml(file)
    names = {f.name for f in dataclasses.fields(Registration)} - {"path"}
    for key in sorted(names ^ set(values)):
        raise UserError(f"{file}: {'unknown entry' if key in values else 'missing entry'} {key}")
    made = {
        name: tuple(
            _question(file, name, key, entry) for key, entry in _section(file, values, name).items()
        )
        for name in ("primary", "equivalence")
    }
    lists = {name: tuple(values[name]) for name in ("seeds", "methods", "temperatures")}
    for name in ("tests", "multiplicity", "settings"):
        _section(file, values, name)
    found = Registration(**{**values, **made, **lists, "path": file, "date": str(values["date"])})
    if found.study != paths.study:
        raise UserError(f"{file}: study is {found.study}, the file is named after {paths.study}")
    for q in (*found.primary, *found.equivalence):
        if q.method not in found.methods or q.method == found.control:
            raise UserError(
                f"{file}: {q.name}.method {q.method} is not among methods, or is the control"
            )
    return found


def _section(file: Path, values: dict, name: str) -> dict:
    if not isinstance(values[name], dict):
        raise UserError(f"{file}: {name} must be a section of `key: value`, not {values[name]!r}")
    return values[name]


def _question(file: Path, family: str, name: str, entry: object) -> Question:
    kind = (
        "equivalence"
        if family == "equivalence"
        else entry.get("kind")
        if isinstance(entry, dict)
        else None
    )
    if (
        kind not in KINDS
        or family == "primary"
        and kind == "equivalence"
        or set(entry) != KINDS[kind]
    ):
        wanted = KINDS["equivalence"] if family == "equivalence" else KINDS["matched"]
        raise UserError(
            f"{file}: {family}.{name} needs the entries {', '.join(sorted(wanted))} "
            "(equal only where kind is matched)"
        )
    if kind == "equivalence" and not (isinstance(entry["margin"], float) and entry["margin"] > 0):
        raise UserError(
            f"{file}: {family}.{name}.margin must be a number above 0, found {entry['margin']!r}"
        )
    return Question(name, **{"kind": kind, **entry})


def settings_hash(cfg: Config) -> dict[str, str]:
    """{section: first 12 hex digits of the SHA-256 of its canonical JSON}, for sections that shape results."""
    plain = dataclasses.asdict(cfg)
    used = [name for name in SECTIONS if name != "dpo" or "dpo" in cfg.methods]
    return {
        name: hashlib.sha256(json.dumps(plain[name], sort_keys=True).encode()).hexdigest()[:12]
        for name in used
    }


def deviations(results: Results, registered: Registration | None) -> pd.DataFrame:
    """what, registered, found: one row a departure, all computed from the results, the preset and the code. No row:
    none. Without a registration, one row saying so."""
    rows: list[tuple[str, object, object]] = []
    if registered is None:
        return _frame([("registration", "none", f"study {results.paths.study} was not registered")])
    r, cfg = registered, results.cfg

    def check(what: str, wanted: object, found: object) -> None:
        if wanted != found:
            rows.append((what, wanted, found))

    for what in ("seeds", "methods"):
        check(what, sorted(getattr(r, what)), sorted(getattr(cfg, what)))
    check("posts", r.prompts, len(results.people))
    counts = {
        int(n)
        for (method, _, at), frame in results.frames.items()
        if method in cfg.methods and at == cfg.sampling.temperature
        for n in frame["n_samples"].unique()
    }
    check("replies a post", [r.samples], sorted(counts))
    check("sampling temperature", r.temperature, cfg.sampling.temperature)
    check(
        "temperatures of the control",
        sorted({r.temperature, *r.temperatures}),
        results.temperatures,
    )
    for kind, test in TESTS.items():
        check(f"test: {kind}", r.tests.get(kind, "none"), test)
    for family, rule in MULTIPLICITY.items():
        check(f"multiplicity: {family}", r.multiplicity.get(family, "none"), rule)
    for metric in r.metrics:
        if metric not in results.columns:
            rows.append((f"metric {metric}", "measured", "absent from per_prompt.csv"))
        else:
            for q in (*r.primary, *r.equivalence):
                if metric in (q.metric, q.equal) and q.method in results.methods:
                    share = _dropped(results, metric, (q.method, r.control))
                    if share > r.max_dropped:
                        rows.append(
                            (
                                f"posts dropped: {q.name}, {metric}",
                                f"at most {r.max_dropped:.0%}",
                                f"{share:.0%}",
                            )
                        )
    hashes = settings_hash(cfg)
    for section in sorted({*hashes, *r.settings}):
        check(f"settings: {section}", r.settings.get(section, "none"), hashes.get(section, "none"))
    return _frame(rows)


def _dropped(results: Results, metric: str, methods: tuple[str, ...]) -> float:
    table = pd.DataFrame(
        {cell: values for cell, values in results.cells(metric).items() if cell[0] in methods}
    )
    return float(table.isna().any(axis=1).mean())


def _frame(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"what": what, "registered": _text(wanted), "found": _text(found)}
            for what, wanted, found in rows
        ],
        columns=["what", "registered", "found"],
    )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def first(results: Results, registered: Registration) -> pd.DataFrame:
    """stage, seed, commit, registered: for each run with an env.json, whether the commit it ran from holds this very
    registration: yes | no: another version | no: not there | unknown: commit not in this clone. Read by pygit2."""
    import pygit2

    try:
        repo = pygit2.Repository(str(results.paths.root))
    except pygit2.GitError:
        return pd.DataFrame(columns=["stage", "seed", "commit", "registered"])
    mine = pygit2.hash(registered.path.read_bytes())
    inside = registered.path.relative_to(results.paths.root).as_posix()
    rows = []
    for stage, env in environments(results.paths.results("data").parent).items():
        sha = env["commit"] if isinstance(env.get("commit"), str) else ""
        commit = repo.get(sha) if sha else None
        if commit is None:
            verdict = "unknown: commit not in this clone"
        elif inside not in commit.tree:
            verdict = "no: not there"
        else:
            verdict = "yes" if commit.tree[inside].id == mine else "no: another version"
        rows.append({"stage": stage.as_posix(), "commit": sha[:10], "registered": verdict})
    return pd.DataFrame(rows, columns=["stage", "commit", "registered"])
