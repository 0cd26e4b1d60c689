"""The judge's third stage as a chat endpoint that speaks OpenAI's protocol."""
