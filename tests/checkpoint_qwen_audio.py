"""A small random Qwen2-Audio in the layout of Qwen/Qwen2-Audio-7B-Instruct."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoint_tokens import byte_level

QWEN_AUDIO = "Qwen2-Audio-7B-Instruct"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")


def write_qwen_audio(folder: Path, *, seed: int = 1, seconds: int = 2, pairs: int = 60) -> Path:
    """Qwen2-Audio's folder. It hears `seconds` at the most; its tokenizer has `pairs` byte pairs, so that words are several tokens."""
    from transformers import (
        AddedToken,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2Tokenizer,
        WhisperFeatureExtractor,
    )

    torch.manual_seed(seed)
    vocabulary, merges = byte_level(pairs)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS], special_tokens=True)
    audio = {
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "max_source_positions": 50 * seconds,
        "init_std": 0.3,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
    }
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"))
    model = Qwen2AudioForConditionalGeneration(config)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=seconds).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
