"""The settings of a preset, one class a section: names and types. What each means is written in
params/laptop.yaml; polylib.config reads the files and is where to import these classes from.
"""
from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Literal

METHODS = ("sft", "lambda0", "polychromic", "grpo", "hybrid")


@dataclass(frozen=True)
class ModelConfig:
    source: str
    encoder: str
    dtype: Literal["auto", "float32", "bfloat16"]
    device: str
    lora_rank: int
    lora_alpha: int
    lora_dropout: float


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float
    max_new_tokens: int
    max_prompt_tokens: int


@dataclass(frozen=True)
class DataConfig:
    max_posts: int
    min_replies: int
    min_chars: int
    max_chars: int
    language: str
    max_links: int
    max_hashtags: int
    max_emoji: int
    spam_words: list[str]
    near_duplicate: float
    bot_repetition: int
    split_seed: int
    train: float
    validation: float
    test: float
    judge: float
    simulator_seed: int
    pairs_per_post: int
    pair_min_ratio: float
    columns: dict[str, str]


@dataclass(frozen=True)
class RewardModelConfig:
    epochs: int
    lr: float
    hidden: int
    weight_decay: float
    members: int
    learned_weight: float
    heuristic_weight: float
    heuristic: dict[str, float]


@dataclass(frozen=True)
class TrainConfig:
    init: Literal["base", "sft", "polychromic"]
    phase: Literal["sft", "rl", "all"]
    alpha: float
    beta: float
    lam: float
    kappa: float
    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    gold_per_prompt: int
    rollout_every: int
    micro_prompts: int
    lr: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    clip_low: float
    clip_high: float
    loss_normalizer: Literal["dr_grpo", "grpo", "dapo", "sequence"]
    scale_advantages: Literal["running", "group", "none"]
    kl_estimator: str
    diversity: str
    diversity_gradient: str
    min_relevance: float
    reward: Literal["combined", "learned", "heuristic"]
    eval_every: int
    eval_prompts: int
    eval_samples: int
    save_every: int


@dataclass(frozen=True)
class EvaluationConfig:
    prompts: int
    samples: int
    temperatures: list[float]
    judge_quantiles: list[float]
    ks: list[int]
    seed: int


@dataclass(frozen=True)
class PaperFiguresConfig:
    columns: int
    dpi: int
    bootstrap: int


@dataclass(frozen=True)
class Config:
    preset: str
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    model: ModelConfig
    sampling: SamplingConfig
    data: DataConfig
    reward_model: RewardModelConfig
    sft: TrainConfig
    polychromic: TrainConfig
    grpo: TrainConfig
    hybrid: TrainConfig
    evaluation: EvaluationConfig
    paper_figures: PaperFiguresConfig

    def _repr_html_(self) -> str:
        rows = []
        for name, value in dataclasses.asdict(self).items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            text = ", ".join(f"{key} <b>{html.escape(str(item))}</b>" for key, item in pairs)
            rows.append(f"<tr><th>{name}</th><td style='text-align:left'>{text}</td></tr>")
        return f"<table>{''.join(rows)}</table>"
