"""Servers that speak OpenAI's protocol: requests, limits, retries, cost."""
