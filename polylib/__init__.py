"""polylib: supervised, polychromic, GRPO and hybrid training of short-reply generators, as one objective."""
