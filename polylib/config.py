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
import itertools
import math
import os
import re
import reprlib
import sys
import typing
from collections.abc import Iterable
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
    PPOConfig,
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
    "PPOConfig",
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


TRAINED = ("sft", "polychromic", "grpo", "hybrid", "ppo")  # sections that depart from `training`
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
    folder = Path(root or ".") / "params"
    path = _file(preset, folder)
    cfg = _build({"preset": path.stem, **_resolve(path, folder)[0]}, path)
    _check(cfg, path)
    return cfg


def resolved(preset: str, root: Path | None = None) -> dict:
    """Every setting of a preset as a plain mapping, sections complete and in the order of `Config`. Written to a file
    it loads as an equal preset of that file's name, so two studies differ by the diff of two such files."""
    cfg = load(preset, root)
    return TypeAdapter(Config).dump_python(cfg, mode="json", exclude={"preset"})


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
    `training` of a preset goes to all five methods, over their sections in laptop.yaml. Sections are merged key by
    key; lists and mappings that are values (data.columns, data.adapter, reward_model.heuristic, ablation.grid) are
    replaced.
    """
    if path in below:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(p.name for p in below)}")
    own, hints = read_yaml(path), typing.get_type_hints(Config)
    del hints["preset"]
    _known(own, {**hints, "extends": str, "training": TrainConfig}, path)
    values, common = {}, {}
    if "extends" in own:
        near = path.parent / f"{own['extends']}.yaml"
        parent = near if near.is_file() else _file(str(own["extends"]), folder)
        values, common = _resolve(parent, folder, (*below, path))
        del own["extends"]
    shared = own.pop("training", {})
    for name in TRAINED if shared else ():
        own[name] = {**shared, **own.get(name, {})}
    for key, value in own.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values, {**common, **shared}


def _known(values: dict, hints: dict, path: Path, prefix: str = "") -> None:
    """Every key of one file as it is written there: a section or setting that exists, a section a mapping."""
    for key in [key for key in values if key not in hints]:
        near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)[0]
        raise UserError(f"{path}: unknown setting {prefix}{key}; did you mean {prefix}{near}?")
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {key} must be a section of `key: value`, not {value!r}")
            _known(value, typing.get_type_hints(hints[key]), path, f"{key}.")


def _build(values: dict, path: Path) -> Config:
    """Typed settings from a mapping of known keys; UserError for the first missing, mistyped or out of range."""
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from error


CHOICE = re.compile("'([^']*)'")  # in pydantic's list of what was expected
RANGES = {
    "gt": "above {:.10g}".format,
    "ge": lambda end: f"at least {end:.10g}" if end else "0 or more",
    "lt": "below {:.10g}".format,
    "le": "at most {:.10g}".format,
}
SHOWN = reprlib.Repr()  # a value may be a page, or an alias of aliases
SHOWN.maxstring = 80


def _fields(hint: object) -> list[FieldInfo]:
    """What pydantic's `Field` says about a value, and about the items and keys inside it."""
    own = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, FieldInfo)]
    return own + [found for part in typing.get_args(hint) for found in _fields(part)]


def _explain(error: dict) -> str:
    """One line for one finding of pydantic: key, range or type, and the value."""
    key, *rest = error["loc"]
    field, kind, context = Config.__pydantic_fields__[key], error["type"], error.get("ctx", {})
    if rest and dataclasses.is_dataclass(field.annotation):
        field = field.annotation.__pydantic_fields__[rest[0]]
        key, rest = f"{key}.{rest[0]}", rest[1:]
    key += "".join(f"[{i}]" if isinstance(i, int) else f".{i}" for i in rest if i != "[key]")
    said = [field, *_fields(field.annotation)]
    meant = next((one.description for one in said if one.description), "")
    match kind.split("_")[0]:
        case "missing":
            return f"setting {key} is missing; `extends: laptop` gives it, and params/laptop.yaml explains it"
        case "too":
            return f"{key} must hold at least {context['min_length']} value, found {SHOWN.repr(error['input'])}"
        case "string" if kind == "string_pattern_mismatch":
            want = meant
        case "greater" | "less":  # both ends of the range, where the field itself has them
            bounds = [(m, name) for one in said for m in one.metadata for name in RANGES]
            ends = [RANGES[name](getattr(m, name)) for m, name in bounds if hasattr(m, name)]
            want = " and ".join(ends) + (meant and f" ({meant})")
        case "literal":
            want = " | ".join(CHOICE.findall(context["expected"]))
        case other:
            names = {"finite": "float", "dict": "mapping", "dataclass": "section of `key: value`"}
            want = names.get(other, other)
    return f"{key} must be {want}, found {SHOWN.repr(error['input'])}"


Rules = Iterable[tuple[bool, str]]  # what must hold, and what is said where it does not


def _check(cfg: Config, path: Path) -> None:
    """The rules that tie several settings together; each would otherwise surface hours into a run."""
    for holds, message in itertools.chain(_rules(cfg), _ablation_rules(cfg)):
        if not holds:
            raise UserError(f"{path}: {message}")


def _rules(cfg: Config) -> Rules:
    e, d, r, j = cfg.evaluation, cfg.data, cfg.reward_model, cfg.llm_judge
    parts = d.train + d.validation + d.test + d.judge
    lists = {"seeds": cfg.seeds, "evaluation.ks": e.ks, "evaluation.temperatures": e.temperatures}
    for key, values in (lists | {"evaluation.judge_quantiles": e.judge_quantiles}).items():
        once = len(set(values)) == len(values)
        yield once, f"{key} must be a list without repeats, found {list(values)}"
    yield from (
        (
            math.isclose(parts, 1.0, abs_tol=1e-9),
            f"data.train + validation + test + judge must sum to 1, found {parts:.4g}",
        ),
        (
            d.min_chars <= d.max_chars,
            f"data.min_chars {d.min_chars} exceeds max_chars {d.max_chars}: every reply would be rejected",
        ),
        (
            len(set(d.columns.values())) == len(d.columns),
            f"data.columns gives one field two columns: {d.columns}",
        ),
        (
            d.pairs_per_post >= 1 or "dpo" not in cfg.methods,
            "data.pairs_per_post must be at least 1 where methods list dpo: it trains on these pairs",
        ),
        (
            any((r.learned_weight, r.heuristic_weight, r.coherence_weight)),
            "reward_model.learned_weight, heuristic_weight and coherence_weight are all 0",
        ),
        (any(r.heuristic.values()), "reward_model.heuristic must hold a weight above 0"),
        (
            cfg.sampling.temperature not in e.temperatures,
            f"evaluation.temperatures hold sampling.temperature {cfg.sampling.temperature:g}: every method is "
            "sampled there anyway; name others",
        ),
        (
            len(set(cfg.methods)) == len(cfg.methods) and set(cfg.methods) <= set(METHODS),
            f"methods must be names out of {', '.join(METHODS)}, each once; found {list(cfg.methods)}",
        ),
        (
            "sft" in cfg.methods,
            "methods must hold sft: every other method starts from its model",
        ),
        (
            cfg.sft.init == "base",
            f"sft.init must be base: it cannot start from its own result, found {cfg.sft.init!r}",
        ),
        (
            cfg.polychromic.init != "polychromic",
            "polychromic.init must be base or sft: it cannot start from its own result, found 'polychromic'",
        ),
        (
            set(cfg.swept) <= set(cfg.methods) and "sft" in cfg.swept,
            f"swept must be names out of methods, sft among them: it is the control; found {list(cfg.swept)}",
        ),
        (max(e.ks) <= e.samples, f"evaluation.ks {e.ks} exceed samples {e.samples}"),
        (
            e.sweep_samples <= e.samples,
            f"evaluation.sweep_samples {e.sweep_samples} is not 2 to samples",
        ),
        (
            e.likelihood_samples <= e.samples,
            f"evaluation.likelihood_samples {e.likelihood_samples} exceeds samples",
        ),
        (
            cfg.grpo.reward == cfg.hybrid.reward,
            f"grpo.reward {cfg.grpo.reward} and hybrid.reward {cfg.hybrid.reward} differ: the evaluation scores all "
            "methods with one trained reward; use two presets",
        ),
        (
            "ppo" not in cfg.methods
            or cfg.ppo.beta > 0
            and cfg.ppo.reward == cfg.grpo.reward
            and cfg.ppo.scale_advantages != "group"
            and not cfg.ppo.advantage_clip,
            "ppo needs a beta above 0, the reward of grpo, scale_advantages running or none, and advantage_clip 0: its "
            "advantages are of tokens, not of replies in a group",
        ),
        (
            cfg.dpo.eval_samples >= 1,
            "dpo.eval_samples must be at least 1: notebooks show replies",
        ),
        (
            bool(j.criteria) and len(set(j.criteria)) == len(j.criteria),
            f"llm_judge.criteria must be names, each once; found {j.criteria}",
        ),
        (
            not set("@?#") & set(j.url),
            "llm_judge.url holds more than an address; a key belongs into $LLM_API_KEY",
        ),
        (
            not j.url or j.url.startswith(("http://", "https://")),
            "llm_judge.url must begin with http:// or https://, or be empty",
        ),
    )
    for name in cfg.methods:
        init = vars(cfg)["polychromic" if name == "lambda0" else name].init
        listed = init in ("base", *cfg.methods)
        yield listed, f"{name}.init is {init}, which methods does not list: {list(cfg.methods)}"
    shown = cfg.grpo.eval_prompts if "grpo" in cfg.methods else 0
    firsts = (  # the first of those posts; 0 = all of a split, whose size is known when the data are
        ("evaluation.likelihood_prompts", e.likelihood_prompts, "evaluation.prompts", e.prompts),
        ("llm_judge.compare_posts", j.compare_posts, "evaluation.prompts", e.prompts),
        ("reward_model.preflight_posts", r.preflight_posts, "grpo.eval_prompts", shown),
    )
    for part, number, name, whole in firsts:
        said = f"{part} {number} exceeds {name} {whole}, the posts it is taken from"
        yield not whole or number <= whole, said
    for name in TRAINED:
        yield from _training_rules(name, vars(cfg)[name])


def _ablation_rules(cfg: Config) -> Rules:
    """One or two weights of the hybrid loss, and every cell of their grid a run that can work."""
    a, hybrid = cfg.ablation, cfg.hybrid
    yield from (
        (
            len(a.grid) <= 2 and set(a.grid) <= set(WEIGHTS) and all(a.grid.values()),
            f"ablation.grid holds one or two of {', '.join(WEIGHTS)}, each with a list of values, or nothing; "
            f"found {a.grid}",
        ),
        (
            all(len(set(values)) == len(values) for values in a.grid.values()),
            "ablation.grid repeats a value",
        ),
        (
            not a.grid or 0 < hybrid.eval_prompts <= a.posts and hybrid.eval_samples <= a.samples,
            "ablation.posts and samples must be at least hybrid.eval_prompts (not 0) and eval_samples: the detector "
            "knows no smaller set",
        ),
    )
    for values in itertools.product(*a.grid.values()):
        cell = dataclasses.replace(hybrid, **dict(zip(a.grid, values, strict=True)))
        for holds, message in _training_rules("hybrid", cell):
            yield holds, f"ablation.grid: {message}"


def _training_rules(name: str, t: TrainConfig) -> Rules:
    """Choices out of the training menu that cannot work, alone or together."""
    k, kind = t.samples_per_prompt, t.diversity_gradient
    subsets = t.lam > 0 and kind in ("set_level", "f_poly")
    yield from (
        (
            any((t.alpha, t.beta, t.lam, t.kappa, t.entropy)),
            f"{name}: every weight of the loss is 0",
        ),
        (
            not t.lam or k >= 3,
            f"{name}.lam needs samples_per_prompt >= 3: leaving one of K out must leave a pair",
        ),
        (
            t.beta == 0 or k >= 2,
            f"{name}.beta needs samples_per_prompt >= 2: its advantages compare replies",
        ),
        (
            t.kappa == 0 or k >= 1,
            f"{name}.kappa acts on sampled replies: samples_per_prompt must be >= 1",
        ),
        (
            t.entropy == 0 or k >= 1,
            f"{name}.entropy acts on sampled replies: samples_per_prompt must be >= 1",
        ),
        (
            t.gold_per_prompt >= 1 or not t.alpha,
            f"{name}.alpha acts on people's replies: gold_per_prompt must be >= 1",
        ),
        (
            not subsets or t.subset_size == 0 or 2 <= t.subset_size < k,
            f"{name}.subset_size {t.subset_size} does not suit diversity_gradient {kind}: "
            f"it must be 2 to samples_per_prompt - 1 ({k - 1}), or 0 for half",
        ),
        (
            not subsets or math.comb(k, t.subset_size or k // 2) <= 20_000,
            f"{name}: diversity_gradient {kind} looks at every subset and {k} samples have over 20 000; "
            "lower subset_size",
        ),
        (
            not t.lam or t.scale_advantages != "group",
            f"{name}.scale_advantages group scales rewards alone; with lam above 0 use running or none",
        ),
        (
            name not in ("sft", "polychromic") or t.beta == 0 and kind not in ("f_poly", "darling"),
            f"{name}: its notebook trains without a reward; put beta, f_poly or darling under grpo or hybrid",
        ),
        (
            t.kappa == 0 or t.kl_level != "togo" or t.kl_estimator == "k2",
            f"{name}.kl_level togo is a form of k2; with kl_estimator {t.kl_estimator} use token",
        ),
        (
            t.kappa == 0 or t.kl_level != "togo" or t.loss_normalizer != "grpo",
            f"{name}.kl_level togo is of whole replies and loss_normalizer grpo divides each by its own length: use "
            "kl_level token",
        ),
        (
            not t.kl_target or t.kappa > 0,
            f"{name}.kl_target {t.kl_target:g} moves kappa: kappa must be above 0 to start with",
        ),
        (
            t.eval_samples >= 1,
            f"{name}.eval_samples must be at least 1: notebooks show sampled replies",
        ),
        (
            t.on_hacked != "stop" or name in ("grpo", "hybrid"),
            f"{name}.on_hacked stop: nothing is watched without a reward; it goes with grpo and hybrid",
        ),
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
    if not path.exists() or read_yaml(path) != values:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(f"# {comment}\n")
            YAML().dump(values, stream)
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
        said = f"Every setting of preset {args.preset}; params/laptop.yaml explains them."
        write_yaml(args.out, resolved(args.preset), said)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
