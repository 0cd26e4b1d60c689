"""Batched decoding of both streams with exact log-probabilities."""
