"""The roof: generations in, per-prompt scores, honest intervals, figures and tables out. Nothing imports it.

    metrics, text   one prompt's replies -> one number       stats     seeds x prompts -> effects with two kinds of claim
    score           generations -> per_prompt.csv            matched   comparison with the temperature control
    results         files of a study -> one checked bundle   style, figures, tables   what people look at
"""
