"""One preset file into typed, checked settings. Nothing else in the project reads or writes YAML.

    cfg = config.load("laptop")                          # params/laptop.yaml
    cfg = dataclasses.replace(cfg, grpo=dataclasses.replace(cfg.grpo, steps=5))
    python -m polylib.config quick results/quick/settings.yaml   # every setting of a preset, spelled out

params/laptop.yaml holds every value and explains it; another preset is `extends: laptop` and its departures. Left
out on purpose: environment overrides, command-line flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import itertools
import math
import os
import re
import reprlib
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from polylib.settings import (
    METHODS,
    AblationConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LLMJudgeConfig,
    ModelConfig,
    PaperFiguresConfig,
    RewardModelConfig,
    RivalConfig,
    SamplingConfig,
    TrainConfig,
)

__all__ = [
    "METHODS",
    "AblationConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LLMJudgeConfig",
    "ModelConfig",
    "PaperFiguresConfig",
    "RewardModelConfig",
    "RivalConfig",
    "SamplingConfig",
    "TrainConfig",
    "UserError",
    "load",
    "read_yaml",
    "resolved",
    "training",
    "write_yaml",
]


TRAINED = ("sft", "polychromic", "grpo", "hybrid")  # sections that depart from `training`
_hints = functools.cache(typing.get_type_hints)
WEIGHTS = ("alpha", "beta", "lam", "kappa")  # of the loss: what an ablation may vary


# Control characters and marks that turn the direction of writing; line ends and tabs are harmless.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text as it may reach a terminal: what a terminal would obey is spelled out, ESC as \\x1b."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class UserError(Exception):
    """A mistake the user can repair. The message is one line: what is wrong, where, and what to do. Line ends and
    control characters that a name or value brings along are shown, not sent to the terminal."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))

    def _render_traceback_(self) -> list[str]:
        """What IPython, JupyterLab and papermill show instead of a traceback: the one line."""
        return [f"UserError: {self}"]


def check_name(text: str, what: str) -> str:
    """`text` if it can name a preset or a study, which folders, stages and command lines are named after: a letter,
    then letters, digits, _ and -, and nothing that a reader of parameters takes for a number or a constant."""
    usable = re.fullmatch(r"[^\W\d_][\w-]{0,99}", text)
    if not usable or text.lower() in ("true", "false", "none", "null", "nan", "inf", "infinity"):
        raise UserError(
            f"{what} {text!r}: rename it; a name is a letter and then letters, digits, _ or -, at most 100"
        )
    return text


def load(preset: str, root: Path | None = None) -> Config:
    """Read `params/<preset>.yaml` below `root` (default: working directory), or file `preset` if it
    ends in .yaml, with what it extends. UserError names file and key: missing file, unknown or missing key, value
    out of place."""
    path = _file(preset, Path(root or ".") / "params")
    values, _ = _resolve(path, Path(root or ".") / "params")
    cfg = _build({"preset": path.stem, **values}, path)
    _check(cfg, path)
    return cfg


def resolved(preset: str, root: Path | None = None) -> dict:
    """Every setting of a preset as a plain mapping, sections complete and in the order of `Config`. Written to a file
    it loads as an equal preset of that file's name, so two studies differ by the diff of two such files."""
    plain = dataclasses.asdict(load(preset, root))
    del plain["preset"]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def training(preset: str, root: Path | None = None) -> dict:
    """The values under `training` that all methods of a preset share, with those of what it extends."""
    return _resolve(_file(preset, Path(root or ".") / "params"), Path(root or ".") / "params")[1]


def _file(preset: str, folder: Path) -> Path:
    path = Path(preset) if str(preset).endswith(".yaml") else folder / f"{preset}.yaml"
    check_name(path.name.removesuffix(".yaml"), f"preset {path}: name")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: no such preset; presets there: {known}")
    return path


def _resolve(path: Path, folder: Path, below: tuple[Path, ...] = ()) -> tuple[dict, dict]:
    """The settings of a file with what it extends, and the common training values among them.

    Within a file a method's section departs from `training`; a file as a whole comes after the one it extends, so
    `training` of a preset goes to all four methods, over their sections in laptop.yaml. Sections are merged key by
    key; lists and mappings that are values (data.columns, data.adapter, reward_model.heuristic, ablation.grid) are
    replaced.
    """
    if path in below:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(p.name for p in below)}")
    own = read_yaml(path)
    _known(own, path)
    values, common = {}, {}
    if "extends" in own:
        parent = str(own.pop("extends"))
        near = path.parent / f"{parent}.yaml"
        values, common = _resolve(
            near if near.is_file() else _file(parent, folder), folder, (*below, path)
        )
    shared = own.pop("training", {})
    for name in TRAINED if shared else ():
        own[name] = {**shared, **own.get(name, {})}
    for key, value in own.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values, {**common, **shared}


def _known(own: dict, path: Path) -> None:
    """Every key of one file as it is written there: a section or setting that exists, a section a mapping."""
    hints = _hints(Config)
    hints = {key: hint for key, hint in hints.items() if key != "preset"} | {
        "extends": str,
        "training": TrainConfig,
    }
    _spelled(own, hints, path, "")
    for name, values in own.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(values, dict):
                raise UserError(f"{path}: {name} must be a section of `key: value`, not {values!r}")
            _spelled(values, _hints(hints[name]), path, f"{name}.")


def _spelled(values: dict, hints: dict, path: Path, prefix: str) -> None:
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)[0]
            raise UserError(f"{path}: unknown setting {prefix}{key}; did you mean {prefix}{near}?")


def _build(values: dict, path: Path) -> Config:
    """Typed settings from a mapping of known keys; UserError for the first missing, mistyped or out of range."""
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from error


CHOICE = re.compile("'([^']*)'")  # in pydantic's list of what was expected
RANGES = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
SHOWN = reprlib.Repr()  # a value may be a page, or an alias of aliases
SHOWN.maxstring = 80


def _fields(hint: object) -> list[FieldInfo]:
    """What pydantic's `Field` says about a value, and about the items and keys inside it."""
    own = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, FieldInfo)]
    return own + [found for part in typing.get_args(hint) for found in _fields(part)]


def _explain(error: dict) -> str:
    """One line for one finding of pydantic: key, range or type, and the value."""
    section, *rest = error["loc"]
    field = Config.__pydantic_fields__[section]
    if rest and dataclasses.is_dataclass(field.annotation):
        field = field.annotation.__pydantic_fields__[rest[0]]
        key = f"{section}.{rest[0]}" + "".join(
            f"[{i}]" if isinstance(i, int) else f".{i}" for i in rest[1:] if i != "[key]"
        )
    else:
        key = str(section) + "".join(f"[{i}]" for i in rest)
    if error["type"] == "missing":
        return f"setting {key} is missing; `extends: laptop` gives it, and params/laptop.yaml explains it"
    kind, context = error["type"], error.get("ctx", {})
    said = [field, *_fields(field.annotation)]
    meant = next((one.description for one in said if one.description), "")
    found = f"found {SHOWN.repr(error['input'])}"
    if kind == "too_short":
        return f"{key} must hold at least {context['min_length']} value, {found}"
    if kind == "string_pattern_mismatch":
        return f"{key} must be {meant}, {found}"
    if set(context) & set(RANGES):  # both ends of the range, where the field itself has them
        ends = [
            (name, getattr(m, name))
            for one in said
            for m in one.metadata
            for name in RANGES
            if hasattr(m, name)
        ]
        words = " and ".join(
            f"{RANGES[name]} {end if isinstance(end, int) else f'{end:g}'}"
            if (name, end) != ("ge", 0)
            else "0 or more"
            for name, end in ends
        )
        return f"{key} must be {words}{meant and f' ({meant})'}, {found}"
    if kind == "literal_error":
        return f"{key} must be {' | '.join(CHOICE.findall(context['expected']))}, {found}"
    want = {"finite": "float", "dict": "mapping", "dataclass": "section of `key: value`"}
    return f"{key} must be {want.get(kind.split('_')[0], kind.split('_')[0])}, {found}"


def _check(cfg: Config, path: Path) -> None:
    """The rules that tie several settings together; each would otherwise surface hours into a run."""

    def require(ok: bool, message: str) -> None:
        if not ok:
            raise UserError(f"{path}: {message}")

    e, parts = cfg.evaluation, (cfg.data.train, cfg.data.validation, cfg.data.test, cfg.data.judge)
    require(
        math.isclose(sum(parts), 1.0, abs_tol=1e-9),
        f"data.train + validation + test + judge must sum to 1, found {sum(parts):.4g}",
    )
    d, r = cfg.data, cfg.reward_model
    require(
        d.min_chars <= d.max_chars,
        f"data.min_chars {d.min_chars} exceeds max_chars {d.max_chars}: every reply would be rejected",
    )
    require(
        len(set(d.columns.values())) == len(d.columns),
        f"data.columns gives one field two columns: {d.columns}",
    )
    require(
        d.pairs_per_post >= 1 or "dpo" not in cfg.methods,
        "data.pairs_per_post must be at least 1 where methods list dpo: it trains on these pairs",
    )
    require(
        any((r.learned_weight, r.heuristic_weight, r.coherence_weight)),
        "reward_model.learned_weight, heuristic_weight and coherence_weight are all 0",
    )
    require(any(r.heuristic.values()), "reward_model.heuristic must hold a weight above 0")
    for key, values in (
        ("seeds", cfg.seeds),
        ("evaluation.ks", e.ks),
        ("evaluation.temperatures", e.temperatures),
        ("evaluation.judge_quantiles", e.judge_quantiles),
    ):
        require(
            len(set(values)) == len(values),
            f"{key} must be a list without repeats, found {list(values)}",
        )
    require(
        cfg.sampling.temperature not in e.temperatures,
        f"evaluation.temperatures hold sampling.temperature {cfg.sampling.temperature:g}: every method is sampled "
        "there anyway; name others",
    )
    require(
        len(set(cfg.methods)) == len(cfg.methods) and set(cfg.methods) <= set(METHODS),
        f"methods must be names out of {', '.join(METHODS)}, each once; found {list(cfg.methods)}",
    )
    require("sft" in cfg.methods, "methods must hold sft: every other method starts from its model")
    for name in ("sft", "polychromic"):
        init, below = vars(cfg)[name].init, ("base", "sft")[: 1 + (name != "sft")]
        require(
            init in below,
            f"{name}.init must be {' or '.join(below)}: it cannot start from its own result, found {init!r}",
        )
    for name in cfg.methods:
        init = vars(cfg)["polychromic" if name == "lambda0" else name].init
        require(
            init in ("base", *cfg.methods),
            f"{name}.init is {init}, which methods does not list: {list(cfg.methods)}",
        )
    require(
        set(cfg.swept) <= set(cfg.methods) and ("sft" in cfg.swept or "sft" not in cfg.methods),
        f"swept must be names out of methods, sft among them: it is the control; found {list(cfg.swept)}",
    )
    require(max(e.ks) <= e.samples, f"evaluation.ks {e.ks} exceed samples {e.samples}")
    require(
        e.sweep_samples <= e.samples,
        f"evaluation.sweep_samples {e.sweep_samples} is not 2 to samples",
    )
    require(
        e.likelihood_samples <= e.samples,
        f"evaluation.likelihood_samples {e.likelihood_samples} exceeds samples",
    )
    shown = cfg.grpo.eval_prompts if "grpo" in cfg.methods else 0
    firsts = (  # the first of those posts; 0 = all of a split, whose size is known when the data are
        (f"evaluation.likelihood_prompts {e.likelihood_prompts}", "evaluation.prompts", e.prompts),
        (f"llm_judge.compare_posts {cfg.llm_judge.compare_posts}", "evaluation.prompts", e.prompts),
        (f"reward_model.preflight_posts {r.preflight_posts}", "grpo.eval_prompts", shown),
    )
    for part, name, whole in firsts:
        require(
            not whole or int(part.split()[1]) <= whole,
            f"{part} exceeds {name} {whole}, the posts it is taken from",
        )
    for name in TRAINED:
        _check_training(name, vars(cfg)[name], cfg.sampling.max_new_tokens, require)
    require(
        cfg.grpo.reward == cfg.hybrid.reward,
        f"grpo.reward {cfg.grpo.reward} and hybrid.reward "
        f"{cfg.hybrid.reward} differ: the evaluation scores all methods with one trained reward; use two presets",
    )
    require(
        cfg.dpo.eval_samples >= 1, "dpo.eval_samples must be at least 1: notebooks show replies"
    )
    j = cfg.llm_judge
    require(
        bool(j.criteria) and len(set(j.criteria)) == len(j.criteria),
        f"llm_judge.criteria must be names, each once; found {j.criteria}",
    )
    require(
        not set("@?#") & set(j.url),
        "llm_judge.url holds more than an address; a key belongs into $LLM_API_KEY",
    )
    require(
        not j.url or j.url.startswith(("http://", "https://")),
        "llm_judge.url must begin with http:// or https://, or be empty",
    )
    require(
        cfg.grpo.reward != "llm" or j.url or j.cache == "replay",
        "grpo.reward llm needs an endpoint: set llm_judge.url and llm_judge.model",
    )
    _check_ablation(cfg, require)


def _check_ablation(cfg: Config, require: Callable[[bool, str], None]) -> None:
    """One or two weights of the hybrid loss, and every cell of their grid a run that can work."""
    a = cfg.ablation
    require(
        len(a.grid) <= 2 and set(a.grid) <= set(WEIGHTS) and all(a.grid.values()),
        f"ablation.grid holds one or two of {', '.join(WEIGHTS)}, each with a list of values, or nothing; "
        f"found {a.grid}",
    )
    require(
        all(len(set(values)) == len(values) for values in a.grid.values()),
        "ablation.grid repeats a value",
    )
    require(
        not a.grid
        or 0 < cfg.hybrid.eval_prompts <= a.posts
        and cfg.hybrid.eval_samples <= a.samples,
        "ablation.posts and samples must be at least hybrid.eval_prompts (not 0) and eval_samples: the detector "
        "knows no smaller set",
    )
    for values in itertools.product(*a.grid.values()):
        _check_training(
            "hybrid",
            dataclasses.replace(cfg.hybrid, **dict(zip(a.grid, values, strict=True))),
            cfg.sampling.max_new_tokens,
            lambda ok, message: require(ok, f"ablation.grid: {message}"),
        )


def _check_training(
    name: str, t: TrainConfig, max_tokens: int, require: Callable[[bool, str], None]
) -> None:
    """Choices out of the training menu that cannot work, alone or together."""
    k, kind = t.samples_per_prompt, t.diversity_gradient
    require(
        any((t.alpha, t.beta, t.lam, t.kappa, t.entropy)), f"{name}: every weight of the loss is 0"
    )
    require(
        not t.lam or k >= 3,
        f"{name}.lam needs samples_per_prompt >= 3: leaving one of K out must leave a pair",
    )
    require(
        t.beta == 0 or k >= 2,
        f"{name}.beta needs samples_per_prompt >= 2: {t.reward_gradient} compares replies",
    )
    for key in ("kappa", "entropy"):
        require(
            vars(t)[key] == 0 or k >= 1,
            f"{name}.{key} acts on sampled replies: samples_per_prompt must be >= 1",
        )
    require(
        t.gold_per_prompt >= 1 or not t.alpha,
        f"{name}.alpha acts on people's replies: gold_per_prompt must be >= 1",
    )

    sets = (
        [f"reward_gradient {t.reward_gradient}"] if t.beta and t.reward_gradient != "mean" else []
    )
    sets += [f"diversity_gradient {kind}"] if t.lam and kind in ("set_level", "f_poly") else []
    for what in sets if t.subset_size else []:
        low = 1 if what.startswith("reward") else 2
        require(
            low <= t.subset_size < k,
            f"{name}.subset_size {t.subset_size} does not suit {what}: "
            f"it must be {low} to samples_per_prompt - 1 ({k - 1}), or 0 for half",
        )
    require(
        not sets or math.comb(k, t.subset_size or k // 2) <= 20_000,
        f"{name}: {sets and sets[0]} looks at every subset and {k} samples have over 20 000; lower subset_size",
    )
    require(
        not t.lam or kind != "shared" or t.prompts_per_step >= 2,
        f"{name}.diversity_gradient shared takes its baseline from other posts: prompts_per_step must be >= 2",
    )
    require(
        not t.lam or t.diversity != "distinct_2" or max_tokens >= 2,
        f"{name}.diversity distinct_2 needs sampling.max_new_tokens >= 2",
    )
    require(
        not t.lam or kind != "darling" or t.diversity == "semantic",
        f"{name}.diversity_gradient darling is made of cosine distances: it goes with diversity semantic only",
    )
    require(
        not t.lam or t.scale_advantages != "group",
        f"{name}.scale_advantages group scales rewards alone; with lam above 0 use running, batch or none",
    )
    require(
        name not in ("sft", "polychromic") or t.beta == 0 and kind not in ("f_poly", "darling"),
        f"{name}: its notebook trains without a reward; put beta, f_poly or darling under grpo or hybrid",
    )
    require(
        t.beta == 0 or t.reward_gradient == "mean" or t.scale_advantages != "group",
        f"{name}.scale_advantages group divides rewards by their own sd: it goes with reward_gradient mean only",
    )

    require(
        t.kappa == 0
        or t.kl_estimator != "k1_in_reward"
        or t.beta > 0
        and t.reward_gradient == "mean",
        f"{name}.kl_estimator k1_in_reward is part of the reward: it needs beta above 0 and reward_gradient mean",
    )
    require(
        t.kappa == 0 or t.kl_level != "togo" or t.kl_estimator in ("k2", "k1_in_reward"),
        f"{name}.kl_level togo is a form of k2; with kl_estimator {t.kl_estimator} use token or sequence",
    )
    whole = t.kappa > 0 and t.kl_level != "token" and t.kl_estimator != "k1_in_reward"
    require(
        not whole or t.loss_normalizer != "grpo",
        f"{name}.kl_level {t.kl_level} is of whole replies and "
        "loss_normalizer grpo divides each by its own length: use kl_level token",
    )
    require(
        not t.kl_target
        or t.kl_estimator != "k1_in_reward"
        or t.rollout_every == t.updates_per_rollout == 1,
        f"{name}.kl_target with k1_in_reward measures the KL once a rollout: rollout_every and updates_per_rollout "
        "must be 1",
    )
    require(
        not t.kl_target or t.kappa > 0,
        f"{name}.kl_target {t.kl_target:g} moves kappa: kappa must be above 0 to start with",
    )
    low, high = t.kl_bounds if len(t.kl_bounds) == 2 else (0, 0)
    require(
        0 < low <= high and (not t.kl_target or low <= t.kappa <= high),
        f"{name}.kl_bounds must be [low, high] with 0 < low <= kappa <= high, found {t.kl_bounds}, kappa {t.kappa:g}",
    )
    require(
        t.eval_samples >= 1,
        f"{name}.eval_samples must be at least 1: notebooks show sampled replies",
    )
    require(
        t.on_hacked != "stop" or name in ("grpo", "hybrid"),
        f"{name}.on_hacked stop: nothing is watched without a reward; it goes with grpo and hybrid",
    )


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; UserError if it is unreadable or not a mapping."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, ValueError, RecursionError) as error:  # not UTF-8, endless nesting
        why = " ".join(str(error).split()).partition(" To suppress this check")[0]
        raise UserError(f"{path}: not readable as YAML: {why}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def write_yaml(path: Path, values: dict, comment: str) -> None:
    """Write a mapping below one comment line, atomically; a file that already says the same is left alone."""
    if path.exists() and read_yaml(path) == values:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(f"# {comment}\n")
        yaml = YAML()
        yaml.dump(values, stream)
    os.replace(partial, path)


def main(argv: list[str] | None = None) -> int:
    """Write every setting of a preset to a file. Exit status 2 and one line for a mistake in it."""
    parser = argparse.ArgumentParser(
        prog="python -m polylib.config", description="Write a preset's resolved settings."
    )
    parser.add_argument("preset", help="name of a file in params/, without .yaml")
    parser.add_argument("out", type=Path, help="YAML file to write")
    args = parser.parse_args(argv)
    try:
        values = resolved(args.preset)
        write_yaml(
            args.out,
            values,
            f"Every setting of preset {args.preset}; params/laptop.yaml explains them.",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
