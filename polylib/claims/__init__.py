"""All runs of a study: numbers in, claims out, each with its interval or the reason why there is none. Draws nothing.

    results, replies         the files of a study -> one checked bundle; every reply with its scores
    stats, exact             two kinds of claim; exact tests with their floors, effect sizes
    effects, equivalence     methods against SFT and against heat; "quality kept" against a margin
    gains, matched           what is left at equal length or relevance, by regression and inside bins
    reward_parts, distance   which part of the reward paid; how far from SFT and from people
    verdicts, winrate        scores as verdicts on pairs; who wins
    length_control           who would at equal length
    agreement, judging       kappa of judges and people; a language model's opinion
    preflight                best of n, before any training is paid for
    overoptimisation         reward and judge against the distance from the start
    variance, simulation     where scores vary, runs a study needs; how often our procedures err
    preregistration          what was asked beforehand, and every departure from it
    significance, decision   the table of all tests; which method for what, or nothing established
"""
