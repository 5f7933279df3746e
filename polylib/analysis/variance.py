"""Where scores vary (runs, posts, runs x posts), and how many runs and posts a claim would need.

A matrix of runs x posts is a crossed design: every run answers every post. Variances come from the mean squares
(method of moments; Searle, Casella and McCulloch 1992, ch. 4), which needs no normality and has the right mean even at
three runs; with three runs it is also noisy, so a planned number is a guide and no promise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from polylib import stats
from polylib.analysis.results import Results
from polylib.config import UserError
from polylib.names import METRICS

MOST = 50  # runs; more is "over"


@dataclass(frozen=True)
class Components:
    """Variances of one value: between runs, posts, and runs x posts with the replies' scatter of a mean. Negative
    estimates are kept: they say that the true value is near 0."""

    seed: float
    prompt: float
    interaction: float


def components(y: np.ndarray) -> Components:
    """y (S, P) means, without NaN. ValueError below 2 runs or 2 posts."""
    if min(y.shape) < 2:
        raise ValueError(f"variances need 2 or more runs and posts, found {y.shape}")
    s, p = y.shape
    runs, posts = y.mean(axis=1), y.mean(axis=0)
    residual = y - runs[:, None] - posts + y.mean()
    ms_seed, ms_prompt = p * runs.var(ddof=1), s * posts.var(ddof=1)
    ms_cell = (residual**2).sum() / ((s - 1) * (p - 1))
    return Components(
        float((ms_seed - ms_cell) / p), float((ms_prompt - ms_cell) / s), float(ms_cell)
    )


@dataclass(frozen=True)
class Design:
    """Variances that matter to a difference of two methods over the same posts: between runs of one method, posts x
    method, and what is left in a cell (runs x posts and the replies' scatter of a mean), all at least 0."""

    seed: float
    by_prompt: float
    residual: float

    def error(self, seeds: int, prompts: int) -> float:
        """True standard error of the difference of two methods' means."""
        return float(
            np.sqrt(
                2 * self.seed / seeds
                + self.by_prompt / prompts
                + 2 * self.residual / (seeds * prompts)
            )
        )


def design(a: np.ndarray, b: np.ndarray) -> Design:
    """The design that two methods' values (S, P) show; runs and residuals averaged over both."""
    parts, difference = [components(a), components(b)], components(a - b)
    seed, residual = (
        np.mean([getattr(c, name) for c in parts]) for name in ("seed", "interaction")
    )
    return Design(max(float(seed), 0.0), max(difference.prompt, 0.0), max(float(residual), 0.0))


def power(
    d: Design, effect: float, seeds: int, prompts: int, alpha: float = 0.05, draws: int = 4000
) -> float:
    """Chance that the claim about the method (`stats.method_claim`, unpaired runs) finds `effect`: averaged over the
    standard errors and degrees of freedom that such a study would estimate (chi-square draws, always the same ones), as
    at three runs they scatter too much for a formula in their means. NaN below 2 runs or posts."""
    if seeds < 2 or prompts < 2:
        return np.nan
    run = (d.seed + d.residual / prompts) / seeds
    post = (d.by_prompt + 2 * d.residual / seeds) / prompts
    true = d.error(seeds, prompts)
    if true < 1e-12:
        return 1.0 if effect else alpha
    rng = np.random.default_rng(0)
    parts = [run * rng.chisquare(seeds - 1, draws) / (seeds - 1) for _ in range(2)]
    parts.append(post * rng.chisquare(prompts - 1, draws) / (prompts - 1))
    seen = sum(parts)
    df = seen**2 / sum(
        v**2 / k for v, k in zip(parts, (seeds - 1, seeds - 1, prompts - 1), strict=True)
    )
    reach = scipy_stats.t.ppf(1 - alpha / 2, df) * np.sqrt(seen)
    return float(
        (
            scipy_stats.norm.sf((reach - effect) / true)
            + scipy_stats.norm.cdf((-reach - effect) / true)
        ).mean()
    )


def runs_needed(
    d: Design, effect: float, prompts: int, target: float = 0.8, most: int = MOST
) -> float:
    """The fewest runs a method, 2 to `most`, that find `effect` at `prompts` posts with `target` power; NaN where
    `most` do not: then posts are what is missing."""
    return next(
        (float(s) for s in range(2, most + 1) if power(d, effect, s, prompts) >= target), np.nan
    )


def sentence(results: Results, metric: str, effects: tuple[float, ...] = (0.05, 0.1, 0.2)) -> str:
    """How many runs a method find each of `effects`, in the metric's unit, at 80 % power with this study's posts (those
    that every cell defines), by the design of a comparison with SFT, averaged over methods. UserError at one run or one
    method: nothing varies between runs that are one."""
    if min(len(results.cfg.seeds), len(results.cfg.methods)) < 2:
        raise UserError(
            f"study {results.paths.study}: variances between runs need two runs of two methods; add them "
            "to the preset"
        )
    cells = results.cells(metric)
    names = ["sft", *results.trained]
    values = np.array([stats.matrix(cells, name)[2] for name in names])
    sft, *others = values[..., np.isfinite(values).all(axis=(0, 1))]
    designs = [list(vars(design(y, sft)).values()) for y in others]
    found, posts = Design(*np.mean(designs, axis=0)), sft.shape[1]
    said = []
    for effect in effects:
        needed = runs_needed(found, effect, posts)
        said.append(f"{effect:g} with {f'over {MOST}' if np.isnan(needed) else f'{needed:g}'}")
    return (
        f"At 80 % power and {posts} posts a difference in {METRICS[metric]} is found: {', '.join(said)} "
        "runs a method"
    )
