"""The figures of the paper, from the files of a study alone. Each returns a Picture; `picture.save(folder,
dpi)`.

    results = load(Paths(study), cfg)
    figures.quality_diversity(results, columns=2).save(paths.figures, cfg.paper_figures.dpi)

This is the list; the code lies by theme: `attempts` (k replies to a post), `tradeoffs`, `forest`, `costs`,
`calibration_figure`. Curves over training steps live in `curves`, gradients in `gradients`, rewards in
`reward_figures`, over-optimisation in `overoptimisation`, weights of the loss in `ablation_figure`.
"""

from __future__ import annotations

from polylib.analysis.results import means
from polylib.figures.attempts import best_of_k, pass_at_k
from polylib.figures.calibration_figure import calibration
from polylib.figures.costs import cost_benefit
from polylib.figures.forest import forest
from polylib.figures.tradeoffs import hypervolumes, quality_diversity

__all__ = [
    "best_of_k",
    "calibration",
    "cost_benefit",
    "forest",
    "hypervolumes",
    "means",
    "pass_at_k",
    "quality_diversity",
]
