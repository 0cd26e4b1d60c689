"""The judge's first two stages by models that people run: Whisper, audio language models."""
