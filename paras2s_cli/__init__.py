"""ParaS2S as a tool: judge, bench, sft and align for paralinguistic-aware speech-to-speech models."""

__version__ = "0.1.0"
