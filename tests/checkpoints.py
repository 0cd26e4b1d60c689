"""Small random checkpoints in exactly the layout of the published ones: `python -m tests.checkpoints OUT` writes one folder each."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoint_qwen_audio import QWEN_AUDIO, write_qwen_audio
from tests.checkpoint_whisper import WHISPER, write_whisper
from tests.judge_lm import JUDGE_LM, write_judge_lm
from tests.qwen2_5_omni import QWEN2_5_OMNI, write_qwen2_5_omni
from tests.voice_checkpoint import write_voice

KIMI_AUDIO = "Kimi-Audio-7B-Instruct"
SPEECH_TOKENIZER = "glm-4-voice-tokenizer"
SPECIALS = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_msg_end|>": 2,
    "<|im_user_msg_start|>": 3,
    "<|im_assistant_msg_start|>": 4,
    "[EOT]": 9,
    "<|im_media_begin|>": 18,
    "<|im_media_end|>": 20,
    "<|im_kimia_text_blank|>": 23,
    "<|im_kimia_text_eos|>": 24,
    "<|im_kimia_user_msg_start|>": 27,
    "<|im_kimia_assistant_msg_start|>": 28,
    "<|im_kimia_speech_ct_id|>": 32,
    "<|im_kimia_speech_ctd_id|>": 33,
}
"""Special tokens, counted from the first id after the byte pairs."""
WORDS = "the train is late and there it is again , then they think that this is the thing : what a strange, strange day it is in the rain !"


def byte_pairs(words: str, count: int) -> list[bytes]:
    """256 bytes and `count` pairs, the most frequent first, of words with a space before each: trained as byte pairs are."""
    tokens = [bytes([i]) for i in range(256)]
    pieces = [[bytes([b]) for b in f" {word}".encode()] for word in words.split()]
    while len(tokens) < 256 + count:
        seen = Counter(pair for piece in pieces for pair in pairwise(piece))
        best = max(seen, key=lambda pair: (seen[pair], pair))
        tokens.append(best[0] + best[1])
        for piece in pieces:
            i = 0
            while i + 1 < len(piece):
                if (piece[i], piece[i + 1]) == best:
                    piece[i : i + 2] = [tokens[-1]]
                i += 1
    return tokens


def kimi_config(base: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, layers: int, fork: int, mimo: int, codes: int) -> dict:
    """The published config.json with smaller numbers."""
    offset = base + 421
    return {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_moonshot_kimia.KimiAudioConfig",
            "AutoModel": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM",
            "AutoModelForCausalLM": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM",
        },
        "bos_token_id": base,
        "eos_token_ids": [base + 1, base + 2],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "kimia_adaptor_input_dim": 4 * 20,
        "kimia_audio_output_vocab": codes + 512,
        "kimia_media_begin": base + SPECIALS["<|im_media_begin|>"],
        "kimia_media_end": base + SPECIALS["<|im_media_end|>"],
        "kimia_mimo_audiodelaytokens": 6,
        "kimia_mimo_layers": mimo,
        "kimia_mimo_transformer_from_layer_index": fork,
        "kimia_text_output_vocab": offset,
        "kimia_token_offset": offset,
        "max_position_embeddings": 8192,
        "model_type": "moonshot_kimia",
        "num_attention_heads": heads,
        "num_audio_special_tokens": 512,
        "num_base_tokens": base,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": offset - 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.1",
        "use_cache": True,
        "use_whisper_feature": True,
        "vocab_size": offset + codes,
    }


def kimi_tensors(config: dict, seed: int) -> list[dict[str, torch.Tensor]]:
    """The tensors of every shard, bf16: a layer each (the shared and the text layers, then the audio layers), the adaptor, the rest."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["kimia_adaptor_input_dim"]
    head_dim = hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head_dim

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    def vector(size: int, centre: float) -> torch.Tensor:
        return (centre + 0.3 * torch.randn(size, generator=generator)).bfloat16()

    shards = []
    names = [f"layers.{i}" for i in range(config["num_hidden_layers"])] + [f"mimo_layers.{i}" for i in range(config["kimia_mimo_layers"])]
    for name in names:
        layer = {"input_layernorm.weight": vector(hidden, 1.0), "post_attention_layernorm.weight": vector(hidden, 1.0)}
        for part, size in (("q", hidden), ("k", kv), ("v", kv)):
            layer[f"self_attn.{part}_proj.weight"] = normal(size, hidden)
            layer[f"self_attn.{part}_proj.bias"] = vector(size, 0.0)
        layer["self_attn.o_proj.weight"] = normal(hidden, hidden)
        layer["self_attn.rotary_emb.inv_freq"] = (config["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)).bfloat16()
        layer |= {f"mlp.{part}_proj.weight": normal(ffn, hidden) for part in ("gate", "up")}
        layer["mlp.down_proj.weight"] = normal(hidden, ffn)
        shards.append({f"model.{name}.{part}": tensor for part, tensor in layer.items()})
    adaptor = {
        "0.weight": normal(hidden, width),
        "0.bias": vector(hidden, 0.0),
        "3.weight": normal(hidden, hidden),
        "3.bias": vector(hidden, 0.0),
    }
    adaptor |= {"4.weight": vector(hidden, 1.0), "4.bias": vector(hidden, 0.0)}
    shards.append({f"model.vq_adaptor.layers.{part}": tensor for part, tensor in adaptor.items()})
    rest = {"model.norm.weight": vector(hidden, 1.0), "model.mimo_norm.weight": vector(hidden, 1.0)}
    for name in ("model.embed_tokens", "lm_head", "mimo_output"):
        rest[f"{name}.weight"] = 3 * normal(config["vocab_size"], hidden)
    return [*shards, rest]


def write_tokenizer(folder: Path, tokens: list[bytes]) -> None:
    """tiktoken.model, tokenizer_config.json and special_tokens_map.json."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("".join(lines))
    described = {
        str(len(tokens) + place): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for name, place in SPECIALS.items()
    }
    settings = {
        "added_tokens_decoder": described,
        "auto_map": {"AutoTokenizer": ["tokenization_kimia.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "tokenizer_class": "TikTokenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "[BOS]", "eos_token": "[EOS]"}, indent=2) + "\n")


def write_kimi_audio(
    folder: Path,
    *,
    hidden: int = 32,
    ffn: int = 48,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 3,
    fork: int = 1,
    mimo: int = 2,
    codes: int = 24,
    seed: int = 1,
) -> Path:
    """Kimi-Audio's folder, but for its Whisper (`write_kimi_whisper`), its detokenizer, its vocoder and its Python files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = byte_pairs(WORDS, 44)
    config = kimi_config(
        len(tokens), hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, layers=layers, fork=fork, mimo=mimo, codes=codes
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, tokens)
    shards, places = kimi_tensors(config, seed), {}
    last = len(shards)
    for i, tensors in enumerate(shards, 1):
        # the names of the published shards do disagree about how many there are
        name = f"model-{i}-of-{last if i == last else last - 1}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def whisper_config(width: int, ffn: int, heads: int, positions: int) -> dict:
    """What the config.json of Whisper and of the speech tokenizer share."""
    return {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "attention_dropout": 0.0,
        "d_model": width,
        "dropout": 0.0,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "encoder_layerdrop": 0.0,
        "is_encoder_decoder": True,
        "max_source_positions": positions,
        "model_type": "whisper",
        "num_mel_bins": 128,
        "scale_embedding": False,
    }


def encoder_tensors(config: dict, layers: int, seed: int) -> dict[str, torch.Tensor]:
    """Two convolutions, positions and layers, fp32, by their names within an encoder."""
    generator = torch.Generator().manual_seed(seed)
    width, ffn = config["d_model"], config["encoder_ffn_dim"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / torch.Size(shape[1:]).numel() ** 0.5

    found = {"conv1.weight": normal(width, 128, 3), "conv2.weight": normal(width, width, 3)}
    found["embed_positions.weight"] = 2 * normal(config["max_source_positions"], width)
    for name in ("conv1.bias", "conv2.bias"):
        found[name] = 0.3 * normal(width)
    for i in range(layers):
        layer = {f"self_attn.{name}_proj.weight": 2 * normal(width, width) for name in "qkv"}
        layer |= {f"self_attn.{name}_proj.bias": 0.3 * normal(width) for name in "qv"}
        layer |= {"self_attn.out_proj.weight": normal(width, width), "self_attn.out_proj.bias": 0.3 * normal(width)}
        layer |= {"fc1.weight": normal(ffn, width), "fc1.bias": 0.3 * normal(ffn)}
        layer |= {"fc2.weight": normal(width, ffn), "fc2.bias": 0.3 * normal(width)}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            layer |= {f"{norm}.weight": 1 + 0.3 * normal(width), f"{norm}.bias": 0.3 * normal(width)}
        found |= {f"layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return found


def write_kimi_whisper(folder: Path, *, width: int = 20, positions: int = 100, layers: int = 2, seed: int = 2) -> Path:
    """A Whisper's folder as it stands within Kimi-Audio's, with what there is of a decoder left to one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["WhisperForConditionalGeneration"], **whisper_config(width, 24, 2, positions)}
    config |= {"encoder_layers": layers, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    config |= {"num_hidden_layers": layers, "vocab_size": 51866, "torch_dtype": "float32", "transformers_version": "4.36.0"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {f"model.encoder.{name}": tensor for name, tensor in encoder_tensors(config, layers, seed).items()}
    tensors |= {"model.encoder.layer_norm.weight": torch.linspace(0.5, 1.5, width), "model.encoder.layer_norm.bias": torch.ones(width)}
    tensors["model.decoder.embed_positions.weight"] = torch.zeros(448, width)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_speech_tokenizer(
    folder: Path, *, width: int = 24, positions: int = 100, layers: int = 2, block: int = 16, codes: int = 24, seed: int = 3
) -> Path:
    """The speech tokenizer's folder, with what training left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["WhisperVQEncoder"], **whisper_config(width, 32, 3, positions), "encoder_layers": 2 * layers}
    config |= {
        "encoder_causal_attention": False,
        "encoder_causal_convolution": True,
        "pooling_kernel_size": 4,
        "pooling_position": layers,
        "pooling_type": "avg",
        "quantize_causal_block_size": block,
        "quantize_causal_encoder": False,
        "quantize_commit_coefficient": 0.25,
        "quantize_ema_decay": 0.99,
        "quantize_encoder_only": True,
        "quantize_loss_scale": 10.0,
        "quantize_position": layers,
        "quantize_restart_interval": 100,
        "quantize_vocab_size": codes,
        "skip_language_detection": True,
        "torch_dtype": "float32",
        "transformers_version": "4.44.1",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = encoder_tensors(config, layers, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors["codebook.weight"] = torch.randn(codes, width, generator=generator)
    tensors |= {"ema_count": torch.ones(codes), "ema_weight": tensors["codebook.weight"].clone()}
    tensors["embed_positions2.weight"] = tensors["embed_positions.weight"][: -(-positions // 4)].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_kimi_audio_that_hears(root: Path) -> Path:
    """Kimi-Audio with its Whisper within and the speech tokenizer beside it."""
    folder = write_kimi_audio(root / KIMI_AUDIO)
    write_kimi_whisper(folder / "whisper-large-v3")
    write_speech_tokenizer(root / SPEECH_TOKENIZER)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m tests.checkpoints OUT")
    out = Path(sys.argv[1])
    kimi = write_kimi_audio_that_hears(out)
    write_voice(kimi)
    print(kimi)
    print(write_qwen2_5_omni(out / QWEN2_5_OMNI))
    print(write_whisper(out / WHISPER))
    print(write_qwen_audio(out / QWEN_AUDIO))
    print(write_judge_lm(out / JUDGE_LM))
