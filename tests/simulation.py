"""How often do our procedures find what is not there? Simulated studies with the variances of our own runs.

    table = error_rates(settings(results))        # setting, procedure, rate, error

Every simulated study has two or more equal methods (for TOST: methods exactly the margin apart), the number of runs and
posts of the real one, and Gaussian effects of post, run, post x method and what is left, in the sizes that
`variance.design` finds; besides, runs that vary far more and far less, since three runs do not tell well how much they
vary. What is reported must stay at 5 %; what papers report does not. One generator per setting: the same table every
time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats as ss

from polylib import stats
from polylib.analysis import effects, exact
from polylib.analysis.results import UNSEEDED, Results
from polylib.analysis.variance import components, design
from polylib.config import UserError

REPORTED = (
    "method claim",
    "Holm over methods",
    "Benjamini-Hochberg over methods",
    "TOST at the margin",
    "matched claim",
)
ALPHA = 0.05


@dataclass(frozen=True)
class Setting:
    """Variances (not SDs) of one metric: runs, posts, post x method, cell residual of a mean over `replies` replies,
    and, where known, one reply within its cell (else NaN)."""

    name: str
    seeds: int
    prompts: int
    seed: float
    prompt: float
    by_prompt: float
    residual: float
    within: float
    replies: int
    methods: int = 4


# The judge and semantic-diversity columns of the bundled laptop study, rounded, for a checkout without results; and
# SFT's means (diversity, judge) over temperature there.
CONSTANTS = (
    Setting("judge_mean", 3, 36, 0.0021, 0.0127, 0.0013, 0.0213, 0.23, 10),
    Setting("diversity", 3, 36, 0.00003, 0.0022, 0.0005, 0.0021, np.nan, 10),
)
CURVE = np.array([[0.692, 0.334], [0.775, 0.351], [0.816, 0.283], [0.845, 0.129]])


def settings(
    results: Results,
    metrics: Iterable[str] = ("judge_mean", "diversity"),
    spread: Iterable[float] = (0.0, 1.0, 5.0, 25.0),
) -> list[Setting]:
    """Of each metric, the mean design of all methods against SFT, with the variance between runs multiplied by each of
    `spread` (a metric whose runs showed none gets a tenth of the residual instead). The scatter of one reply is read
    off best-of-two: a Gaussian's is E max - mean = SD / sqrt(pi)."""
    found = []
    methods = [name for name in results.cfg.methods if name not in UNSEEDED]
    if len(results.cfg.seeds) < 2 or len(methods) < 2:
        raise UserError(
            f"study {results.paths.study}: error rates need two runs of two methods to take variances from"
        )
    for metric in metrics:
        cells = results.cells(metric)
        values = {name: stats.matrix(cells, name)[2] for name in methods}
        keep = np.isfinite(np.concatenate(list(values.values()))).all(axis=0)
        values = {name: y[:, keep] for name, y in values.items()}
        designs = [design(y, values["sft"]) for name, y in values.items() if name != "sft"]
        seed, by_prompt, residual = (
            float(np.mean([getattr(d, k) for d in designs]))
            for k in ("seed", "by_prompt", "residual")
        )
        within = np.nan
        if metric == "judge_mean" and {"max@1", "max@2"} <= set(results.columns):
            ones, twos = (stats.matrix(results.cells(f"max@{k}"), "sft")[2] for k in (1, 2))
            within = float(np.pi * np.nanmean((twos - ones) ** 2))
        replies = int(
            results.frames["sft", results.cfg.seeds[0], results.cfg.sampling.temperature][
                "n_samples"
            ].max()
        )
        prompt = max(components(values["sft"]).prompt, 0.0)
        own = Setting(
            metric,
            len(results.cfg.seeds),
            int(keep.sum()),
            seed or residual / 10,
            prompt,
            by_prompt,
            residual,
            within,
            replies,
            len(methods) - 1,
        )
        found += [
            replace(
                own, name=metric if s == 1 else f"{metric}, run variance x {s:g}", seed=own.seed * s
            )
            for s in spread
        ]
    return found


def draw(
    setting: Setting, studies: int, rng: np.random.Generator, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(SFT (N, S, P), methods (N, M, S, P)): equal in truth, methods `shift` above SFT."""

    def normal(variance: float, *shape: int) -> np.ndarray:
        return np.sqrt(variance) * rng.standard_normal((studies, *shape))

    s, p, m = setting.seeds, setting.prompts, setting.methods
    all_ = (
        normal(setting.prompt, 1, 1, p)
        + normal(setting.seed, m + 1, s, 1)
        + normal(setting.residual, m + 1, s, p)
    )
    # half of post x method belongs to SFT, which every comparison shares
    all_ = all_ + normal(setting.by_prompt / 2, m + 1, 1, p)
    return all_[:, 0], all_[:, 1:] + shift


def error_rates(rows: Iterable[Setting], studies: int = 2000, seed: int = 0) -> pd.DataFrame:
    """setting, procedure, reported, seeds, prompts, rate, error (standard error of the rate), studies.

    `reported` marks what this project's tables use. Exact tests on runs cannot reach .05 at three runs, so theirs is
    0; `as asked` pools values in a Mann-Whitney test, and prompt-level tests are read as claims about methods, which
    is what they are not."""
    out = []
    for number, setting in enumerate(rows):
        rng = np.random.default_rng([seed, number])
        for procedure, (hits, n) in _rates(setting, studies, rng).items():
            rate = hits / n
            out.append(
                {
                    "setting": setting.name,
                    "procedure": procedure,
                    "reported": procedure in REPORTED,
                    "seeds": setting.seeds,
                    "prompts": setting.prompts,
                    "rate": rate,
                    "error": np.sqrt(rate * (1 - rate) / n),
                    "studies": n,
                }
            )
    return pd.DataFrame(out)


def _rates(setting: Setting, studies: int, rng: np.random.Generator) -> dict[str, tuple[int, int]]:
    sft, methods = draw(setting, studies, rng)
    first, rates, some = methods[:, 0], {}, min(studies, 400)
    if setting.seeds > 1:
        p = np.stack(
            [_p(*stats.two_way_t(y - sft, (y, sft))) for y in np.moveaxis(methods, 1, 0)], axis=1
        )
        rates["method claim"] = int((p[:, 0] < ALPHA).sum()), studies
        for name, rule in (
            ("Holm over methods", "holm"),
            ("Benjamini-Hochberg over methods", "fdr_bh"),
        ):
            possible = p[p.min(axis=1) < ALPHA]  # an adjusted p is never below its own
            hits = sum((stats.adjust(row, rule) < ALPHA).any() for row in possible)
            rates[name] = int(hits), studies
        # a margin of four standard errors: smaller, and the test could not declare anything kept anyway
        margin = 4 * np.sqrt(
            2 * setting.seed / setting.seeds
            + (setting.by_prompt + 2 * setting.residual / setting.seeds) / setting.prompts
        )
        effect, error, df = stats.two_way_t(first + margin - sft, (first, sft))
        kept = (ss.t.sf((effect + margin) / error, df) < ALPHA) & (
            ss.t.cdf((effect - margin) / error, df) < ALPHA
        )
        rates["TOST at the margin"] = int(kept.sum()), studies
        few = min(studies, 25)  # three runs cannot reach .05 in any study, so a few show it
        means = [y[:few].mean(axis=-1) for y in (first, sft)]
        rates["signs of runs, exact"] = (
            sum(stats.exact_test(a - b)[0] < ALPHA for a, b in zip(*means)),
            few,
        )
        rates["ranks of runs, exact"] = (
            sum(exact.mann_whitney_runs(a, b)[0] < ALPHA for a, b in zip(*means)),
            few,
        )
    by_prompt = (first - sft).mean(axis=1)
    rates["paired t over posts (these checkpoints), read as a claim about methods"] = (
        int((ss.ttest_1samp(by_prompt, 0, axis=1).pvalue < ALPHA).sum()),
        studies,
    )
    rates["Mann-Whitney as asked, means of posts and runs"] = _pooled(first[:some], sft[:some])
    if np.isfinite(setting.within):
        n, g = setting.replies, setting.within
        # means already hold the replies' scatter: each cell's replies are drawn around theirs, centred
        replies = []
        for y in (first[:some], sft[:some]):
            noise = np.sqrt(g) * rng.standard_normal((*y.shape, n))
            replies.append(y[..., None] + noise - noise.mean(axis=-1, keepdims=True))
        rates["Mann-Whitney as asked, replies"] = _pooled(*replies)
    return rates


def _pooled(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    p = ss.mannwhitneyu(
        a.reshape(len(a), -1), b.reshape(len(b), -1), axis=1, method="asymptotic"
    ).pvalue
    return int((p < ALPHA).sum()), len(p)


def _p(effect: np.ndarray, error: np.ndarray, df: np.ndarray) -> np.ndarray:
    return 2 * ss.t.sf(abs(effect / error), df)


def matched_rates(
    x: Setting,
    y: Setting,
    curve: np.ndarray,
    studies: int = 1000,
    seed: int = 0,
    share: float = 0.5,
) -> pd.DataFrame:
    """Rows as in `error_rates` for "better at equal ...": a method whose truth lies on SFT's curve (T, 2) of means,
    `share` of the way along a segment drawn at random. `matched claim` is what is reported; beside it the t test over
    the runs' distances alone. Studies where a run finds no match make no claim and count as no rejection."""
    rng = np.random.default_rng([seed, 1])
    temperatures, (s, p) = len(curve), (x.seeds, x.prompts)
    hits = np.zeros(2, int)
    for _ in range(studies):
        i = rng.integers(temperatures - 1)
        truth = (1 - share) * curve[i] + share * curve[i + 1]
        made = []
        for k, setting in enumerate((x, y)):
            post = np.sqrt(setting.prompt) * rng.standard_normal(p)
            run = np.sqrt(setting.seed) * rng.standard_normal(
                (s, 1)
            )  # one checkpoint at all temperatures
            own = np.sqrt(setting.seed) * rng.standard_normal((s, 1))
            theirs, mine = (
                np.sqrt(setting.by_prompt / 2) * rng.standard_normal(shape)
                for shape in ((temperatures, 1, p), (1, p))
            )
            left, rest = (
                np.sqrt(setting.residual) * rng.standard_normal(shape)
                for shape in ((temperatures, s, p), (s, p))
            )
            made.append(
                (
                    curve[:, k, None, None] + post + run + theirs + left,
                    truth[k] + post + own + mine + rest,
                )
            )
        d, _ = effects.matched_differences(made[0][0], made[1][0], made[0][1], made[1][1])
        if np.isfinite(d).all():
            hits += (
                stats.method_claim(d).p < ALPHA,
                ss.ttest_1samp(d.mean(axis=1), 0).pvalue < ALPHA,
            )
    rates = hits / studies
    return pd.DataFrame(
        [
            {
                "setting": f"{y.name} at equal {x.name}",
                "procedure": name,
                "reported": name in REPORTED,
                "seeds": s,
                "prompts": p,
                "rate": rate,
                "error": np.sqrt(rate * (1 - rate) / studies),
                "studies": studies,
            }
            for name, rate in zip(
                ("matched claim", "t over the runs' distances"), rates, strict=True
            )
        ]
    )
