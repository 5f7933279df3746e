"""A small figure: what the post, its author and the hour add to a reward is gone from the advantages."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np


def scores_and_advantages(plain: np.ndarray, context: np.ndarray):
    """Two panels over the same replies, one colour a post: rewards without and with context, and their advantages.

    plain, context: (B, K) rewards of K replies to each of B posts. Left, a point is a reply, the diagonal is "context
    adds nothing"; right, the same after subtracting each post's mean. Returns the figure."""
    if plain.shape != context.shape or plain.ndim != 2:
        raise ValueError(f"both need shape (posts, replies), got {plain.shape} and {context.shape}")
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 3.0), layout="constrained")
    pairs = ((plain, context, "reward"), tuple(x - x.mean(1, keepdims=True) for x in (plain, context)) + ("advantage",))
    for axis, (x, y, name) in zip(axes, pairs):
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axis.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
        for row, (a, b) in enumerate(zip(x, y)):
            axis.scatter(a, b, s=18, color=plt.get_cmap("cividis")(row / max(len(x) - 1, 1)))
        axis.set(xlabel=f"{name} without context", ylabel=f"{name} with context")
    return figure
