"""Presets that cannot run as they are written: each is refused when it is read, in one line with key, range and value.

`WRONG` holds one line a kind: section, key, value, and what the line must say beside the key."""

from __future__ import annotations

import copy
import typing
from pathlib import Path

import pytest
from conftest import ROOT

from polylib import config, settings
from polylib.config import UserError
from polylib.rewards import heuristic

FREE_TEXT = ("url", "model", "source", "peft_adapter", "encoder")
NAN = float("nan")
METHOD = ("sft", "polychromic", "grpo", "hybrid", "ppo")
COUNTS = {  # key: what its line says of a value below its range
    "data": dict.fromkeys(("max_posts", "min_chars", "max_links", "pairs_per_post"), "0 or more")
    | dict.fromkeys(("max_hashtags", "max_emoji"), "0 or more")
    | dict.fromkeys(("min_replies", "max_chars", "bot_repetition"), "at least 1"),
    "model": dict.fromkeys(("lora_rank", "lora_alpha"), "at least 1"),
    "sampling": dict.fromkeys(("max_new_tokens", "max_prompt_tokens"), "at least 1"),
    "reward_model": dict.fromkeys(("epochs", "hidden", "members"), "at least 1")
    | dict.fromkeys(("negatives", "attack_pieces"), "0 or more")
    | dict.fromkeys(("preflight_posts", "preflight_samples"), "at least 2"),
    "grpo": dict.fromkeys(
        ("steps", "prompts_per_step", "rollout_every", "save_every"), "at least 1"
    )
    | dict.fromkeys(("updates_per_rollout", "eval_every"), "at least 1")
    | dict.fromkeys(("samples_per_prompt", "gold_per_prompt", "micro_prompts"), "0 or more")
    | dict.fromkeys(("warmup_steps", "subset_size", "eval_prompts", "eval_samples"), "0 or more")
    | dict.fromkeys(("anatomy_every",), "0 or more"),
    "dpo": dict.fromkeys(("steps", "prompts_per_step", "eval_every"), "at least 1")
    | dict.fromkeys(("warmup_steps", "eval_prompts", "eval_samples"), "0 or more"),
    "evaluation": dict.fromkeys(("prompts", "likelihood_prompts"), "0 or more")
    | dict.fromkeys(("samples", "likelihood_samples"), "at least 1")
    | dict.fromkeys(("sweep_samples",), "at least 2"),
    "ablation": dict.fromkeys(("steps",), "at least 1")
    | dict.fromkeys(("posts", "samples"), "at least 2"),
    "llm_judge": dict.fromkeys(("concurrency", "max_tokens"), "at least 1")
    | dict.fromkeys(("max_calls", "compare_posts"), "0 or more"),
}
SEED, RATE = "0 or more and at most 4294967295", "above 0 and at most 1 (at 0 nothing is learned)"
WRONG = [
    *(
        (section, key, -1, f"{says}, found -1")
        for section, keys in COUNTS.items()
        for key, says in keys.items()
    ),
    *(
        (section, key, 0, f"{says}, found 0")
        for section, keys in COUNTS.items()
        for key, says in keys.items()
        if says != "0 or more"
    ),
    *((name, "lr", value, RATE) for name in (*METHOD, "dpo") for value in (0, -1e-5, 2.0)),
    *(("reward_model", "lr", value, RATE) for value in (0.0, -1.0, 1.5)),
    *((name, "max_grad_norm", 0.0, "above 0") for name in (*METHOD, "dpo")),
    *((name, "weight_decay", -0.1, "0 or more") for name in ("reward_model", *METHOD)),
    *((name, key, -0.1, "0 or more") for name in METHOD for key in ("alpha", "beta", "lam")),
    *(("grpo", key, -0.1, "0 or more") for key in ("kappa", "kl_target", "entropy", "clip_low")),
    *(("grpo", key, -0.1, "0 or more") for key in ("clip_high", "advantage_clip", "curriculum")),
    *(("ppo", key, -0.1, "0 or more") for key in ("value_weight", "value_clip", "gae_lambda")),
    ("ppo", "gae_lambda", 1.1, "0 or more and at most 1, found 1.1"),
    ("ppo", "gamma", 0.0, "above 0 and at most 1, found 0.0"),
    ("ppo", "gamma", 1.1, "above 0 and at most 1, found 1.1"),
    ("ppo", "beta", 0.0, "advantages are of tokens"),
    ("ppo", "reward", "heuristic", "advantages are of tokens"),
    ("ppo", "scale_advantages", "group", "advantages are of tokens"),
    ("ppo", "advantage_clip", 5.0, "advantages are of tokens"),
    ("ppo", "on_hacked", "stop", "nothing is watched"),
    ("grpo", "clip_low", 1.5, "0 or more and at most 1, found 1.5"),
    ("grpo", "curriculum", 1.0, "below 1"),
    ("grpo", "min_relevance", 1.0, "at least -1 and below 1, found 1.0"),
    ("grpo", "min_relevance", -2, "at least -1 and below 1, found -2"),
    *(
        (section, key, value, SEED)
        for section, key in (
            ("data", "split_seed"),
            ("data", "simulator_seed"),
            ("evaluation", "seed"),
        )
        for value in (-1, 2**32)
    ),
    (None, "seeds", [-1], f"seeds[0] must be {SEED}, found -1"),
    (None, "seeds", [42, 5_000_000_000], f"seeds[1] must be {SEED}, found 5000000000"),
    (None, "seeds", [], "at least 1 value, found []"),
    (None, "seeds", [1, 1], "without repeats"),
    (None, "methods", [], "methods must hold sft"),
    (None, "swept", [], "sft among them"),
    ("model", "device", "gpu", "auto | cpu | cuda | cuda:N | mps, found 'gpu'"),
    ("model", "device", "cuda:x", "auto | cpu"),
    ("model", "dtype", "float16", "auto | float32 | bfloat16"),
    ("model", "source", " ", "text that is not empty"),
    ("model", "lora_dropout", 1.0, "0 or more and below 1"),
    ("data", "near_duplicate", 90, "above 0 and at most 1, found 90"),
    ("data", "near_duplicate", 0.0, "above 0 and at most 1, found 0.0"),
    ("data", "language", "English", "a two-letter code or any, found 'English'"),
    ("data", "spam_words", ["buy", ""], "text that is not empty"),  # "" is in every reply
    ("data", "pair_min_ratio", 0.5, "at least 1"),
    ("data", "train", 0.0, "above 0"),
    ("data", "test", 0.5, "sum to 1"),
    ("data", "min_chars", 281, "exceeds max_chars 280"),
    ("data", "columns", {"a": "reply", "b": "reply"}, "two columns"),
    ("data", "columns", {"a": ""}, "text that is not empty"),
    ("data", "pairs_per_post", 0, "dpo"),
    ("reward_model", "relevance_floor", 1.0, "0 or more and below 1"),
    ("reward_model", "weight_decay", -1.0, "0 or more"),
    ("reward_model", "learned_weight", -0.1, "0 or more"),
    ("reward_model", "heuristic_weight", -0.1, "0 or more"),
    ("reward_model", "coherence_weight", -0.1, "0 or more"),
    ("reward_model", "heuristic", {}, "a weight above 0"),
    ("reward_model", "heuristic", {"length": 0.0}, "a weight above 0"),
    ("reward_model", "heuristic", {"lenght": 1.0}, "relevance | length"),
    ("reward_model", "heuristic", {"length": -1.0}, "0 or more"),
    ("sft", "init", "sft", "sft.init must be base"),
    ("sft", "init", "polychromic", "sft.init must be base"),
    ("polychromic", "init", "polychromic", "polychromic.init must be base or sft"),
    *((name, "eval_samples", 0, "at least 1") for name in (*METHOD, "dpo")),
    *(("evaluation", key, [], "at least 1 value") for key in ("temperatures", "ks")),
    ("evaluation", "judge_quantiles", [], "at least 1 value"),
    ("evaluation", "temperatures", [0.85, 0.85], "without repeats"),
    ("evaluation", "temperatures", [0.7], "sampling.temperature 0.7"),
    ("evaluation", "temperatures", [0.0], "temperatures[0] must be above 0"),
    ("evaluation", "ks", [0], "ks[0] must be at least 1"),
    ("evaluation", "ks", [1, 1], "without repeats"),
    ("evaluation", "ks", [11], "exceed samples 10"),
    ("evaluation", "judge_quantiles", [1.0], "above 0 and below 1, found 1.0"),
    ("evaluation", "judge_quantiles", [0.5, 0.5], "without repeats"),
    ("evaluation", "likelihood_prompts", 7, "exceeds evaluation.prompts 6"),
    ("llm_judge", "compare_posts", 7, "exceeds evaluation.prompts 6"),
    ("reward_model", "preflight_posts", 5, "exceeds grpo.eval_prompts 4"),
    ("llm_judge", "url", "localhost:8000", "http:// or https://"),
    ("llm_judge", "max_cost", -1, "0 or more"),
    ("llm_judge", "price_in", -1, "0 or more"),
    ("llm_judge", "price_out", -1, "0 or more"),
    ("llm_judge", "criteria", [], "each once"),
    ("llm_judge", "criteria", ["funny"], "engaging | on_topic | human"),
    ("paper_figures", "columns", 0, "at least 1 and at most 2"),
    ("paper_figures", "columns", 3, "at least 1 and at most 2"),
    ("paper_figures", "dpi", 0, "at least 30 and at most 1200"),
    ("paper_figures", "dpi", 100_000, "at least 30 and at most 1200"),
    ("paper_figures", "price_per_hour", -1.0, "0 or more"),
]


@pytest.fixture(scope="module")
def smoke() -> dict:
    return config.resolved("smoke", ROOT)


@pytest.fixture
def load(smoke, monkeypatch):
    """The smoke preset as if its file held other values: load(section, key, value)."""

    def changed(section, key, value):
        values = copy.deepcopy(smoke)
        (values[section] if section else values)[key] = value
        monkeypatch.setattr(config, "read_yaml", lambda path: values)
        return config.load("smoke", ROOT)

    return changed


def one_line(caught) -> str:
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("section, key, value, says", WRONG)
def test_a_wrong_preset_is_refused_with_key_range_and_value(load, section, key, value, says):
    with pytest.raises(UserError) as caught:
        load(section, key, value)
    message = one_line(caught)
    assert "smoke.yaml: " in message and key in message and says in message


def test_every_setting_refuses_what_is_no_value_of_its_kind(smoke):
    """None, NaN, text, lists of lists: 2,000 presets, each a line that names the section and never another error."""
    tried = 0
    for section, values in smoke.items():
        for key in values if isinstance(values, dict) else [None]:
            for value in (None, NAN, float("inf"), True, {"a": 1}, [None], [[1]], "\x1b[2J\n" * 99):
                if isinstance(value, bool) and key == "mask_truncated":
                    continue
                if isinstance(value, str) and key in FREE_TEXT:
                    continue  # checked where it is used
                tried += 1
                wrong = {**values, key: value} if key else value
                with pytest.raises(UserError) as caught:
                    config._build({"preset": "mine", **smoke, section: wrong}, Path("mine.yaml"))
                assert section in one_line(caught) or key in one_line(caught)
    assert tried > 1500


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_that_exist_are_taken(load, device):
    assert load("model", "device", device).model.device == device


def test_the_parts_of_the_heuristic_reward_are_those_of_its_class():
    parts = "relevance length sentiment variety punctuation specificity toxicity profanity"
    assert typing.get_args(settings.HeuristicPart) == heuristic.COMPONENTS == tuple(parts.split())


@pytest.mark.parametrize(
    "text",
    [
        b"a: &a [*a]\nextends: smoke\n",
        b"extends: " + b"[" * 400,
        b"extends: smoke\nseeds: [" + b"9" * 5000 + b"]\n",
        b"\xff\xfe\x00",
        b"extends: [a]\n",
        b"extends: null\n",
        b'extends: "../../etc/passwd"\n',
        b'extends: "a\\0b"\n',
        b"extends: smoke\ntraining: null\n",
        b"extends: smoke\n? [a]\n: 1\n",
        b'extends: smoke\n"a\\e[2Jb": 1\n',
        b"extends: smoke\nseeds: !!python/object:os.system ls\n",
        b"extends: smoke\nseeds: [1]\nseeds: [2]\n",
        b"a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nextends: smoke\nseeds: [*b,*b]\n",
        b"",
    ],
    ids=range(15),
)
def test_a_hostile_file_is_one_line(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(UserError) as caught:
        config.load(str(tmp_path / "mine.yaml"), ROOT)
    assert "mine.yaml" in one_line(caught) or "preset" in one_line(caught)


@pytest.mark.parametrize(
    "name",
    [
        "$(touch X)",
        "a b",
        "2024",
        "1e5",
        "nan",
        "True",
        "none",
        "a;b",
        "../laptop",
        "a\nb",
        "-x",
        "a.b",
        "",
    ],
)
def test_a_preset_is_named_like_a_word(name):
    for asked in (name, f"params/{name}.yaml"):
        with pytest.raises(UserError, match="rename it|no such preset") as caught:
            config.load(asked, ROOT)
        one_line(caught)
    assert not Path("X").exists()
