"""What a study set out to test, written down before it ran, and where the results depart from it.

    registered = load(results.paths)               # params/preregistration/<study>.yaml; None: nothing was registered
    deviations(results, registered)                # one row a departure, computed; an empty table = none

After Nosek et al. 2018: the point is not to forbid departures but to state them. That the file was committed before the
runs, `git log` shows: every env.json names the commit that its run was made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Annotated, Literal

import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

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
SECTIONS = ("model", "sampling", "data", "reward_model")
SECTIONS += ("sft", "polychromic", "grpo", "hybrid", "dpo", "ppo", "evaluation")
KNOWN = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=KNOWN)
class Question:
    """One registered comparison against SFT: `kind` difference | matched (at equal `equal`) | equivalence (within
    `margin`)."""

    question: str
    method: str
    metric: str
    kind: Literal["difference", "matched", "equivalence"] = "equivalence"
    equal: str = ""
    margin: Annotated[float, Field(gt=0)] = math.nan
    because: str = ""


@dataclass(frozen=True, config=KNOWN)
class Registration:
    """What a study asks, of which runs, by which tests, and when it stops, as its file says it."""

    study: str
    date: str
    known: str  # what its authors had already seen
    control: Literal["sft"]
    alpha: float
    primary: dict[str, Question]
    equivalence: dict[str, Question]
    seeds: list[int]
    methods: list[str]
    prompts: int
    samples: int
    temperature: float
    temperatures: list[float]
    tests: dict[str, str]
    multiplicity: dict[str, str]
    max_dropped: float  # share of posts that a comparison may lose because some cell leaves the metric undefined
    exclusions: str
    stopping: str
    settings: dict[str, str]  # section of the preset: `settings_hash`

    @property
    def questions(self) -> dict[str, Question]:
        """Those of both families by name."""
        return self.primary | self.equivalence


def load(paths: Paths) -> Registration | None:
    """The study's registration, None where there is no file. UserError names a missing, unknown or impossible entry."""
    file = paths.root / "params" / "preregistration" / f"{paths.study}.yaml"
    if not file.is_file():
        return None
    try:
        found = TypeAdapter(Registration).validate_python(read_yaml(file))
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {entry}: {first['msg'].lower()}") from error
    if found.study != paths.study:
        raise UserError(f"{file}: study is {found.study}, the file is named after {paths.study}")
    for name, q in found.questions.items():
        kept, asked = name in found.equivalence, (bool(q.equal), math.isfinite(q.margin))
        if (q.kind == "equivalence") != kept or asked != (q.kind == "matched", kept):
            raise UserError(
                f"{file}: {name} needs `equal` where kind is matched, and a `margin` in equivalence alone"
            )
        if q.method not in found.methods or q.method == "sft":
            raise UserError(
                f"{file}: {name}.method {q.method} is not among methods, or is the control"
            )
    return found


def settings_hash(cfg: Config) -> dict[str, str]:
    """{section: first 12 hex digits of the SHA-256 of its canonical JSON}, for sections that shape results."""
    plain = dataclasses.asdict(cfg)
    used = [name for name in SECTIONS if name not in ("dpo", "ppo") or name in cfg.methods]
    return {
        name: hashlib.sha256(json.dumps(plain[name], sort_keys=True).encode()).hexdigest()[:12]
        for name in used
    }


def deviations(results: Results, registered: Registration | None) -> pd.DataFrame:
    """what, registered, found: one row a departure, all computed from the results, the preset and the code. No row:
    none. Without a registration, one row saying so."""
    if registered is None:
        missing = ("registration", "none", f"study {results.paths.study} was not registered")
        return pd.DataFrame([missing], columns=["what", "registered", "found"])
    r, cfg = registered, results.cfg
    counts = {
        int(n)
        for (method, _, at), frame in results.frames.items()
        if method in cfg.methods and at == cfg.sampling.temperature
        for n in frame["n_samples"].unique()
    }
    heat = sorted({r.temperature, *r.temperatures})
    pairs = [
        ("seeds", sorted(r.seeds), sorted(cfg.seeds)),
        ("methods", sorted(r.methods), sorted(cfg.methods)),
        ("posts", r.prompts, len(results.people)),
        ("replies a post", [r.samples], sorted(counts)),
        ("sampling temperature", r.temperature, cfg.sampling.temperature),
        ("temperatures of the control", heat, results.temperatures),
    ]
    pairs += [(f"test: {kind}", r.tests.get(kind), test) for kind, test in TESTS.items()]
    pairs += [
        (f"multiplicity: {family}", r.multiplicity.get(family), rule)
        for family, rule in MULTIPLICITY.items()
    ]
    for name, q in r.questions.items():
        for metric in filter(None, (q.metric, q.equal)):
            if metric not in results.columns:
                pairs.append((f"metric {metric}", "measured", "absent from per_prompt.csv"))
            elif (
                q.method in results.methods
                and (share := _dropped(results, metric, q.method)) > r.max_dropped
            ):
                what = f"posts dropped: {name}, {metric}"
                pairs.append((what, f"at most {r.max_dropped:.0%}", f"{share:.0%}"))
    hashes = settings_hash(cfg)
    pairs += [
        (f"settings: {section}", r.settings.get(section), hashes.get(section))
        for section in sorted({*hashes, *r.settings})
    ]
    rows = [(what, _text(a), _text(b)) for what, a, b in pairs if a != b]
    found = pd.DataFrame(rows, columns=["what", "registered", "found"])
    return found.drop_duplicates(ignore_index=True)


def _dropped(results: Results, metric: str, method: str) -> float:
    cells = results.cells(metric).items()
    table = pd.DataFrame({cell: values for cell, values in cells if cell[0] in (method, "sft")})
    return float(table.isna().any(axis=1).mean())


def _text(value: object) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else str("none" if value is None else value)
    )
