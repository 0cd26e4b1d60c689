"""A small random Qwen2.5-Omni in the layout of the published one, with a tokenizer's and an extractor's real files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

QWEN2_5_OMNI = "Qwen2.5-Omni-7B"
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
)
"""Special tokens, in the order of their ids, which follow the bytes."""
CODES, PAD, BOS, EOS, MASK, CODEC_VOCABULARY = 32, 36, 37, 38, 40, 48
"""Codec ids: codes from 0, and what the published model has at 8292, 8293, 8294 and 8296 of 8448."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def omni_config(ids: dict[str, int], vocabulary: int) -> dict:
    """The published config.json with smaller numbers; ids of the special tokens by name."""
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [1, 1, 2]}
    layers = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": rope,
    }
    places = {
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
    }
    vision = {"vision_start_token_id": ids["<|vision_bos|>"], "vision_end_token_id": ids["<|vision_eos|>"]}
    text = {**layers, "vocab_size": vocabulary, "tie_word_embeddings": False, "eos_token_id": ids["<|im_end|>"]}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    hearing = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "n_window": 50,
        "output_dim": 32,
        "max_source_positions": 1500,
    }
    dit = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "emb_dim": 16,
        "num_embeds": CODES + 1,
        "look_ahead_layers": [1],
        "look_backward_layers": [0],
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
        "enc_dim": 16,
        "enc_emb_dim": 12,
    }
    vocoder = {"upsample_initial_channel": 64, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]}
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": {**places, **vision, "user_token_id": 0, "text_config": text, "audio_config": hearing, "vision_config": sight},
        "talker_config": {
            **layers,
            **places,
            **vision,
            "hidden_size": 24,
            "head_dim": 8,
            "embedding_size": 32,
            "vocab_size": CODEC_VOCABULARY,
            "tts_text_start_token_id": ids["<tts_text_bos>"],
            "tts_text_end_token_id": ids["<tts_text_eod>"],
            "tts_text_pad_token_id": ids["<tts_pad>"],
            "tts_codec_start_token_id": BOS,
            "tts_codec_end_token_id": EOS,
            "tts_codec_pad_token_id": PAD,
            "tts_codec_mask_token_id": MASK,
        },
        "token2wav_config": {"dit_config": dit, "bigvgan_config": vocoder},
    }


def write_qwen2_5_omni(folder: Path, seed: int = 1) -> Path:
    """Qwen2.5-Omni's folder, but for what is of images and video. Its vocabulary is single bytes and special tokens."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, Qwen2Tokenizer, WhisperFeatureExtractor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    bytes_alone = {letter: i for i, letter in enumerate(bytes_to_unicode().values())}
    tokenizer = Qwen2Tokenizer(bytes_alone, [], eos_token="<|im_end|>", extra_special_tokens=list(SPECIALS))
    vocabulary = len(tokenizer) + 3
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in SPECIALS}
    config = Qwen2_5OmniConfig(**omni_config(ids, vocabulary))
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3 if weight.shape[0] in (CODEC_VOCABULARY, vocabulary) else 0.1)
        model.thinker.lm_head.weight[ids["<|im_end|>"]] *= 4  # so that some replies end soon
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, chunk_length=30, return_attention_mask=True).save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}, indent=2) + "\n")
    dit = config.token2wav_config.dit_config
    voice = {"cond": torch.randn(1, dit.enc_emb_dim), "ref_mel": torch.randn(1, 30, dit.mel_dim), "bos_token": ids["<tts_text_bos>"]}
    torch.save({"Chelsie": voice, "Ethan": {**voice, "cond": -voice["cond"]}}, folder / "spk_dict.pt")
    return folder
