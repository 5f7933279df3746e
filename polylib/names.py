"""What methods and metrics are called wherever people read them, in the order of every table and figure."""

from __future__ import annotations

from collections.abc import Iterable

METHODS = {
    "human": "people",
    "base": "base model",
    "sft": "SFT",
    "lambda0": "SFT+ (λ=0)",
    "polychromic": "polychromic",
    "grpo": "GRPO",
    "hybrid": "hybrid",
    "dpo": "DPO",
    "ppo": "PPO",
}
METRICS = {  # columns of per_prompt.csv
    "judge_mean": "judge score",
    "reward_mean": "predicted engagement",
    "diversity": "semantic diversity",
    "diversity_tfidf": "wording diversity",
    "vendi": "Vendi / k",
    "self_bleu": "self-BLEU",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "rouge_l": "ROUGE-L",
    "relevance": "relevance to the post",
    "length_words": "words",
    "length_tokens": "tokens",
    "truncated": "truncated",
    "duplicates": "duplicate pairs",
    "copy_rate": "copied",
    "repeated_elsewhere": "said elsewhere",
    "bertscore": "BERTScore",
    "distinct_k": "kinds of 4 replies",
    "effective_diversity": "effective diversity",
}


def ordered(methods: Iterable[str]) -> list[str]:
    """In METHODS' order; KeyError for a method without a name."""
    present = set(methods)
    unknown = sorted(present - set(METHODS))
    if unknown:
        raise KeyError(f"no name for {unknown}: add them to METHODS and to figures/style.py")
    return [name for name in METHODS if name in present]
