"""Training: pure tensor functions (`objective`, `advantages`, `diversity`, `schedules`) and one loop.

The one objective of every method in this project is

    L = alpha * CE  -  beta * reward  -  lambda * diversity  +  kappa * KL(policy || reference)

SFT, polychromic training, GRPO and the hybrid are settings of its four weights. Reward and diversity are
scores of *sampled text*: they are plain numbers with no gradient, so subtracting them from the loss would
change the value that is printed and nothing else. Their gradient exists only through the score function,
`sum_i advantage_i * grad log pi(reply_i)`; that is why both enter as per-sample advantages.
"""
