"""Drawing the next token of 64 rows over a vocabulary of 49152: inverse CDF, torch.multinomial, sort-based top-p."""

from __future__ import annotations

import common
import torch

from polylib.models.sampling import inverse_cdf

TOP_P = 0.95


def top_p(probs: torch.Tensor) -> torch.Tensor:
    """Nucleus sampling as it is usually written: sort, cumulate, cut, draw (Holtzman et al. 2020)."""
    ordered, index = probs.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > TOP_P, 0.0)
    return index.gather(-1, torch.multinomial(ordered, 1)).squeeze(-1)


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = common.arguments(__doc__, argv)
    rows, vocabulary, repeats = (64, 49152, 10) if args.model == "wheel" else (8, 1000, 2)
    torch.manual_seed(0)
    # logits with the spread of a language model: one token a row carries most of the mass
    probs = torch.softmax(3 * torch.randn(rows, vocabulary), -1)

    def times(function):
        def run():
            for _ in range(repeats):
                function()
            return repeats

        return run

    taken = common.interleave(
        {
            "inverse CDF": times(lambda: inverse_cdf(probs, torch.rand(rows))),
            "torch.multinomial": times(lambda: torch.multinomial(probs, 1)),
            f"top-p {TOP_P} by sorting": times(lambda: top_p(probs)),
        },
        args.rounds,
    )
    return common.report(f"sampler: ({rows}, {vocabulary}) float32", taken, "inverse CDF")


if __name__ == "__main__":
    main()
