"""Waveforms: read, write, features. Everywhere in the package a waveform is mono float32 `[T]` at 16 kHz."""
