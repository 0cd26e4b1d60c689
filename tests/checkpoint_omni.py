"""The thinker of a small random Qwen2.5-Omni in the layout of Qwen/Qwen2.5-Omni-7B."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_tokens import byte_level

OMNI = "Qwen2.5-Omni-7B"
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    *("<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>"),
)


def write_omni_thinker(folder: Path, *, seed: int = 1, seconds: int = 2, pairs: int = 60) -> Path:
    """Qwen2.5-Omni's folder with the weights of its thinker alone, which are all that hears."""
    from transformers import (
        AddedToken,
        Qwen2_5OmniConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2Tokenizer,
        WhisperFeatureExtractor,
    )

    torch.manual_seed(seed)
    vocabulary, merges = byte_level(pairs)
    names = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>"}
    names |= {"vision_eos_token": "<|vision_eos|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names
    )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS], special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    thinker = {
        "audio_config": {
            "num_mel_bins": 80,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "max_source_positions": 50 * seconds,
            "n_window": 10,
            "output_dim": 32,
            "initializer_range": 0.3,
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
        "initializer_range": 0.3,
    }
    config = Qwen2_5OmniConfig(thinker_config=thinker)
    config.architectures = ["Qwen2_5OmniModel"]
    config.save_pretrained(folder)
    with TemporaryDirectory() as alone:
        Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config).save_pretrained(alone)
        weights = load_file(Path(alone) / "model.safetensors")
    save_file({f"thinker.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    WhisperFeatureExtractor(feature_size=80, chunk_length=seconds).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
