"""The settings of a preset, one class a section: names, types and ranges, no values. What each means is written in
params/laptop.yaml; polylib.config reads the files, checks what ties settings together, and is where to import from.
A value out of its range is refused wherever a section is made, by `dataclasses.replace` too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

METHODS = ("sft", "lambda0", "polychromic", "grpo", "hybrid", "dpo", "ppo")


def _no_bool(value: object) -> object:
    """True is no number; a string is one: 1.0e-5 arrives as a string through YAML 1.1 readers."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


KNOWN = ConfigDict(extra="forbid")  # an unknown key is an error, not dropped
Str, Bool, Int = Annotated[str, Strict()], Annotated[bool, Strict()], Annotated[int, Strict()]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count, AtLeastOne, AtLeastTwo = (
    Annotated[Int, Field(ge=0)],
    Annotated[Int, Field(ge=1)],
    Annotated[Int, Field(ge=2)],
)
NotNegative, Positive = Annotated[Float, Field(ge=0)], Annotated[Float, Field(gt=0)]
Share, Quantile = Annotated[Float, Field(ge=0, le=1)], Annotated[Float, Field(ge=0, lt=1)]
Learning = Annotated[Float, Field(gt=0, description="at 0 nothing is learned")]
Rate = Annotated[Float, Field(gt=0, le=1, description="at 0 nothing is learned")]
Cosine = Annotated[Float, Field(ge=-1, lt=1)]
Seed = Annotated[Int, Field(ge=0, le=2**32 - 1)]
Text = Annotated[Str, Field(pattern=r"\S", description="text that is not empty")]
HeuristicPart = Literal[
    "relevance",
    "length",
    "sentiment",
    "variety",
    "punctuation",
    "specificity",
    "toxicity",
    "profanity",
]
DEVICE, LANGUAGE = r"^(auto|cpu|mps|cuda(:\d+)?)$", "^(any|[A-Za-z]{2})$"


@dataclass(frozen=True, config=KNOWN)
class ModelConfig:
    source: Text
    peft_adapter: Str
    encoder: Text
    dtype: Literal["auto", "float32", "bfloat16"]
    device: Annotated[Str, Field(pattern=DEVICE, description="auto | cpu | cuda | cuda:N | mps")]
    lora_rank: AtLeastOne
    lora_alpha: AtLeastOne
    lora_dropout: Quantile


@dataclass(frozen=True, config=KNOWN)
class SamplingConfig:
    temperature: Positive
    top_p: Annotated[Float, Field(gt=0, le=1)]
    top_k: Annotated[Int, Field(ge=0, description="0 is off")]
    max_new_tokens: AtLeastOne
    max_prompt_tokens: AtLeastOne


@dataclass(frozen=True, config=KNOWN)
class DataConfig:
    max_posts: Count
    min_replies: AtLeastOne
    min_chars: Count
    max_chars: AtLeastOne
    language: Annotated[Str, Field(pattern=LANGUAGE, description="a two-letter code or any")]
    max_links: Count
    max_hashtags: Count
    max_emoji: Count
    spam_words: list[Text]
    near_duplicate: Annotated[Float, Field(gt=0, le=1)]
    bot_repetition: AtLeastOne
    split_seed: Seed
    train: Positive
    validation: Positive
    test: Positive
    judge: Positive
    simulator_seed: Seed
    pairs_per_post: Count
    pair_min_ratio: Annotated[Float, Field(ge=1)]
    columns: dict[Text, Text]
    adapter: dict[Text, Text | list[Text]]


@dataclass(frozen=True, config=KNOWN)
class RewardModelConfig:
    epochs: AtLeastOne
    negatives: Count
    lr: Rate
    hidden: AtLeastOne
    weight_decay: NotNegative
    members: AtLeastOne
    learned_weight: NotNegative
    heuristic_weight: NotNegative
    coherence_weight: NotNegative
    relevance_floor: Quantile
    attack_pieces: Count
    preflight_posts: AtLeastTwo
    preflight_samples: AtLeastTwo
    heuristic: dict[HeuristicPart, NotNegative]


@dataclass(frozen=True, config=KNOWN)
class EveryTraining:
    """What a training of any kind is told."""

    init: Literal["base", "sft", "polychromic"]
    phase: Literal["sft", "rl", "all"]
    steps: AtLeastOne
    prompts_per_step: AtLeastOne
    lr: Rate
    warmup_steps: Count
    max_grad_norm: Learning
    reward: Literal["combined", "learned", "heuristic", "coherence"]
    eval_every: AtLeastOne
    eval_prompts: Count
    eval_samples: Count


@dataclass(frozen=True, config=KNOWN)
class TrainConfig(EveryTraining):
    alpha: NotNegative
    beta: NotNegative
    lam: NotNegative
    kappa: NotNegative
    samples_per_prompt: Count
    gold_per_prompt: Count
    rollout_every: AtLeastOne
    updates_per_rollout: AtLeastOne
    micro_prompts: Count
    weight_decay: NotNegative
    clip_low: Share
    clip_high: NotNegative
    loss_normalizer: Literal["dr_grpo", "grpo", "dapo", "sequence"]
    scale_advantages: Literal["running", "group", "none"]
    kl_estimator: Literal["k2", "k3", "k3+"]
    kl_level: Literal["token", "togo"]
    kl_target: NotNegative
    entropy: NotNegative
    advantage_clip: NotNegative
    mask_truncated: Bool
    diversity_gradient: Literal[
        "jackknife", "leave_one_out", "set_level", "f_poly", "darling", "detached"
    ]
    subset_size: Count
    curriculum: Quantile
    min_relevance: Cosine
    save_every: AtLeastOne
    anatomy_every: Count
    on_hacked: Literal["warn", "stop"]


@dataclass(frozen=True, config=KNOWN)
class PPOConfig(TrainConfig):
    gamma: Annotated[Float, Field(gt=0, le=1)]
    gae_lambda: Share
    value_weight: NotNegative
    value_clip: NotNegative


@dataclass(frozen=True, config=KNOWN)
class RivalConfig(EveryTraining):
    beta: Annotated[Float, Field(gt=0, description="at 0 every pair weighs nothing")]


@dataclass(frozen=True, config=KNOWN)
class EvaluationConfig:
    prompts: Count
    samples: AtLeastOne
    temperatures: Annotated[list[Positive], Field(min_length=1)]
    sweep_samples: AtLeastTwo
    judge_quantiles: Annotated[list[Annotated[Float, Field(gt=0, lt=1)]], Field(min_length=1)]
    ks: Annotated[list[AtLeastOne], Field(min_length=1)]
    seed: Seed
    likelihood_prompts: Count
    likelihood_samples: AtLeastOne


@dataclass(frozen=True, config=KNOWN)
class AblationConfig:
    grid: dict[Str, list[NotNegative]]
    steps: AtLeastOne
    posts: AtLeastTwo
    samples: AtLeastTwo


@dataclass(frozen=True, config=KNOWN)
class LLMJudgeConfig:
    url: Str
    model: Str
    cache: Literal["live", "replay"]
    max_calls: Count
    max_cost: NotNegative
    price_in: NotNegative
    price_out: NotNegative
    concurrency: AtLeastOne
    max_tokens: AtLeastOne
    compare_posts: Count
    criteria: list[Literal["engaging", "on_topic", "human"]]


@dataclass(frozen=True, config=KNOWN)
class PaperFiguresConfig:
    columns: Annotated[Int, Field(ge=1, le=2)]
    dpi: Annotated[Int, Field(ge=30, le=1200)]
    price_per_hour: NotNegative


@dataclass(frozen=True, config=KNOWN)
class Config:
    preset: Str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    methods: tuple[Str, ...]
    swept: tuple[Str, ...]
    model: ModelConfig
    sampling: SamplingConfig
    data: DataConfig
    reward_model: RewardModelConfig
    sft: TrainConfig
    polychromic: TrainConfig
    grpo: TrainConfig
    hybrid: TrainConfig
    dpo: RivalConfig
    ppo: PPOConfig
    evaluation: EvaluationConfig
    ablation: AblationConfig
    llm_judge: LLMJudgeConfig
    paper_figures: PaperFiguresConfig
