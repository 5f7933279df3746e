"""The roof: generations in, per-prompt scores, honest intervals, figures and tables out. Nothing imports it.

    metrics, text            one prompt's replies -> one number
    novelty, repetition      the same: kinds of replies, and how far they repeat each other
    overlap                  a reply beside the nearest of people's
    yardstick                what people set as bars
    score, record            generations -> per_prompt.csv, profile.csv, metrics.json
    stats, effects           seeds x prompts -> effects with two kinds of claim; the temperature control
    exact, equivalence       exact tests with their floors, effect sizes; "quality kept" against a margin
    variance, simulation     where scores vary, runs a study needs; how often our procedures err
    preregistration          what was asked beforehand, and every departure from it
    significance, decision   the table of all tests; which method for what, or nothing established
    results                  the files of a study -> one checked bundle
    style, figures, tables   what people look at, from that bundle alone
"""
