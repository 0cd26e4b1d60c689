"""Kimi-Audio's voice: audio codes to a mel spectrogram by flow matching, and that to a waveform by BigVGAN."""
