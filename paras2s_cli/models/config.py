"""The shape of a speech LM, as its config.json says it."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from paras2s_cli.errors import UsageError

ARCHITECTURE = "MoonshotKimiaForCausalLM"
_ONLY: dict[str, Any] = {
    "architectures": [ARCHITECTURE],
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "use_sliding_window": False,
    "use_whisper_feature": True,
    "quantization_config": None,
}
"""What a config may say of things that there is one way of here."""


@dataclass(frozen=True, slots=True)
class SpeechLMConfig:
    """Kimi-Audio's config fields under their own names, and the encoder that small models bring along.

    `num_hidden_layers` counts the shared layers and the text branch; the streams part after layer
    `kimia_mimo_transformer_from_layer_index`; the audio branch has `kimia_mimo_layers` of its own. Ids at and above
    `kimia_token_offset` are audio codes.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    kimia_token_offset: int
    kimia_mimo_layers: int
    kimia_mimo_transformer_from_layer_index: int
    kimia_mimo_audiodelaytokens: int
    kimia_adaptor_input_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 8192
    encoder_features: int = 0
    """Feature columns a 20 ms frame for the model's own encoder; 0 when features come encoded (Whisper's)."""
    model_type: str = "moonshot_kimia"
    published: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """config.json as it was read, with all that this class has no field for; `save` writes that back."""

    def __post_init__(self) -> None:
        heads, kv_heads, fork = self.num_attention_heads, self.num_key_value_heads, self.kimia_mimo_transformer_from_layer_index
        assert heads > 0 and self.hidden_size % heads == 0, f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}"
        assert kv_heads > 0 and heads % kv_heads == 0, f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
        assert self.head_dim % 2 == 0, f"hidden_size / num_attention_heads is {self.head_dim}, an odd number"
        assert 0 <= fork < self.num_hidden_layers, f"kimia_mimo_transformer_from_layer_index {fork} is no layer"
        assert 0 < self.kimia_token_offset < self.vocab_size, f"kimia_token_offset {self.kimia_token_offset} is not within the vocabulary"
        assert self.kimia_adaptor_input_dim % 4 == 0, f"kimia_adaptor_input_dim {self.kimia_adaptor_input_dim} is not that of 4 frames"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def shared_layers(self) -> int:
        """Layers before the streams part."""
        return self.kimia_mimo_transformer_from_layer_index + 1

    @property
    def codes(self) -> int:
        """Size of the audio codebook."""
        return self.vocab_size - self.kimia_token_offset

    @property
    def frame_features(self) -> int:
        """Columns of a 20 ms frame of continuous features: those of the model's own encoder, or of Whisper's output."""
        return self.encoder_features or self.kimia_adaptor_input_dim // 4

    @property
    def adaptor_norm_eps(self) -> float:
        """Kimi-Audio's adaptor ends in a LayerNorm with the eps of the RMS norms, that of small models with LayerNorm's own."""
        return 1e-5 if self.encoder_features else self.rms_norm_eps

    def save(self, path: Path) -> None:
        """Writes config.json: what was read, with the fields as they are now."""
        found = dict(self.published) or {"architectures": [ARCHITECTURE]}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "published" and (f.name in found or not self.published or value != f.default):
                found[f.name] = value
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "SpeechLMConfig":
        """Reads config.json; keys that this class does not know are kept.

        Raises:
            UsageError: the file is missing or not JSON, lacks a field, or is the config of another model.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not the config of a speech LM ({error})") from error
        if not isinstance(found, dict):
            raise UsageError(f"{path}: not the config of a speech LM (no JSON object)")
        for key, only in _ONLY.items():
            if (given := found.get(key, only)) != only:
                raise UsageError(f"{path}: {key} is {json.dumps(given)}, the config of another model: ours has {json.dumps(only)}")
        known = [f for f in fields(cls) if f.name != "published"]
        if missing := [f.name for f in known if f.default is MISSING and f.name not in found]:
            raise UsageError(f"{path}: not the config of a speech LM (it lacks {', '.join(missing)})")
        values = {f.name: found[f.name] for f in known if f.name in found}
        for f in known:
            kind: Any = f.type
            if f.name in values and type(values[f.name]) not in ((int, float) if kind is float else (kind,)):
                raise UsageError(f"{path}: {f.name} is {json.dumps(values[f.name])}, not of kind {kind.__name__}")
        try:
            return cls(**values, published=found)
        except AssertionError as error:
            raise UsageError(f"{path}: not the config of a speech LM ({error})") from error
