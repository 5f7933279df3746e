"""Generations in, one row of numbers per prompt and temperature out; people's replies through the same code.

    thresholds = score.human_thresholds(validation_posts, judge, cfg.evaluation.judge_quantiles)
    table = score.score(generations, test_posts, reward, judge, encoder, cfg.evaluation, thresholds)
    people = score.human(test_posts, reward, judge, encoder, cfg.evaluation, thresholds)
    score.save(table, paths.evaluation("grpo", 42), thresholds)       # per_prompt.csv, metrics.json

Every metric belongs to one prompt's set of replies; nothing is pooled over prompts. What a set does not
define is NaN, and `table.attrs["reasons"]` says why and how often.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from polylib.config import EvaluationConfig, UserError
from polylib.evaluation import metrics, text
from polylib.run import atomic_write, write_json

SET_SIZE = 4  # replies a set metric looks at: its value hangs on the number, and most human sets reach 4
TOKEN_BUDGET = 40  # words of distinct-n, for the same reason
KEYS = ["prompt_id", "temperature"]
NEEDED = ["post_id", "sample", "temperature", "reply", "tokens", "truncated"]

Scorer = Callable[[list[str], list[str]], np.ndarray]


def human_thresholds(posts: Iterable, judge: Scorer, quantiles: Iterable[float]) -> dict[float, float]:
    """{quantile: judge score} over all human replies to `posts` (validation posts, so that test posts stay
    unseen)."""
    pairs = [(post.text, reply) for post in posts for reply in post.replies]
    if not pairs:
        raise UserError("evaluation: no human replies to validation posts; lower data.min_replies")
    scores = _finite(judge, *map(list, zip(*pairs, strict=True)), "judge")
    return {float(q): float(np.quantile(scores, q)) for q in quantiles}


def score(generations: pd.DataFrame, posts: list, reward: Scorer, judge: Scorer, encoder,
          settings: EvaluationConfig, thresholds: dict[float, float]) -> pd.DataFrame:
    """One row per (prompt_id, temperature): prompt_id, temperature, n_samples and the metrics.

    generations: post_id, sample, temperature, reply, tokens, truncated; `settings.samples` rows per post and
    temperature. References of ROUGE-L are all human replies of the post. Raises UserError for missing
    columns, unknown posts or incomplete sets, and ValueError when a scorer returns a number that is none."""
    missing = [name for name in NEEDED if name not in generations]
    if missing:
        raise UserError(f"generations: columns {missing} are missing; run notebook 07 again")
    unknown = sorted(set(generations["post_id"]) - {post.id for post in posts})
    if unknown:
        raise UserError(f"generations: posts {unknown[:3]} are no test posts; run notebook 07 again")
    sizes = generations.groupby(["post_id", "temperature"]).size()
    short = sizes[sizes != settings.samples]
    if len(short) or len(sizes) != len(posts) * generations["temperature"].nunique():
        where = f"{len(sizes)} sets for {len(posts)} posts"
        if len(short):
            where = f"post {short.index[0][0]} at temperature {short.index[0][1]} has {short.iloc[0]}"
        raise UserError(f"generations: {where}, expected {settings.samples} replies; run notebook 07 again")
    return _per_prompt(generations, posts, reward, judge, encoder, settings, thresholds, leave_one_out=False)


def human(posts: list, reward: Scorer, judge: Scorer, encoder, settings: EvaluationConfig,
          thresholds: dict[float, float], count_tokens: Callable[[str], int] | None = None) -> pd.DataFrame:
    """The same columns for people's own replies, temperature empty. ROUGE-L leaves the reply itself out of
    its references. k above the number of replies, and truncation, are NaN with reason; so is the length in
    tokens without `count_tokens`."""
    rows = pd.DataFrame([(post.id, i, np.nan, reply, count_tokens(reply) if count_tokens else np.nan, np.nan)
                         for post in posts for i, reply in enumerate(post.replies)], columns=NEEDED)
    return _per_prompt(rows, posts, reward, judge, encoder, settings, thresholds, leave_one_out=True)


def _per_prompt(rows, posts, reward, judge, encoder, settings, thresholds, leave_one_out) -> pd.DataFrame:
    post_of = {post.id: post for post in posts}
    post_texts, replies = [post_of[i].text for i in rows["post_id"]], list(rows["reply"])
    scored = rows.assign(judge=_finite(judge, post_texts, replies, "judge"),
                         reward=_finite(reward, post_texts, replies, "reward"),
                         form=[text.normalise(reply) for reply in replies])
    distinct = sorted({*post_texts, *replies})
    vectors = dict(zip(distinct, encoder.encode(distinct), strict=True))  # once, in one batch
    characters = text.CharacterVectors([reply for post in posts for reply in post.replies])
    table, reasons = [], {}
    for (temperature, post_id), part in scored.groupby(["temperature", "post_id"], sort=False, dropna=False):
        row = Row({"prompt_id": post_id, "temperature": temperature, "n_samples": len(part)}, reasons)
        same = scored["temperature"].eq(temperature) | pd.isna(temperature)
        _fill(row, part, post_of[post_id], vectors, characters, settings, thresholds, leave_one_out)
        elsewhere = set(scored.loc[same & scored["post_id"].ne(post_id), "form"])
        row["repeated_elsewhere"] = part["form"].isin(elsewhere).mean()
        table.append(row)
    result = pd.DataFrame(table).sort_values(KEYS, kind="stable", ignore_index=True)
    result.attrs["reasons"] = {
        name: "; ".join(f"{why} ({n} of {len(table)} sets)" for why, n in sorted(found.items()))
        for name, found in sorted(reasons.items())}
    return result


class Row(dict):
    """One row of the table; `tries` stores NaN and notes the reason where a metric is undefined for these
    replies."""

    def __init__(self, values: dict, reasons: dict[str, Counter]):
        super().__init__(values)
        self.reasons = reasons

    def tries(self, name: str, metric: Callable, *args) -> None:
        try:
            self[name] = float(metric(*args))
        except metrics.Undefined as error:
            self[name] = np.nan
            self.reasons.setdefault(name, Counter())[str(error)] += 1


def _fill(row: Row, part, post, vectors, characters, settings, thresholds, leave_one_out) -> None:
    replies, judged, rewarded = list(part["reply"]), part["judge"].to_numpy(), part["reward"].to_numpy()
    n = len(replies)
    row["judge_mean"], row["reward_mean"] = judged.mean(), rewarded.mean()
    for q, threshold in thresholds.items():
        passed = int((judged >= threshold).sum())
        for k in curve_ks(settings):
            row.tries(f"pass@{k}_q{q:g}", metrics.pass_at_k, n, passed, k)
    for k in curve_ks(settings):
        row.tries(f"max@{k}", metrics.max_at_k, judged, k)  # oracle: chosen by the judge itself
        row.tries(f"best@{k}", metrics.best_of_k, rewarded, judged, k)  # chosen by the trained reward

    embedded = np.stack([vectors[reply] for reply in replies]).astype(np.float64)
    cosine = embedded @ embedded.T
    row.tries("diversity", metrics.mean_pairwise_distance, cosine)
    row.tries("diversity_tfidf", metrics.mean_pairwise_distance, characters.similarity(replies))
    size = min(SET_SIZE, settings.samples)
    row.tries("vendi", _vendi_of_sets, cosine, size, _rng(settings))
    row.tries("self_bleu", text.self_bleu, replies, size - 1, _rng(settings))
    row.tries("distinct_1", text.distinct_n, replies, 1, TOKEN_BUDGET, _rng(settings))
    row.tries("distinct_2", text.distinct_n, replies, 2, TOKEN_BUDGET, _rng(settings))
    row.tries("duplicates", text.duplicate_rate, replies)
    row.tries("copy_rate", text.copy_rate, post.text, replies)
    row.tries("rouge_l", _rouge_l, replies, list(post.replies), leave_one_out)
    row["relevance"] = float((embedded @ vectors[post.text]).mean())
    row["length_words"] = np.mean([len(text.words(reply)) for reply in replies])
    row.tries("length_tokens", _known, part["tokens"], "not counted in the model's tokens")
    row.tries("truncated", _known, part["truncated"], "people have no token limit")


def curve_ks(settings: EvaluationConfig) -> list[int]:
    """The reported k and the powers of two up to the number of samples, for curves over k."""
    return sorted({*settings.ks, *(2**i for i in range(settings.samples.bit_length()))})


def _rng(settings: EvaluationConfig) -> np.random.Generator:
    return np.random.default_rng(settings.seed)  # afresh for every set: neighbours must not matter


def _vendi_of_sets(cosine: np.ndarray, size: int, rng: np.random.Generator, draws: int = 50) -> float:
    """Vendi score / size, mean over drawn sets of `size` replies: from 1/size (all equal) to 1 (all
    orthogonal)."""
    if len(cosine) < max(size, 2):
        raise metrics.Undefined(f"fewer than {max(size, 2)} replies")
    picks = rng.permuted(np.tile(np.arange(len(cosine)), (draws, 1)), axis=1)[:, :size]
    return float(metrics.vendi(cosine[picks[:, :, None], picks[:, None, :]]).mean() / size)


def _rouge_l(replies: list[str], references: list[str], leave_one_out: bool) -> float:
    others = [references] * len(replies)
    if leave_one_out:
        others = [references[:i] + references[i + 1:] for i in range(len(replies))]
    return float(np.mean([text.rouge_l(reply, rest) for reply, rest in zip(replies, others, strict=True)]))


def _known(values: pd.Series, reason: str) -> float:
    if values.isna().any():
        raise metrics.Undefined(reason)
    return float(values.astype(float).mean())


def _finite(scorer: Scorer, posts: list[str], replies: list[str], name: str) -> np.ndarray:
    values = np.asarray(scorer(posts, replies), dtype=float)
    if values.shape != (len(replies),) or not np.isfinite(values).all():
        raise ValueError(f"{name}: expected {len(replies)} finite scores, found shape {values.shape} "
                         f"with {int((~np.isfinite(values)).sum())} that are not")
    return values


def summary(table: pd.DataFrame, thresholds: dict[float, float]) -> dict:
    """What metrics.json holds: means over prompts per temperature ("human" for people), a reason for each
    null."""
    names = [name for name in table if name not in (*KEYS, "n_samples")]
    reasons = table.attrs.get("reasons", {})
    means = {}
    for temperature, part in table.groupby("temperature", dropna=False):
        mean = part[names].mean()  # over the prompts that define the metric; `reasons` counts the others
        means["human" if pd.isna(temperature) else f"T{temperature:g}"] = {
            name: float(mean[name]) if np.isfinite(mean[name]) else {"value": None, "reason": reasons[name]}
            for name in names}
    return {"prompts": int(table["prompt_id"].nunique()), "samples": float(table["n_samples"].mean()),
            "set_size": SET_SIZE, "token_budget": TOKEN_BUDGET, "self_bleu": text.bleu_signature(),
            "mean": means, "undefined": reasons,
            "thresholds": {f"q{q:g}": value for q, value in thresholds.items()}}


def save(table: pd.DataFrame, folder: Path, thresholds: dict[float, float], **more: dict) -> None:
    """per_prompt.csv (six significant digits) and metrics.json, with `more` sections, in `folder`."""
    content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    atomic_write(Path(folder) / "per_prompt.csv", content)
    write_json(Path(folder) / "metrics.json", summary(table, thresholds) | more)
