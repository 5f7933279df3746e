"""What a data set holds, in a few lines, and what it is too small to show."""

from __future__ import annotations

import pandas as pd

ENOUGH = 30  # posts below which an interval over posts says little
KNOWN = (
    "reply_author",
    "reply_author_followers",
    "reply_time_diff_seconds",
    "tweet_author",
    "tweet_likes",
    "lang",
)


def describe(
    raw: pd.DataFrame,
    rows: pd.DataFrame,
    rejects: pd.DataFrame,
    preferences: pd.DataFrame,
    engagement: str,
) -> list[str]:
    """Lines of a profile: of the well-formed rows as read, then of what cleaning left (`prepare.make`). engagement:
    simulated or observed."""
    likes, replies = raw["reply_likes"], raw.groupby("tweet_id").size()
    differ = raw.groupby("tweet_id")["reply_likes"].nunique().gt(1).sum()
    unknown = raw[list(KNOWN)].isna().mean()
    gone = ", ".join(f"{row.reason} {row.count:,}" for row in rejects.itertuples(index=False))
    return [
        f"read {len(raw):,} replies to {len(replies):,} posts in {raw['thread_id'].nunique():,} threads; replies a "
        f"post {replies.min()} | {replies.median():g} | {replies.max():,} (least, median, most)",
        f"{engagement} likes {likes.min():,} | {likes.median():g} | {likes.quantile(0.9):g} | {likes.max():,} (least, "
        f"median, 90 %, most); none {likes.eq(0).mean():.0%}, below 0 {likes.lt(0).mean():.0%}; they differ under "
        f"{differ:,} posts",
        "unknown: "
        + (", ".join(f"{k} {v:.0%}" for k, v in unknown.items() if v) or "nothing that is used"),
        f"kept {len(rows):,} replies to {rows['tweet_id'].nunique():,} posts; set aside: {gone or 'none'}",
        f"limits: {'; '.join(limits(rows, preferences)) or 'none found'}",
    ]


def limits(rows: pd.DataFrame, preferences: pd.DataFrame) -> list[str]:
    """What these clean, split rows are too few or too little liked to show, a clause each. (What an unknown field
    switches off is another matter: it can be repaired.)"""
    posts = rows.groupby("tweet_id")
    of = posts["split"].first()
    differ = posts["reply_likes"].nunique().gt(1)
    paired = preferences.loc[preferences["split"] == "train", "tweet_id"].nunique()
    wanted = {
        "test posts: methods are told apart only by large differences": int((of == "test").sum()),
        "validation posts: what is watched while training is noisy": int(
            (of == "validation").sum()
        ),
        "judge posts whose replies differ in likes: the judge learns little": int(
            (differ & (of == "judge")).sum()
        ),
        "training posts with a preference pair: the reward learns little": paired,
    }
    found = [f"{n} {what}" for what, n in wanted.items() if n < ENOUGH]
    none = rows["reply_likes"].eq(0).mean()
    if none > 0.5:
        found.append(f"{none:.0%} of the replies have no like: few posts say what is liked")
    return found
