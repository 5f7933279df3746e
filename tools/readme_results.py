"""Fill the marked blocks of README.md and docs/results.md from files under results/ and from nothing else.

    python tools/readme_results.py     # after `make reproduce`, before results are committed

<!-- results -->, <!-- comparisons --> and <!-- stages --> are results/laptop; <!-- rewards --> holds the validation,
attacks and planted policies of every study whose rewards were fitted; <!-- presets --> comes from the env.json of every
study run in this checkout.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from polylib import config, names  # noqa: E402
from polylib.analysis import effects, preregistration, results  # noqa: E402
from polylib.figures import plain_tables, reward_figures, style, tables, tradeoffs  # noqa: E402
from polylib.run import Paths, UserError, atomic_write  # noqa: E402

STUDY, PRESETS = (
    "laptop",
    ("smoke", "quick", "laptop", "gpu", "paper"),
)  # cheapest first; others follow by name
STAGES = ("data", "reward_model", "sft", "lambda0", "polychromic", "grpo", "hybrid", "evaluation")
TABLE = (
    "judge_mean",
    "pass@",
    "reward_mean",
    "diversity",
    "relevance",
    "length_words",
    "truncated",
)
EFFECTS = ("judge_mean", "reward_mean", "diversity", "relevance")
DYNAMICS = {
    "val_ce": "CE, nats/token",
    "val_reward": "reward",
    "val_diversity": "diversity",
    "val_kl": "KL to the start, nats",
    "val_length": "tokens",
}


RANKED = {
    "pair_accuracy_engagement": "controlled likes",
    "pair_accuracy_balanced": "reach balanced",
    "pair_accuracy_latent": "latent quality",
}
RANKERS = (
    "learned",
    "combined",
    "heuristic",
    "judge",
    "tfidf_ridge",
    "length_only",
    "followers_and_delay_only",
)


def results_block(root: Path) -> str:
    """Figure, main table, registered questions. UserError or OSError without files."""
    paths = Paths(STUDY, root)
    found = results.load(paths, config.load(STUDY, root))  # refuses a missing or a foreign cell
    headings = {c: h for c, h in tables.columns(found).items() if c.startswith(TABLE)}
    table = tables.main(found)
    texts, bold = tables.shown(table.numbers, headings)
    main = plain_tables.Table("table_main", table.numbers, texts, table.caption, bold)
    rule = "|---|" + "---:|" * len(headings)
    head, _, *rows = _markdown(list(texts), main.rows(str, "**{}**")).splitlines()
    shown = "\n".join([head, rule, *rows, "", main.caption])
    return "\n\n".join(
        [
            f"![Judge score against semantic diversity](results/{STUDY}/paper_figures/quality_diversity.png)",
            shown.replace("simulated engagement", "*simulated engagement*"),
            *_asked(paths),
        ]
    )


def comparisons_block(root: Path) -> str:
    """Decision guide, differences to SFT, the temperature control, what training did. UserError without files."""
    paths, cfg = Paths(STUDY, root), config.load(STUDY, root)
    found, guide = results.load(paths, cfg), pd.read_csv(paths.figures / "decision_guide.csv")
    tested = pd.read_csv(paths.figures / "table_significance.csv")
    tested = tested.query("kind == 'difference' and metric in @EFFECTS")
    order = pd.MultiIndex.from_product([cfg.methods[1:], EFFECTS], names=["method", "metric"])
    tested = tested.set_index(["method", "metric"]).reindex(order).reset_index()
    return "\n\n".join(
        [
            "**Which method for what?** Computed: a method is chosen where its gain over SFT is established for the "
            "method (Holm) and not gamed; else SFT stays.",
            _markdown(
                ["you want", "choose", "because"],
                [
                    [r.want, style.METHOD_STYLE[r.choose]["label"], r.because]
                    for r in guide.itertuples()
                ],
            ),
            "**Differences to SFT.** Effect, then two 95 % intervals: *these checkpoints* (other posts) / *the method* "
            f"(other training runs too). With {tested['seeds'].max():g} runs the exact sign-flip test cannot fall "
            f"below p = {tested['signs_floor'].max():g}, whatever the data show.",
            _by_method(
                tested,
                [names.METRICS[name] for name in EFFECTS],
                lambda c: (
                    f"{c.effect:+.3f} "
                    f"{_interval(c.checkpoints_low, c.checkpoints_high)} / {_interval(c.method_low, c.method_high)}"
                ),
            ),
            "**Against heat alone.** Gain over SFT at the temperature that gives it the same judge score or diversity, "
            "and its 95 % interval over runs. A dash: temperature does not take SFT there in every run (in how many it "
            "does).",
            _by_method(
                pd.DataFrame(effects.all_matched(found)),
                ["diversity at equal judge score", "judge score at equal diversity"],
                lambda c: (
                    f"{c.effect:+.3f} {_interval(c.method_low, c.method_high)}"
                    if np.isfinite(c.effect)
                    else f"– ({c.matched_runs} of {c.seeds})"
                ),
            ),
            _whole_curves(found),
            f"**What training did** on {cfg.sft.eval_prompts} validation posts, before → after, mean over runs.",
            _dynamics(found),
        ]
    )


def _whole_curves(found: results.Results) -> str:
    """Gain in hypervolume, a sentence."""
    gains = [
        f"{style.METHOD_STYLE[row.method]['label']} {1000 * row.gain:+.1f} "
        f"{_interval(1000 * row.gain_low, 1000 * row.gain_high, 1)}"
        for row in tradeoffs.hypervolumes(found).itertuples()
        if row.method != "sft"
    ]
    return (
        "Over all temperatures that every method was sampled at: the area that its curve commands (hypervolume × "
        f"1000 of judge score and diversity), less SFT's, 95 % over runs: {'; '.join(gains)}."
    )


def _asked(paths: Paths) -> list[str]:
    """The registered questions with their answers, departures counted."""
    asked = pd.read_csv(paths.figures / "table_significance.csv").query("family != 'exploratory'")
    departures, registered = (
        pd.read_csv(paths.figures / "deviations.csv"),
        preregistration.load(paths),
    )
    said = {name: q.question for name, q in registered.questions.items()} if registered else {}
    questions = [
        [
            f"{said.get(r.question, r.question)}{f' (margin {r.margin:g})' if r.kind == 'equivalence' else ''}",
            f"{r.effect:+.3f}" if np.isfinite(r.effect) else "–",
            _interval(r.method_low, r.method_high),
            f"{r.p_adjusted:.3f}" if np.isfinite(r.p_adjusted) else "–",
            r.verdict,
        ]
        for r in asked.itertuples()
    ]
    return [
        f"**What was asked beforehand** ([registered](params/preregistration/{STUDY}.yaml) before the runs; "
        f"departures from it: {len(departures) or 'none'}). Intervals are the method's, 95 %, of equivalence 90 %; "
        "p after Holm.",
        _markdown(["question", "effect", "interval", "p", "verdict"], questions),
    ]


def rewards_block(root: Path) -> str:
    """Pair accuracy on every data set tried, what fools which reward, what the detector catches. UserError without."""
    found = reward_figures.everywhere(root / "results").query("study not in ('smoke', 'quick')")
    part = found[found["metric"].isin(RANKED) & found["model"].isin(RANKERS)].dropna(subset="value")
    pairs = part.groupby(["dataset", "metric"])["n"].max()
    lines = []
    for model in RANKERS:
        cells = part[part["model"].eq(model)].set_index(["dataset", "metric"])
        text = {
            key: f"{c.value:.3f} [{c.lo:.3f}, {c.hi:.3f}]"
            for key, c in zip(cells.index, cells.itertuples())
        }
        lines.append([model.replace("_", " "), *(text.get(key, "–") for key in pairs.index)])
    head = [f"{name}: {RANKED[metric]}, {n:,.0f} pairs" for (name, metric), n in pairs.items()]
    blocks = [
        f"![Pairs ranked right](results/{STUDY}/reward_model/accuracies.png)",
        _markdown(["", *head], lines),
    ]
    blocks.append(
        "**Attacks** on held-out posts: mean score minus the median human reply, in the reward's own units. "
        "**Bold**: not passed (above the median, or a spoiled reply that does not clearly lose), and the "
        "reward's card says so."
    )
    for file in sorted((root / "results").glob("*/reward_model/attacks.csv")):
        if file.parts[-3] in ("smoke", "quick"):
            continue
        attacked = pd.read_csv(file).assign(margin=lambda x: x["score"] - x["human_median"])
        rewards, wide = (
            attacked["reward"].unique(),
            attacked.pivot(index="attack", columns="reward"),
        )
        blocks.append(
            _markdown(
                [f"study {file.parts[-3]}", *rewards],
                [
                    [
                        attack.replace("_", " "),
                        *(
                            f"{row['margin', r]:+.2f}"
                            if row["passed", r]
                            else f"**{row['margin', r]:+.2f}**"
                            for r in rewards
                        ),
                    ]
                    for attack, row in wide.iterrows()
                ],
            )
        )
    plants = [
        pd.read_csv(file)
        for file in sorted((root / "results").glob("*/reward_model/planted.csv"))
        if file.parts[-3] not in ("smoke", "quick")
    ]
    fresh = [plant["policy"].str.startswith("people") for plant in plants]
    blocks.append(
        "**Detector** of gamed rewards: "
        + "; ".join(
            f"{plant['corpus'].iloc[0]}, {plant['n'].iloc[0]} replies a set: {int((plant['caught'][~f] >= 1).sum())} "
            f"of {int((~f).sum())} planted policies caught, {float(plant['caught'][f].iloc[0]):.1%} false alarms in "
            f"{int(plant['draws'][f].iloc[0])} fresh human sets"
            for plant, f in zip(plants, fresh)
        )
        + "."
    )
    return "\n\n".join(blocks)


def presets_block(root: Path) -> str:
    """Minutes and memory of every study found, with a row for a preset that never ran."""
    files = {
        file.stem: file.read_text(encoding="utf-8") for file in (root / "params").glob("*.yaml")
    }
    lines, envs = [], _costs(root)
    for preset in sorted(
        files, key=lambda name: (PRESETS.index(name) if name in PRESETS else len(PRESETS), name)
    ):
        comment = " ".join(re.match(r"(#.*\n)+", files[preset])[0].replace("#", " ").split())
        purpose = re.split(r"(?<=[\w)])\. |\.$", comment.removeprefix(f"{preset}: "))[
            0
        ]  # the file's first sentence
        studies = envs[envs["preset"].eq(preset)]
        lines += [
            [
                f"`{study}`",
                purpose,
                f"{part['minutes'].sum():.1f}",
                f"{part['memory'].max():.1f}",
                "; ".join(sorted(set(part["device"]))),
            ]
            for study, part in studies.groupby("study")
        ]
        if studies.empty:
            lines.append([f"`{preset}`", purpose, "not run here", "–", "–"])
    return _markdown(
        ["study", "what it is", "minutes, stages added up", "peak GiB of a stage", "measured on"],
        lines,
    )


def stages_block(root: Path) -> str:
    """Runs, minutes and memory of the stages of laptop."""
    envs = _costs(root)
    stages = (
        envs[envs["study"].eq(STUDY)]
        .groupby("stage")
        .agg(runs=("minutes", "size"), minutes=("minutes", "mean"), peak=("memory", "max"))
        .reindex(STAGES)
        .dropna()
    )
    return _markdown(
        ["stage", "runs", "minutes a run", "peak GiB"],
        [
            [f"`{r.Index}`", f"{r.runs:g}", f"{r.minutes:.1f}", f"{r.peak:.1f}"]
            for r in stages.itertuples()
        ],
    )


def _costs(root: Path) -> pd.DataFrame:
    """A row for each env.json: study, stage, preset, minutes, memory in GiB, device."""
    rows, top = [], root / "results"
    for file in sorted(top.glob("*/**/env.json")):
        env, (study, stage) = (
            json.loads(file.read_text(encoding="utf-8")),
            file.relative_to(top).parts[:2],
        )
        rows.append(
            [
                study,
                stage,
                env["preset"],
                env["wall_seconds"] / 60,
                max(env["peak_memory_mb"], env["peak_gpu_memory_mb"]) / 1024,
                f"{env['device']}, {env['dtype']}",
            ]
        )
    return pd.DataFrame(rows, columns=["study", "stage", "preset", "minutes", "memory", "device"])


def fill(page: str, blocks: dict[str, str], name: str = "README.md") -> str:
    """A page's text with what stands between each pair of markers replaced. UserError if a pair is missing."""
    for block, body in blocks.items():
        parts = re.split(rf"(?<=<!-- {block} -->\n)(?s:.*?)(?=<!-- /{block} -->)", page)
        if len(parts) != 2:
            raise UserError(
                f"{name}: needs one pair of lines <!-- {block} --> and <!-- /{block} -->"
            )
        page = f"{parts[0]}{body}\n{parts[1]}"
    return page


def pages(root: Path) -> dict[str, str]:
    """The generated pages, by name, as they have to be. Links in docs/ lead up one folder."""
    up = {
        name: block(root).replace("](results/", "](../results/")
        for name, block in (
            ("comparisons", comparisons_block),
            ("stages", stages_block),
            ("rewards", rewards_block),
        )
    }
    blocks = {
        "README.md": {"results": results_block(root), "presets": presets_block(root)},
        "docs/results.md": up,
    }
    return {
        name: fill((ROOT / name).read_text(encoding="utf-8"), found, name)
        for name, found in blocks.items()
    }


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _interval(low: float, high: float, digits: int = 3) -> str:
    return (
        f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        if np.isfinite([low, high]).all()
        else "[no interval]"
    )


def _by_method(table: pd.DataFrame, head: list[str], cell) -> str:
    groups = table.groupby("method", sort=False)
    return _markdown(
        ["", *head],
        [[style.METHOD_STYLE[m]["label"], *map(cell, g.itertuples())] for m, g in groups],
    )


def _dynamics(found: results.Results) -> str:
    rows = []
    for method in found.cfg.methods:
        looks = [
            found.histories[method, s].dropna(subset="val_ce").reindex(columns=DYNAMICS)
            for s in found.cfg.seeds
        ]
        ends = np.mean([look.iloc[[0, -1]].to_numpy() for look in looks], axis=0).T
        cells = ["–" if np.isnan([a, b]).any() else f"{a:.4g} → {b:.4g}" for a, b in ends]
        rows.append([style.METHOD_STYLE[method]["label"], *cells])
    return _markdown(["", *DYNAMICS.values()], rows)


if __name__ == "__main__":
    try:
        for name, text in pages(ROOT).items():
            atomic_write(ROOT / name, text)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}; README.md stays as it is")
