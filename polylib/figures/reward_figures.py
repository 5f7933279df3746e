"""How well every reward ranks people's replies, on all data sets that were tried: one panel each.

found = everywhere(paths.root / "results")
forest(found).save(paths.results("reward_model"), cfg.paper_figures.dpi)
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.lines import Line2D

from polylib.config import UserError
from polylib.figures.style import STYLE, Picture, finish, panels

TARGETS = {
    "pair_accuracy_engagement": ("by controlled engagement", "#0072B2", "o"),
    "pair_accuracy_balanced": ("by likes, reach balanced", "#D55E00", "D"),
}
ORDER = (
    "learned",
    "learned_conditional",
    "learned_pairs",
    "learned_nmse",
    "coherence",
    "combined",
    "heuristic",
    "judge",
    "tfidf_ridge",
    "length_only",
    "parent_echo",
    "followers_and_delay_only",
    "random",
)


def everywhere(results: Path) -> pd.DataFrame:
    """All results/<study>/reward_model/validation.csv below `results`, with a column `study`.

    Of several studies on one data set the one with the most pairs is kept (the first by name of equals), so that
    each data set is one panel. Raises UserError if there is none."""
    tables = [
        pd.read_csv(file).assign(study=file.parts[-3])
        for file in sorted(Path(results).glob("*/reward_model/validation.csv"))
    ]
    if not tables:
        raise UserError(
            f"{results}: no reward_model/validation.csv of any study; run stage reward_model first"
        )
    found = pd.concat(tables, ignore_index=True)
    pairs = found[found["metric"].eq("pair_accuracy_engagement")]
    size = pairs.groupby(["dataset", "study"], as_index=False)["n"].max()
    kept = size.sort_values(["n", "study"], ascending=[False, True]).drop_duplicates("dataset")
    return found.merge(kept[["dataset", "study"]], on=["dataset", "study"])


def forest(found: pd.DataFrame, columns: int = 2) -> Picture:
    """Share of pairs ranked right with 95 % intervals over threads; the line is chance. A row a model, the rewards
    above and what they have to beat below."""
    data = found[found["metric"].isin(TARGETS)].dropna(subset=["value"])
    models, sets = _ordered(data["model"].unique()), sorted(data["dataset"].unique())
    with rc_context(STYLE):
        figure, axes = panels(
            len(sets), columns, 0.5 + 0.19 * len(models), 0.8, sharey=True, sharex=True
        )
        for ax, name in zip(axes.flat, sets, strict=False):
            panel = data[data["dataset"].eq(name)]
            for offset, (metric, (_, color, marker)) in zip((-0.15, 0.15), TARGETS.items()):
                for row in panel[panel["metric"].eq(metric)].itertuples():
                    y = models.index(row.model) + offset
                    ax.plot([row.lo, row.hi], [y, y], color=color, lw=1.2)
                    ax.plot(row.value, y, marker, color=color, ms=3.5)
            ax.axvline(0.5, color="#000000", lw=0.8)
            ax.set_ylim(len(models) - 0.5, -0.5)
            pairs = panel.loc[panel["metric"].eq("pair_accuracy_engagement"), "n"].max()
            ax.set_title(f"{name}\n{pairs:,.0f} pairs")
            ax.set_yticks(
                range(len(models)),
                [textwrap.fill(m.replace("_", " "), 12 * columns) for m in models],
            )
        for ax in axes[-1]:
            ax.set_xlabel("pairs ranked right")
        studies = ", ".join(sorted(found["study"].unique()))
        note = f"Held-out threads; studies {studies}. Bars are 95 % intervals over threads, the line is chance."
        legend = [
            Line2D([], [], color=color, marker=marker, ms=3.5, label=label)
            for label, color, marker in TARGETS.values()
        ]
        finish(figure, note, columns, kind="point", extra=legend)
    return Picture("accuracies", figure, data)


def _ordered(models) -> list[str]:
    """Rewards first, baselines last; a model that ORDER does not know stands between them."""
    middle = ORDER.index("judge")
    return sorted(models, key=lambda name: (ORDER.index(name) if name in ORDER else middle, name))
