"""A picture of what training stands on: the engagement in the data, before and after what it is controlled for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context

from polylib.figures.style import STYLE, Picture, canvas, finish


def engagement(rows: pd.DataFrame, kind: str, columns: int = 2) -> Picture:
    """Likes against the author's followers, before and after the control. Bins of followers (dots: means with
    95 % intervals over replies): what slopes on the left should lie flat on the right. kind: simulated or
    observed."""
    known = rows.dropna(subset=["reply_author_followers"])
    known = known.assign(
        raw=np.sign(known["reply_likes"]) * np.log1p(known["reply_likes"].abs()),
        followers=known["reply_author_followers"] + 1,
    )
    known["raw"] -= known.groupby("tweet_id")["raw"].transform("mean")
    known["bin"] = pd.qcut(
        known["followers"].rank(method="first"), min(8, max(1, len(known))), labels=False
    )
    panels = {"raw": "log likes, minus the post's mean", "engagement": "engagement after control"}
    with rc_context(STYLE):
        figure, axes = canvas(1, 2, 2.5, columns, sharey=True)
        for ax, (name, label) in zip(axes.flat, panels.items(), strict=True):
            part = known.groupby("bin").agg(
                x=("followers", "median"), y=(name, "mean"), sd=(name, "std"), n=(name, "size")
            )
            ax.plot(
                known["followers"], known[name], ".", color="#BBBBBB", ms=1.5, alpha=0.5, zorder=1
            )
            ax.errorbar(
                part["x"],
                part["y"],
                yerr=1.96 * part["sd"] / np.sqrt(part["n"]),
                fmt="o-",
                color="#0072B2",
                ms=4,
                lw=1.2,
            )
            ax.set(title=label, xscale="log", xlabel="followers of the author of the reply")
        finish(
            figure,
            f"{len(known)} replies by authors of known followers, {kind} engagement.",
            columns,
        )
    return Picture("engagement", figure, known[["reply_id", "followers", "raw", "engagement"]])
