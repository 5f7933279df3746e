"""Is the reward worth optimising? Best-of-n from the untrained policy answers before any training is paid for.

    table = preflight(replies, posts, reward, judge)       # replies: B lists of N samples of the SFT model
    table.attrs["line"]                                    # one printable line
    flights(results)                                       # all seeds of a study, from their preflight.csv

The reward picks the best of n samples; the judge, which it never met, scores the pick. If the judge's score falls
as n grows, the reward is over-optimised by choice alone (Gao et al. 2023, arXiv 2210.10760): training will find the
same replies. KL from the sampled policy is log n - (n-1)/n, an upper bound that is nearly reached when no two samples
are alike (Beirami et al. 2024).
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from polylib.config import UserError
from polylib.metrics import best_of_k
from polylib.stats import t_interval

NS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = ("n", "kl", "proxy", "proxy_lo", "proxy_hi", "judge", "judge_lo", "judge_hi", "falls")


def preflight(
    replies_by_post: list[list[str]],
    posts: list[str],
    reward: Callable,
    judge: Callable,
    ns: Iterable[int] = NS,
    seed: int = 0,
) -> pd.DataFrame:
    """n, kl, proxy, proxy_lo, proxy_hi, judge, judge_lo, judge_hi, falls: expected scores of the reward's best of n.

    replies_by_post: B lists of N samples each; `ns` above N are left out. Expectations are over all subsets of n of
    the N samples (exact weights, no resampling noise); intervals are 95 % t over posts (a percentile bootstrap over 8
    posts holds the truth in about 89 % of cases). falls: True beyond the judge's highest point, where `flagged`.
    attrs: `line`, `reasons`, and `flagged`: the judge falls at the end (see `falls`). ValueError for unequal lists or
    fewer than 2 posts."""
    size = {len(replies) for replies in replies_by_post}
    if len(size) != 1 or len(replies_by_post) != len(posts) or len(posts) < 2:
        raise ValueError(
            f"{len(posts)} posts with {sorted(size)} samples each: needs 2 posts, all with equally many"
        )
    n_max = size.pop()
    ns = [n for n in sorted({*ns, 1}) if n <= n_max]
    flat = [text for replies in replies_by_post for text in replies]
    under = [post for post in posts for _ in range(n_max)]
    proxy, gold = (
        np.asarray(f(under, flat), dtype=float).reshape(len(posts), n_max) for f in (reward, judge)
    )
    curves = {
        name: np.array([[best_of_k(p, v, n) for n in ns] for p, v in zip(proxy, values)])
        for name, values in (("proxy", proxy), ("judge", gold))
    }
    kl = np.log(ns) - (np.array(ns) - 1) / np.array(ns)
    table = pd.DataFrame({"n": ns, "kl": kl})
    for name, curve in curves.items():
        table[name] = curve.mean(0)
        table[f"{name}_lo"], table[f"{name}_hi"] = np.array(
            [t_interval(values)[1:] for values in curve.T]
        ).T
    reasons = falls(ns, curves["judge"], seed)
    table["falls"] = bool(reasons) & (table["n"] > table["n"][table["judge"].idxmax()])
    first, last = table.iloc[0], table.iloc[-1]
    line = (
        f"best of {ns[-1]} by the reward: reward {first['proxy']:+.2f} to {last['proxy']:+.2f}, "
        f"judge {first['judge']:+.2f} to {last['judge']:+.2f}; {'; '.join(reasons) or 'the judge does not fall'}"
    )
    table.attrs.update(flagged=bool(reasons), reasons=reasons, line=line)
    return table


def falls(ns: list[int], judge: np.ndarray, seed: int = 0) -> list[str]:
    """Reasons to say that the judge's curves (B posts or runs, len(ns)) fall at the end; empty if none.

    Either the slope per doubling of n over the last third of the doublings lies below 0 beyond its 95 % interval
    over the curves, or the end lies below the peak. Where the peak is, one half of the posts says for the other:
    the highest point of a noisy curve is above its end by selection alone."""
    doublings = np.log2(ns)
    reasons = []
    late = doublings >= doublings[-1] * 2 / 3 - 1e-9
    if late.sum() >= 2:
        x = doublings[late] - doublings[late].mean()
        mean, low, high = t_interval(judge[:, late] @ x / (x @ x))
        if high < 0:
            reasons.append(
                f"the judge falls by {-mean:.3f} [{-high:.3f}, {-low:.3f}] a doubling at the end"
            )
    order = np.random.default_rng(seed).permutation(len(judge))
    drop = np.empty(len(judge))
    for here, there in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        drop[here] = judge[here, judge[there].mean(0).argmax()] - judge[here, -1]
    mean, low, high = t_interval(drop)
    if low > 0:
        reasons.append(f"its end is {mean:.3f} [{low:.3f}, {high:.3f}] below its peak")
    return reasons


def flights(results) -> pd.DataFrame:
    """preflight.csv of every seed of GRPO, with a column `seed`. UserError for a file that is missing, lacks a column
    or has other n than the first."""
    parts = {}
    for seed in results.cfg.seeds:
        file = results.paths.results("grpo", seed) / "preflight.csv"
        if not file.is_file():
            raise UserError(f"{file}: missing; run `dvc repro`")
        parts[seed] = pd.read_csv(file)
        if not set(COLUMNS) <= set(parts[seed]) or len({tuple(p["n"]) for p in parts.values()}) > 1:
            raise UserError(f"{file}: other columns or other n than the first; run `dvc repro`")
    return pd.concat([part.assign(seed=seed) for seed, part in parts.items()], ignore_index=True)


def sentence(table: pd.DataFrame) -> str:
    """What the pre-flights (as `flights` returns them) say together: how far reward and judge move from n = 1 to the
    end (95 % t over runs, which share their posts), in how many runs the judge falls, and whether their mean does."""
    moves, ns = {}, sorted(int(n) for n in table["n"].unique())
    for name in ("proxy", "judge"):
        wide = table.pivot(index="seed", columns="n", values=name)
        mean, low, high = t_interval(wide[ns[-1]] - wide[ns[0]])
        moves[name] = f"{mean:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if len(wide) > 1 else "")
    runs, fallen = len(wide), int(table.groupby("seed")["falls"].any().sum())
    what = f"Best of {ns[-1]} instead of one: reward {moves['proxy']}, judge {moves['judge']}"
    if runs == 1:
        return f"{what}; over posts the judge {'falls' if fallen else 'does not fall'} at the end (one run)"
    together = "; ".join(falls(ns, wide.to_numpy())) or "their mean does not fall beyond noise"
    return f"{what}, over {runs} runs; at the end the judge falls in {fallen} of {runs} runs; {together}"
