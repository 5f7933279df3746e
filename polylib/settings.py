"""The settings of a preset, one class a section: names and types. What each means is written in
params/laptop.yaml; polylib.config reads the files and is where to import these classes from.
"""
from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Literal

METHODS = ("sft", "lambda0", "polychromic", "grpo", "hybrid", "dpo")
RIVALS = ("dpo",)  # trained by another library; a study has their stages only where it lists them


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
    top_p: float
    top_k: int
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
    objective: Literal["conditional", "pairs", "nmse"]
    negatives: int
    lr: float
    hidden: int
    weight_decay: float
    members: int
    uncertainty_penalty: float
    learned_weight: float
    heuristic_weight: float
    coherence_weight: float
    relevance_floor: float
    preflight_posts: int
    preflight_samples: int
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
    updates_per_rollout: int
    micro_prompts: int
    lr: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    clip_low: float
    clip_high: float
    loss_normalizer: Literal["dr_grpo", "grpo", "dapo", "token", "sequence"]
    scale_advantages: Literal["running", "group", "batch", "none"]
    kl_estimator: Literal["k1_in_reward", "k1", "k2", "k3", "k3+"]
    kl_level: Literal["token", "sequence", "togo"]
    kl_target: float
    kl_rule: Literal["steps", "proportional"]
    kl_bounds: list[float]
    entropy: float
    advantage_clip: float
    mask_truncated: bool
    reward_gradient: Literal["mean", "max_at_k", "pass_at_k", "pass_at_k_training"]
    diversity: Literal["semantic", "logdet", "vendi", "distinct_1", "distinct_2", "self_bleu"]
    diversity_gradient: Literal["jackknife", "leave_one_out", "shared", "set_level", "f_poly", "darling", "detached",
                                "entropy", "token_gini", "embedding_rao"]
    subset_size: int
    gold_loss: Literal["ce", "gem", "chord_phi"]
    chord: dict[str, float]
    curriculum: float
    min_relevance: float
    reward: Literal["combined", "learned", "heuristic", "coherence", "llm"]
    eval_every: int
    eval_prompts: int
    eval_samples: int
    save_every: int
    anatomy_every: int
    on_hacked: Literal["warn", "stop"]


@dataclass(frozen=True)
class RivalConfig:
    init: Literal["base", "sft", "polychromic"]
    phase: Literal["sft", "rl", "all"]
    beta: float
    steps: int
    prompts_per_step: int
    lr: float
    warmup_steps: int
    max_grad_norm: float
    reward: Literal["combined", "learned", "heuristic", "coherence", "llm"]
    eval_every: int
    eval_prompts: int
    eval_samples: int


@dataclass(frozen=True)
class EvaluationConfig:
    prompts: int
    samples: int
    temperatures: list[float]
    sweep_samples: int
    judge_quantiles: list[float]
    ks: list[int]
    seed: int
    likelihood_prompts: int
    likelihood_samples: int


@dataclass(frozen=True)
class AblationConfig:
    grid: dict[str, list[float]]
    steps: int
    posts: int
    samples: int


@dataclass(frozen=True)
class LLMJudgeConfig:
    url: str
    model: str
    cache: Literal["live", "record", "replay", "off"]
    max_calls: int
    max_cost: float
    price_in: float
    price_out: float
    concurrency: int
    compare_posts: int
    criteria: list[Literal["engaging", "on_topic", "human"]]


@dataclass(frozen=True)
class PaperFiguresConfig:
    columns: int
    dpi: int
    bootstrap: int
    price_per_hour: float


@dataclass(frozen=True)
class Config:
    preset: str
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    swept: tuple[str, ...]
    model: ModelConfig
    sampling: SamplingConfig
    data: DataConfig
    reward_model: RewardModelConfig
    sft: TrainConfig
    polychromic: TrainConfig
    grpo: TrainConfig
    hybrid: TrainConfig
    dpo: RivalConfig
    evaluation: EvaluationConfig
    ablation: AblationConfig
    llm_judge: LLMJudgeConfig
    paper_figures: PaperFiguresConfig

    def _repr_html_(self) -> str:
        rows = []
        for name, value in dataclasses.asdict(self).items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            text = ", ".join(f"{key} <b>{html.escape(str(item))}</b>" for key, item in pairs)
            rows.append(f"<tr><th>{name}</th><td style='text-align:left'>{text}</td></tr>")
        return f"<table>{''.join(rows)}</table>"
