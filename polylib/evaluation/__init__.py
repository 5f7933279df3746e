"""One run: replies in, numbers out. Nothing here knows another run or what a claim is.

    generate                 replies to test posts, sampled or people's
    metrics, text            one prompt's replies -> one number
    novelty, repetition      the same: kinds of replies, and how far they repeat each other
    overlap, failures        a reply beside the nearest of people's; ways in which it fails
    yardstick                what people set as bars
    likelihood, token_kl     perplexity and exact KL
    likeness, components     told from people's? what each part of the reward paid
    score, record            generations -> per_prompt.csv, profile.csv, metrics.json
    provenance               commit and settings behind a number
    ablation                 a grid of weights, trained and scored
"""
