"""All runs of a study: numbers in, claims out, each with its interval or the reason why there is none. Draws nothing.

results, replies         the files of a study -> one checked bundle; every reply with its scores
stats, exact             two kinds of claim; tests by rank with their floors, effect sizes
effects, equivalence     methods against SFT and against heat; "quality kept" against a margin
reward_parts, distance   which part of the reward paid; how far from the start
verdicts, winrate        scores as verdicts on pairs; who wins
length_control           who would at equal length
agreement, judging       kappa of judges and people; a language model's opinion
preflight                best of n, before any training is paid for
overoptimisation         reward and judge against the distance from the start
variance                 where scores vary, how many runs a study needs
preregistration          what was asked beforehand, and every departure from it
significance, decision   the table of all tests; which method for what, or nothing established
"""
