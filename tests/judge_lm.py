"""A small random Qwen2 with a tokenizer and a chat template, in the layout of the published checkpoints, for the judge's third stage."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from paras2s_cli.judge.prompt import FRAME, rubric

JUDGE_LM = "Qwen2.5-Judge-Instruct"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, size: int, template: str | None = TEMPLATE) -> Tokenizer:
    """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json: byte pairs trained on the rubric, `size` with the special ones."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size - len(SPECIALS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([rubric(""), *FRAME], trainer)
    tokenizer.model.save(str(folder))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    settings |= {"model_max_length": 32768} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def write_judge_lm(
    folder: Path,
    *,
    hidden: int = 64,
    ffn: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 2,
    vocabulary: int = 1024,
    seed: int = 1,
    template: str | None = TEMPLATE,
) -> Path:
    """A model that always replies with a digit: one channel is the same at every token, and the head reads 1 to 5 off it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, vocabulary, template)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 4096,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    labels = [tokenizer.token_to_id(label) for label in "12345"]
    save_file(judge_tensors(config, labels, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def judge_tensors(config: dict, labels: list[int], seed: int) -> dict[str, torch.Tensor]:
    """All tensors, bf16."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    tensors = {"model.embed_tokens.weight": normal(size, hidden, scale=hidden**0.5), "model.norm.weight": torch.ones(hidden)}
    tensors["lm_head.weight"] = normal(size, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = {f"{name}_layernorm.weight": torch.ones(hidden) for name in ("input", "post_attention")}
        for part, rows in (("q", hidden), ("k", kv), ("v", kv)):
            layer[f"self_attn.{part}_proj.weight"] = normal(rows, hidden, scale=2.0)
            layer[f"self_attn.{part}_proj.bias"] = 0.1 * torch.randn(rows, generator=generator)
        layer["self_attn.o_proj.weight"] = normal(hidden, hidden)
        layer |= {f"mlp.{part}_proj.weight": normal(ffn, hidden) for part in ("gate", "up")}
        layer["mlp.down_proj.weight"] = normal(hidden, ffn)
        layer["self_attn.o_proj.weight"][0] = layer["mlp.down_proj.weight"][0] = 0.0
        tensors |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    tensors["model.embed_tokens.weight"][:, 0] = 4.0
    tensors["lm_head.weight"][:, 0] = 0.0
    tensors["lm_head.weight"][labels, 0] = 6.0
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}
