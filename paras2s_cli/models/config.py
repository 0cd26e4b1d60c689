"""The shape of a speech LM, as its config.json says it."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from paras2s_cli.errors import UsageError


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

    def __post_init__(self) -> None:
        assert self.hidden_size % self.num_attention_heads == 0
        assert self.num_attention_heads % self.num_key_value_heads == 0
        assert self.head_dim % 2 == 0
        assert 0 <= self.kimia_mimo_transformer_from_layer_index < self.num_hidden_layers
        assert 0 < self.kimia_token_offset < self.vocab_size

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

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"architectures": ["MoonshotKimiaForCausalLM"], **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "SpeechLMConfig":
        """Reads config.json; keys that this class does not know are left alone.

        Raises:
            UsageError: the file is missing, not JSON, or lacks a field.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
        except (OSError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(f"{path}: not the config of a speech LM ({error})") from error
