"""What paper/paper.tex reads beside figures and tables: numbers of the study as LaTeX commands, so that no number in
the text is typed by hand.

    paper.write(results)          # paper_figures/numbers.tex: \\studyposts, \\studyruns, ...
"""

from __future__ import annotations

from polylib.analysis.results import Results
from polylib.figures.plain_tables import escape
from polylib.figures.style import METHOD_STYLE
from polylib.run import atomic_write


def numbers(results: Results) -> dict[str, str]:
    """{command name without the backslash: text}; only letters in names, as LaTeX wants it."""
    cfg = results.cfg
    first = results.frames[cfg.methods[0], cfg.seeds[0], cfg.sampling.temperature]
    several = len(cfg.seeds) > 1
    return {
        "study": results.paths.study,
        "preset": cfg.preset,
        "posts": f"{len(results.people)}",
        "replies": f"{first['n_samples'].iloc[0]:g}",
        "runs": f"{len(cfg.seeds)}",
        "seeds": ", ".join(map(str, cfg.seeds)),
        "temperature": f"{cfg.sampling.temperature:g}",
        "temperatures": ", ".join(f"{t:g}" for t in results.temperatures),
        "engagement": results.engagement,
        "judgeaccuracy": f"{results.judge['pair_accuracy']:.0%}",
        "judgepairs": f"{results.judge['pairs']}",
        "peoplereplies": f"{results.people['n_samples'].mean():.1f}",
        "quantile": f"{min(cfg.evaluation.judge_quantiles):g}",
        "model": cfg.model.source,
        "encoder": cfg.model.encoder,
        "rank": f"{cfg.model.lora_rank}",
        "maxtokens": f"{cfg.sampling.max_new_tokens}",
        "exactfloor": f"{2 / 2 ** len(cfg.seeds):g}",
        "commit": results.commit,
        "methods": ", ".join(METHOD_STYLE[method]["label"] for method in cfg.methods),
        "claim": "Runs are a sample too, so statements are about methods."
        if several
        else "With one training run, nothing can be said about a method; intervals are about these checkpoints alone.",
        **{
            f"{section}{name}": f"{vars(vars(cfg)[section])[name]:g}"
            for section in ("polychromic", "grpo", "hybrid")
            for name in ("alpha", "beta", "lam", "kappa", "steps")
        },
    }


def write(results: Results) -> None:
    """paper_figures/numbers.tex: a \\newcommand{\\study<name>} for each of `numbers`."""
    lines = [f"% written by notebook 08; study {results.paths.study}"]
    lines += [
        rf"\newcommand{{\study{name}}}{{{escape(text)}}}" for name, text in numbers(results).items()
    ]
    atomic_write(results.paths.figures / "numbers.tex", "\n".join(lines) + "\n")
