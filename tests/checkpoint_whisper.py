"""A small random Whisper in the layout of openai/whisper-large-v3."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoint_tokens import byte_level

WHISPER = "whisper-large-v3"
LANGUAGES = ("en", "zh", "de")
SECONDS = 2


def write_whisper(folder: Path, *, seed: int = 2, alignment: bool = True, most: int = 12) -> Path:
    """Whisper's folder. It hears SECONDS at a time and writes `most` tokens at the most. `alignment`: it can tell words' times.

    Its special tokens are suppressed as in the published ones, and with `alignment` times are as well, since random weights do not know
    that none are wanted.
    """
    from transformers import (
        AddedToken,
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    torch.manual_seed(seed)
    vocabulary, merges = byte_level(40)
    end = len(vocabulary)
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in specials], special_tokens=True)
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * i:.2f}|>", special=False, normalized=False) for i in range(50 * SECONDS + 1)])
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in specials}
    assert list(ids.values()) == list(range(end, end + len(specials)))
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=50 * SECONDS,
        max_target_positions=32,
        init_std=0.5,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # so that sequences end, and not all at once: the library makes this row zeros
        model.model.decoder.embed_tokens.weight[end] = 0.6 * torch.randn(config.d_model)
    suppressed = [*range(end + 1, len(tokenizer) if alignment else ids["<|notimestamps|>"])]
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        max_length=most + 4,
        forced_eos_token_id=end,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        suppress_tokens=suppressed,
        begin_suppress_tokens=[end],
        return_timestamps=False,
        **({"alignment_heads": [[0, 1], [1, 0]]} if alignment else {}),
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
