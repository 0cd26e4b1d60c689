"""The speech LM: Kimi-Audio's architecture at any size, its prompts, its streams and its files."""
