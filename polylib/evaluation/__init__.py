"""One run: replies in, numbers out. Nothing here knows another run or what a claim is.

generate                 replies to test posts, sampled or people's
metrics, text            one prompt's replies -> one number
novelty                  the same: kinds of replies, and what they are worth together
overlap, failures        a reply beside the nearest of people's; ways in which it fails
human_baseline           what people set as bars
likelihood, token_kl     perplexity and exact KL
score, record            generations -> per_prompt.csv, metrics.json
"""
