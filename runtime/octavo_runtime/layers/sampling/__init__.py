"""From logits to tokens and log-probabilities; `sampler.py` says in which order."""
