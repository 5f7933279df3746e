"""Which code, weights and machines a study's numbers come from: read from env.json and the preset, never guessed.

    provenance.commit_note(envs, cells=16)      # "commit 93f04b9", or what is missing or mixed
    provenance.facts(results)                   # what, value: the reproducibility table

env.json is written by every stage beside its results. It holds timings, so no stage depends on it, and it may be
absent (a copied folder): then that is what is said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pandas as pd

SHORT = 7  # characters of a commit that are shown
NO_ENV = "commit unknown (no env.json)"
UNKNOWN = "not recorded"


def commit_note(envs: list[dict], cells: int) -> str:
    """One phrase for the note of a figure. envs: contents of the env.json found beside `cells` evaluated cells.

    "commit 93f04b9"; "several commits (0aa1bb2, 93f04b9)"; with a remark where files were changed, where no commit was
    recorded, or where env.json is missing."""
    if not envs:
        return NO_ENV
    found = sorted({env["commit"][:SHORT] for env in envs if isinstance(env.get("commit"), str)})
    shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    text = (
        f"several commits ({shown})"
        if len(found) > 1
        else f"commit {shown}"
        if found
        else "commit not recorded"
    )
    remarks = ["uncommitted changes"] if any(env.get("dirty") is True for env in envs) else []
    bare = sum(not isinstance(env.get("commit"), str) for env in envs)
    remarks += [f"{bare} of {cells} cells without one"] if bare and found else []
    remarks += [f"no env.json in {cells - len(envs)} of {cells} cells"] if len(envs) < cells else []
    return f"{text} with {', '.join(remarks)}" if remarks else text


def facts(results) -> pd.DataFrame:
    """what, value: everything needed to run the study again and to see whether it came out the same. `results`: a
    study as `results.load` returns it. A value that nothing recorded is said to be so."""
    cfg, paths = results.cfg, results.paths
    envs = list(environments(paths.results("data").parent).values())
    settings = paths.results("settings.yaml")
    manifest = json.loads((paths.results("data") / "manifest.json").read_text(encoding="utf-8"))
    rows = [
        ("study", paths.study),
        ("preset", cfg.preset),
        ("code", results.commit),
        ("settings", f"results/{paths.study}/settings.yaml, sha256 {_sha(settings)}"),
        ("settings as read", f"sha256 {settings_hash(cfg)}"),
        ("engagement", results.engagement),
        ("data", _data(manifest)),
        ("model", cfg.model.source),
        ("sentence encoder", cfg.model.encoder),
        ("adapters", f"LoRA, rank {cfg.model.lora_rank}, alpha {cfg.model.lora_alpha}"),
        ("number format", _all(envs, "dtype")),
        ("device", _all(envs, "device")),
        ("threads a run", _all(envs, "threads")),
        ("platform", _all(envs, "platform")),
        ("training seeds", ", ".join(map(str, cfg.seeds))),
        ("sampling seed", str(cfg.evaluation.seed)),
        ("split seed", str(cfg.data.split_seed)),
        ("simulator seed", str(cfg.data.simulator_seed)),
        ("Python", _all(envs, "python")),
    ]
    versions: dict[str, set] = {}
    for env in envs:
        for name, version in env.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    rows += [(name, ", ".join(sorted(found))) for name, found in sorted(versions.items())]
    return pd.DataFrame(rows, columns=["what", "value"])


def environments(folder: Path) -> dict[Path, dict]:
    """{folder of the stage, relative to `folder`: its env.json}, in order of the path."""
    return {
        file.parent.relative_to(folder): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("**/env.json"))
    }


def settings_hash(cfg) -> str:
    """12 hex digits of a preset as it was read: comments and the order of keys in the file do not count."""
    text = json.dumps(dataclasses.asdict(cfg), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _sha(path: Path) -> str:
    return (
        hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        if path.is_file()
        else f"unknown, {path.name} is missing"
    )


def _all(envs: list[dict], key: str) -> str:
    return ", ".join(sorted({str(env[key]) for env in envs if key in env})) or UNKNOWN


def _data(manifest: dict) -> str:
    source, hashes = manifest.get("source"), manifest.get("sha256", {})
    if not source:
        return UNKNOWN
    parts = ", ".join(f"{name} {hashes[name][:12]}" for name in sorted(hashes))
    return f"{Path(source).name}; sha256: {parts or UNKNOWN}"
