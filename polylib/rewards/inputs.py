"""What the engagement model reads of a reply: the topic of its post, its own content, and its form."""

from __future__ import annotations

import numpy as np

from polylib.rewards import features

COMPONENTS = {
    "post": 16,
    "reply": 16,
}  # principal directions kept; more does worse on held-out corpus threads
CLIP = 4.0  # a policy's odd reply must not buy reward by leaving the range seen in training


def blocks(encoder, posts: list[str], replies: list[str]) -> dict[str, np.ndarray]:
    """Embedding of the post (N, d), of the reply (N, d), and surface features with their cosine (N, f + 1)."""
    posts, replies = list(posts), list(replies)
    post, reply = encoder.encode(posts), encoder.encode(replies)
    cosine = (post * reply).sum(axis=1, keepdims=True)
    return {
        "post": post,
        "reply": reply,
        "form": np.hstack([features.surface(posts, replies), cosine]),
    }


def fit(raw: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{block: mean (d,), basis (d, k)}. Surface features to unit variance each; embedding blocks to their
    leading principal directions, whose relative sizes are kept and whose overall sd is 1."""
    transform = {}
    for block, values in raw.items():
        values = values.astype(np.float64)
        mean, centred = values.mean(axis=0), values - values.mean(axis=0)
        if block == "form":
            sd = centred.std(axis=0)
            basis = np.diag(np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-6))
        else:
            basis = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, : COMPONENTS[block]]
            basis = basis / max((centred @ basis).std(), 1e-6)
        transform[block] = {"mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}
    return transform


def apply(transform: dict, raw: dict[str, np.ndarray]) -> np.ndarray:
    """The network's input (N, sum of k), float32, clipped to +-CLIP."""
    parts = [
        (raw[block].astype(np.float32) - parts["mean"]) @ parts["basis"]
        for block, parts in transform.items()
    ]
    return np.clip(np.concatenate(parts, axis=1), -CLIP, CLIP)
