"""All runs of a study: numbers in, claims out, each with its interval or the reason why there is none. Draws nothing.

results, replies         the files of a study -> one checked bundle; every reply with its scores
exact                    tests by rank with their floors; the Mann-Whitney test as papers report it
effects, equivalence     methods against SFT and against heat; "quality kept" against a margin
distance                 how far from the start
winrate, judging         who wins by the judge; a language model's opinion
hacked                   whose reward was gamed
variance                 where scores vary, how many runs a study needs
preregistration          what was asked beforehand, and every departure from it
significance, decision   the table of all tests; which method for what, or nothing established
"""
