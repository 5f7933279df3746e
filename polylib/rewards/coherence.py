"""Coherence: would the base model expect this reply here, and more so than under no post at all?

    pmi     = (log p(reply | post) - log p(reply | empty post)) / tokens     does it answer *this* post?
    fluency =  log p(reply | post) / tokens                                  is it a sentence at all?

The first is pointwise mutual information (Li et al. 2016, arXiv 1510.03055), the ranking that dialogue models use
against replies that fit everywhere; it alone is fooled by shuffled words, which lose likelihood on both sides. Both
are compared with people's replies of the same length: their mean and spread are fitted on the log of the number of
tokens, so neither long nor short wins by itself. Beyond what nearly all people reach a part falls again: a reply
more predictable than that is a copy of the post or a formula. The weaker part counts, so fluent text about something
else and a word salad on the point both lose (on validation threads of the corpus the minimum separates shuffled words,
hot samples and a sentence that fits everywhere better than any weighted mean of the two, and replies of other posts
as well). What it cannot see: two or three words of agreement are likely after any post and pass; the heuristic's
specificity is there for them. The model is the untrained one, the same for all policies, so a policy cannot raise
the score by changing itself.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from polylib import run
from polylib.config import UserError
from polylib.models.likelihood import Likelihood, shared

EMPTY = ""  # the neutral post
PARTS = ("pmi", "fluency")
FIT = 300  # human replies behind the scales: standard errors of 6 %
FLOOR = -4.0  # sd; what is nonsense already cannot be more so
TOP = 0.95  # quantile of people's replies from which a part turns down


class Coherence:
    """reward(posts, replies) -> (N,) float64, mean 0 and sd 1 over the human replies it was fitted to.

    `cfg_model` is the model section of a preset (its base model, no adapters), loaded at the first call."""

    name = "coherence"

    def __init__(self, cfg_model, likelihood: Likelihood | None = None):
        self.likelihood = likelihood or shared(cfg_model)
        self.source, self.scales = cfg_model.source, {}

    def fit(self, rows: pd.DataFrame, seed: int) -> "Coherence":
        """Length curves and scales from at most FIT human replies (tweet, reply) drawn with `seed`.
        Raises UserError for fewer than 10 replies."""
        if len(rows) < 10:
            raise UserError(
                f"coherence: {len(rows)} human replies are too few to fit its scales; 10 are needed"
            )
        rows = rows.sample(min(FIT, len(rows)), random_state=seed)
        raw = self._raw(list(rows["tweet"]), list(rows["reply"]))
        log_tokens = np.log(raw["tokens"].to_numpy())
        shortest, longest = np.quantile(log_tokens, [0.02, 0.98])
        self.scales = {"shortest": float(shortest), "longest": float(longest)}
        length = self._length(raw)
        for name in PARTS:
            value = raw[name].to_numpy()
            mean = _line(length, value)
            gap = np.abs(value - np.polyval(mean, length))
            spread = _line(
                length, np.log(np.maximum(gap, 1e-3))
            )  # E log|residual| is log sd less a constant
            scaled = (value - np.polyval(mean, length)) / np.exp(np.polyval(spread, length))
            spread[1] += np.log(max(scaled.std(), 1e-6))
            scaled = (value - np.polyval(mean, length)) / np.exp(np.polyval(spread, length))
            self.scales[name] = {
                "mean": mean,
                "spread": spread,
                "top": float(np.quantile(scaled, TOP)),
            }
        total = self._total(self._parts(raw))
        self.scales |= {"total_mean": float(total.mean()), "total_sd": float(total.std()) or 1.0}
        return self

    def __call__(self, posts: list[str], replies: list[str]) -> np.ndarray:
        return self.components(posts, replies)["coherence"].to_numpy()

    def components(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """Columns `coherence`, `pmi`, `fluency`, the parts in sd of human replies of the same length, and the raw
        `pmi_nats`, `fluency_nats` a token."""
        raw = self._raw(posts, replies)
        parts = self._parts(raw)
        total = (self._total(parts) - self.scales["total_mean"]) / self.scales["total_sd"]
        return pd.DataFrame(
            {"coherence": total, **parts, "pmi_nats": raw["pmi"], "fluency_nats": raw["fluency"]}
        ).reset_index(drop=True)

    def save(self, folder: Path) -> None:
        run.write_json(
            Path(folder) / "coherence.json", {"source": self.source, "scales": self.scales}
        )

    def _raw(self, posts: list[str], replies: list[str]) -> pd.DataFrame:
        """Columns pmi, fluency (nats a token) and tokens."""
        given, tokens = (
            np.array(x, dtype=float) for x in self.likelihood(list(posts), list(replies))
        )
        alone = np.array(self.likelihood([EMPTY] * len(replies), list(replies))[0], dtype=float)
        return pd.DataFrame(
            {"pmi": (given - alone) / tokens, "fluency": given / tokens, "tokens": tokens}
        )

    def _length(self, raw: pd.DataFrame) -> np.ndarray:
        return np.clip(
            np.log(raw["tokens"].to_numpy()), self.scales["shortest"], self.scales["longest"]
        )

    def _parts(self, raw: pd.DataFrame) -> dict[str, np.ndarray]:
        length, parts = self._length(raw), {}
        for name in PARTS:
            s = self.scales[name]
            z = (raw[name].to_numpy() - np.polyval(s["mean"], length)) / np.exp(
                np.polyval(s["spread"], length)
            )
            parts[name] = np.maximum(np.where(z > s["top"], 2 * s["top"] - z, z), FLOOR)
        return parts

    def _total(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        return np.minimum(*(parts[name] for name in PARTS))


def load(folder: Path, cfg_model) -> Coherence:
    """What `save` wrote. UserError if it was fitted with another model."""
    file = Path(folder) / "coherence.json"
    stored, reward = json.loads(file.read_text()), Coherence(cfg_model)
    if stored["source"] != cfg_model.source:
        raise UserError(
            f"{file}: fitted with {stored['source']}, but model.source is {cfg_model.source}; run stage "
            "reward_model again"
        )
    reward.scales = stored["scales"]
    return reward


def _line(x: np.ndarray, y: np.ndarray) -> list[float]:
    """[slope, intercept] of least squares; slope 0 where x does not vary."""
    return [float(c) for c in np.polyfit(x, y, 1)] if np.ptp(x) > 1e-9 else [0.0, float(y.mean())]
