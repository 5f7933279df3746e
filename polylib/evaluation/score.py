"""Generations in, one row of numbers per prompt and temperature out; people's replies through the same code.

    people = human_baseline.measure(validation_posts, judge, encoder)
    rated = score.rate(generations, test_posts, reward, judge, encoder, people)   # each reply, once
    table = score.score(rated, test_posts, encoder, cfg.evaluation, people)       # each prompt's set
    human = score.score(rated_people, test_posts, encoder, cfg.evaluation, people, leave_one_out=True)

Every metric belongs to one prompt's set of replies; nothing is pooled over prompts. What a set does not
define is NaN, and `table.attrs["reasons"]` says why and how often. `record.save` writes the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from polylib import metrics
from polylib.config import EvaluationConfig
from polylib.evaluation import failures, novelty, overlap, text
from polylib.evaluation.human_baseline import HumanBaseline, Scorer, finite

SET_SIZE = (
    4  # replies a set metric looks at: its value hangs on the number, and most human sets reach 4
)
TOKEN_BUDGET = 40  # words of distinct-n, for the same reason
# Two replies whose character TF-IDF has this cosine are of one kind. Chosen between two facts of people's replies to
# training and validation posts: of 5777 pairs under one post none is above .43, and a reply of six words or more that
# loses three words in ten stays above .63 in 99 of 100 cases.
SAME_KIND = 0.5
BLOCK = 16  # posts whose token states are in memory at once
KEYS = ["prompt_id", "temperature"]


def rate(
    generations: pd.DataFrame,
    posts: list,
    reward: Scorer,
    judge: Scorer,
    encoder,
    people: HumanBaseline,
) -> pd.DataFrame:
    """The table with what belongs to single replies: judge, reward, relevance (cosine to the post), bertscore
    against the nearest human reply (NaN where not defined), flags (names of `failures.RULES`).

    People (no temperature) are compared with the other replies to their post: `sample` is the place in
    `post.replies`. Raises ValueError when a scorer returns a number that is none."""
    rated, text_of = generations.reset_index(drop=True), {post.id: post.text for post in posts}
    texts, replies = [text_of[i] for i in rated["post_id"]], list(rated["reply"])
    rated["bertscore"] = _nearest_human(rated, posts, encoder)  # first: it embeds on the way
    distinct = sorted({*texts, *replies})
    vectors = dict(zip(distinct, encoder.encode(distinct).astype(np.float64), strict=True))
    rated["judge"] = finite(judge, texts, replies, "judge")
    rated["reward"] = finite(reward, texts, replies, "reward")
    rated["relevance"] = [
        float(vectors[reply] @ vectors[post]) for post, reply in zip(texts, replies, strict=True)
    ]
    rated["flags"] = pd.Series([None] * len(rated), dtype=object)
    for _, part in rated.groupby("temperature", dropna=False):
        found = failures.flags(
            [text_of[i] for i in part["post_id"]],
            list(part["reply"]),
            part["relevance"],
            part["truncated"],
            people.off_topic_below,
        )
        rated.loc[part.index, "flags"] = pd.Series(found, index=part.index, dtype=object)
    return rated


def _nearest_human(rated: pd.DataFrame, posts: list, encoder) -> np.ndarray:
    found = np.full(len(rated), np.nan)
    rows_of = rated.groupby("post_id").indices
    for start in range(0, len(posts), BLOCK):
        block = [post for post in posts[start : start + BLOCK] if post.id in rows_of]
        replies = {post.id: rated["reply"].to_numpy()[rows_of[post.id]] for post in block}
        states = encoder.token_states(
            [t for post in block for t in (*post.replies, *replies[post.id])]
        )
        for post in block:
            rows = rows_of[post.id]
            own = bool(rated["temperature"].isna().to_numpy()[rows].all())
            if own:  # people: put them in the order of the references
                rows = rows[np.argsort(rated["sample"].to_numpy()[rows], kind="stable")]
            mine = list(rated["reply"].to_numpy()[rows])
            found[rows] = overlap.bertscore(mine, list(post.replies), states, leave_one_out=own)
    return found


def score(
    rated: pd.DataFrame,
    posts: list,
    encoder,
    settings: EvaluationConfig,
    people: HumanBaseline,
    leave_one_out: bool = False,
) -> pd.DataFrame:
    """One row per (prompt_id, temperature): prompt_id, temperature, n_samples and the metrics.

    rated: what `rate` returned. References are all human replies of the post. leave_one_out: for people's own
    replies, temperature empty; what compares a reply with people leaves the reply itself out. k above the number of
    replies, and truncation of people, are NaN with reason."""
    post_of = {post.id: post for post in posts}
    scored = rated.assign(form=[text.normalise(reply) for reply in rated["reply"]]).sort_values(
        "sample", kind="stable"
    )
    distinct = sorted(set(scored["reply"]))
    vectors = dict(zip(distinct, encoder.encode(distinct).astype(np.float64), strict=True))
    characters = text.CharacterVectors([reply for post in posts for reply in post.replies])
    table, reasons = [], {}
    for (temperature, post_id), part in scored.groupby(
        ["temperature", "post_id"], sort=False, dropna=False
    ):
        row = Row(
            {"prompt_id": post_id, "temperature": temperature, "n_samples": len(part)}, reasons
        )
        same = scored["temperature"].eq(temperature) | pd.isna(temperature)
        _quality(row, part, settings, people)
        _variety(row, part, vectors, characters, settings, people)
        _likeness(row, part, post_of[post_id], leave_one_out)
        elsewhere = set(scored.loc[same & scored["post_id"].ne(post_id), "form"])
        row["repeated_elsewhere"] = part["form"].isin(elsewhere).mean()
        table.append(row)
    result = pd.DataFrame(table).sort_values(KEYS, kind="stable", ignore_index=True)
    result.attrs["reasons"] = {
        name: "; ".join(f"{why} ({n} of {len(table)} sets)" for why, n in sorted(found.items()))
        for name, found in sorted(reasons.items())
    }
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


def _quality(row: Row, part, settings, people) -> None:
    judged, rewarded, n = part["judge"].to_numpy(), part["reward"].to_numpy(), len(part)
    row["judge_mean"], row["reward_mean"] = judged.mean(), rewarded.mean()
    for q, threshold in people.thresholds(settings.judge_quantiles).items():
        passed = int((judged >= threshold).sum())
        for k in curve_ks(settings):
            row.tries(f"pass@{k}_q{q:g}", metrics.pass_at_k, n, passed, k)
    for k in curve_ks(settings):
        row.tries(f"max@{k}", metrics.max_at_k, judged, k)  # oracle: chosen by the judge itself
        row.tries(
            f"best@{k}", metrics.best_of_k, rewarded, judged, k
        )  # chosen by the trained reward


def _variety(row: Row, part, vectors, characters, settings, people) -> None:
    replies, judged, size = (
        list(part["reply"]),
        part["judge"].to_numpy(),
        min(SET_SIZE, settings.samples),
    )
    embedded = np.stack([vectors[reply] for reply in replies])
    cosine, wording = embedded @ embedded.T, characters.similarity(replies)
    good = (
        judged >= people.thresholds([min(settings.judge_quantiles)])[min(settings.judge_quantiles)]
    )
    row.tries("diversity", metrics.mean_pairwise_distance, cosine)
    row.tries("diversity_tfidf", metrics.mean_pairwise_distance, wording)
    row.tries("effective_diversity", novelty.effective_diversity, wording, good, SAME_KIND)
    row.tries(
        "vendi", lambda: metrics.vendi(_blocks(cosine, _sets(part, size, settings))).mean() / size
    )
    row.tries(
        "distinct_k",
        lambda: novelty.distinct_k(
            novelty.class_sizes(_blocks(wording, _sets(part, size, settings)), SAME_KIND)
        ),
    )
    row.tries("self_bleu", text.self_bleu, replies, size - 1, _rng(settings))
    for n in (1, 2):
        row.tries(f"distinct_{n}", text.distinct_n, replies, n, TOKEN_BUDGET, _rng(settings))
    row.tries("duplicates", text.duplicate_rate, replies)


def _likeness(row: Row, part, post, leave_one_out) -> None:
    replies, references = list(part["reply"]), list(post.replies)
    row.tries("copy_rate", text.copy_rate, post.text, replies)
    row.tries("rouge_l", _rouge_l, replies, references, leave_one_out)
    row.tries(
        "bertscore",
        _mean,
        part["bertscore"],
        "the encoder knows no token, or no human reply to compare with",
    )
    row["relevance"] = part["relevance"].mean()
    row["length_words"] = np.mean([len(text.words(reply)) for reply in replies])
    row.tries("length_tokens", _mean, part["tokens"], "not counted in the model's tokens")
    row.tries("truncated", _mean, part["truncated"], "people have no token limit")


def curve_ks(settings: EvaluationConfig) -> list[int]:
    """The reported k and the powers of two up to the number of samples, for curves over k."""
    return sorted({*settings.ks, *(2**i for i in range(settings.samples.bit_length()))})


def _rng(settings: EvaluationConfig) -> np.random.Generator:
    return np.random.default_rng(settings.seed)  # afresh for every set: neighbours must not matter


def _sets(part, size: int, settings: EvaluationConfig) -> np.ndarray:
    return novelty.sets(len(part), size, _rng(settings))


def _blocks(similarity: np.ndarray, picks: np.ndarray) -> np.ndarray:
    return similarity[picks[:, :, None], picks[:, None, :]]


def _rouge_l(replies: list[str], references: list[str], leave_one_out: bool) -> float:
    others = [references] * len(replies)
    if leave_one_out:
        others = [references[:i] + references[i + 1 :] for i in range(len(replies))]
    return float(
        np.mean([text.rouge_l(reply, rest) for reply, rest in zip(replies, others, strict=True)])
    )


def _mean(values: pd.Series, reason: str) -> float:
    """Over the replies that define it."""
    if values.isna().all():
        raise metrics.Undefined(reason)
    return float(values.astype(float).mean())
