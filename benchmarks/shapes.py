"""The sizes of speech LM that are measured and reckoned with."""

from paras2s_cli.models.config import SpeechLMConfig

POCKET = SpeechLMConfig(
    vocab_size=1536,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    kimia_token_offset=512,
    kimia_mimo_layers=2,
    kimia_mimo_transformer_from_layer_index=2,
    kimia_mimo_audiodelaytokens=2,
    kimia_adaptor_input_dim=64,
)
KIMI_AUDIO = SpeechLMConfig(
    vocab_size=168448,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    kimia_token_offset=152064,
    kimia_mimo_layers=6,
    kimia_mimo_transformer_from_layer_index=21,
    kimia_mimo_audiodelaytokens=6,
    kimia_adaptor_input_dim=5120,
)
