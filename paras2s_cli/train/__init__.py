"""Training: the stages, and what they share (checkpoints, run folders, metrics)."""
