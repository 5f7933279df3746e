"""Is the reward worth optimising? Best-of-n from the untrained policy answers before any training is paid for.

    table = preflight(replies, posts, reward, judge)       # replies: B lists of N samples of the SFT model
    picture(table, note)                                   # reward and judge against n
    table.attrs["line"]                                    # one printable line

The reward picks the best of n samples; the judge, which it never met, scores the pick. If the judge's score falls
as n grows, the reward is over-optimised by choice alone (Gao et al. 2023, arXiv 2210.10760): training will find the
same replies. KL from the sampled policy is log n - (n-1)/n, an upper bound that is nearly reached when no two samples
are alike (Beirami et al. 2024).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from polylib.evaluation.metrics import best_of_k
from polylib.evaluation.stats import t_interval
from polylib.evaluation.style import STYLE, Picture, canvas, finish

Scorer = Callable[[list[str], list[str]], np.ndarray]
NS = (1, 2, 4, 8, 16, 32, 64)
BOOTSTRAP = 1000
PROXY, GOLD = "#D55E00", "#0072B2"  # the reward that is optimised, the judge that is not


def preflight(replies_by_post: list[list[str]], posts: list[str], reward: Scorer, judge: Scorer,
              ns: Iterable[int] = NS, seed: int = 0) -> pd.DataFrame:
    """n, kl, proxy, proxy_lo, proxy_hi, judge, judge_lo, judge_hi: expected scores of the reward's best of n.

    replies_by_post: B lists of N samples each; `ns` above N are left out. Expectations are over all subsets of n of
    the N samples (exact weights, no resampling noise); intervals are 95 % bootstraps over posts. attrs: `flagged`,
    `line`, `reasons`, and `fit`: {proxy, judge: (alpha, beta)} of R = d (alpha - beta d), d = sqrt(KL), gains over
    n = 1. flagged: the judge falls at the end (see `falls`). ValueError for unequal lists or fewer than 2 posts."""
    size = {len(replies) for replies in replies_by_post}
    if len(size) != 1 or len(replies_by_post) != len(posts) or len(posts) < 2:
        raise ValueError(f"{len(posts)} posts with {sorted(size)} samples each: needs 2 posts, all with equally many")
    n_max = size.pop()
    ns = [n for n in sorted({*ns, 1}) if n <= n_max]
    flat = [text for replies in replies_by_post for text in replies]
    under = [post for post in posts for _ in range(n_max)]
    proxy, gold = (np.asarray(f(under, flat), dtype=float).reshape(len(posts), n_max) for f in (reward, judge))
    curves = {name: np.array([[best_of_k(p, v, n) for n in ns] for p, v in zip(proxy, values)])
              for name, values in (("proxy", proxy), ("judge", gold))}
    kl = np.log(ns) - (np.array(ns) - 1) / np.array(ns)
    table = pd.DataFrame({"n": ns, "kl": kl})
    for name, curve in curves.items():
        table[name] = curve.mean(0)
        table[f"{name}_lo"], table[f"{name}_hi"] = _bootstrap(curve, seed)
    reasons = falls(ns, curves["judge"], seed)
    fit = {name: fit_bon(kl, curve.mean(0) - curve.mean(0)[0]) for name, curve in curves.items()}
    first, last = table.iloc[0], table.iloc[-1]
    line = (f"best of {ns[-1]} by the reward: reward {first['proxy']:+.2f} to {last['proxy']:+.2f}, "
            f"judge {first['judge']:+.2f} to {last['judge']:+.2f}; {'; '.join(reasons) or 'the judge does not fall'}")
    table.attrs.update(flagged=bool(reasons), reasons=reasons, fit=fit, line=line)
    return table


def falls(ns: list[int], judge: np.ndarray, seed: int = 0) -> list[str]:
    """Reasons to say that the judge's curves (B posts, len(ns)) fall at the end; empty if none.

    Either the slope per doubling of n over the last third of the doublings lies below 0 beyond its 95 % interval
    over posts, or the end lies below the peak. Where the peak is, one half of the posts says for the other:
    the highest point of a noisy curve is above its end by selection alone."""
    doublings = np.log2(ns)
    reasons = []
    late = doublings >= doublings[-1] * 2 / 3 - 1e-9
    if late.sum() >= 2:
        x = doublings[late] - doublings[late].mean()
        mean, low, high = t_interval(judge[:, late] @ x / (x @ x))
        if high < 0:
            reasons.append(f"the judge falls by {-mean:.3f} [{-high:.3f}, {-low:.3f}] a doubling at the end")
    order = np.random.default_rng(seed).permutation(len(judge))
    drop = np.empty(len(judge))
    for here, there in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        drop[here] = judge[here, judge[there].mean(0).argmax()] - judge[here, -1]
    mean, low, high = t_interval(drop)
    if low > 0:
        reasons.append(f"its end is {mean:.3f} [{low:.3f}, {high:.3f}] below its peak")
    return reasons


def fit_bon(kl: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """(alpha, beta) of gain = d (alpha - beta d), d = sqrt(kl): Gao et al. 2023, equation 1, by least squares; NaN
    with fewer than two points above 0."""
    d = np.sqrt(kl)
    if (d > 0).sum() < 2:
        return float("nan"), float("nan")
    return tuple(float(c) for c in np.linalg.lstsq(np.stack([d, -d**2], axis=1), gain, rcond=None)[0])


def picture(table: pd.DataFrame, note: str, columns: int = 2) -> Picture:
    """Reward (dashed) and judge (solid) of the reward's best of n, with 95 % bands and Gao's curve (dotted). What a
    policy can win is where the judge still rises."""
    with rc_context(STYLE):
        figure, axes = canvas(*((1, 2) if columns == 2 else (2, 1)), 2.7 if columns == 2 else 4.6, columns)
        styles = {"proxy": (PROXY, "--", "o", "reward (picks)"), "judge": (GOLD, "-", "s", "judge (scores the pick)")}
        for ax, (name, (color, dash, marker, _)) in zip(axes.flat, styles.items(), strict=True):
            ax.fill_between(table["n"], table[f"{name}_lo"], table[f"{name}_hi"], color=color, alpha=0.18, lw=0)
            ax.plot(table["n"], table[name], color=color, linestyle=dash, marker=marker, ms=4)
            alpha, beta = table.attrs["fit"][name]
            d = np.sqrt(table["kl"].to_numpy())
            ax.plot(table["n"], table[name].iloc[0] + d * (alpha - beta * d), color="#333333", linestyle=":", lw=1)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_locator(FixedLocator(table["n"]))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(table["n"], [str(n) for n in table["n"]])
            ax.set(xlabel="samples the reward picks from, n", ylabel={"proxy": "reward", "judge": "judge score"}[name])
            ax.margins(y=0.12)
        handles = [Line2D([], [], color=c, linestyle=dash, marker=m, ms=4, label=label)
                   for c, dash, m, label in styles.values()]
        handles.append(Line2D([], [], color="#333333", linestyle=":", lw=1, label="d(α − βd), d = √KL"))
        finish(figure, f"{note} Bands: 95 %, over posts. {table.attrs['line'].capitalize()}.", columns, extra=handles)
    return Picture("preflight", figure, table)


def _bootstrap(curve: np.ndarray, seed: int) -> np.ndarray:
    """(2, len(ns)): 95 % percentiles of the mean over posts drawn with replacement."""
    rng = np.random.default_rng(seed)
    return np.quantile(curve[rng.integers(len(curve), size=(BOOTSTRAP, len(curve)))].mean(1), [0.025, 0.975], axis=0)
