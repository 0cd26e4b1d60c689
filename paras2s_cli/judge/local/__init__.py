"""The judge's third stage as a causal language model on this machine, whose next token is the score."""
