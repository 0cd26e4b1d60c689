"""Small speech LMs that are trained from nothing: a vocabulary of whole words, and a config."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import NAMES, TextTokenizer

_UNKNOWN = "<|unknown|>"


def word_tokenizer(texts: Sequence[str]) -> TextTokenizer:
    """Whole words and punctuation marks of some texts, in lower case."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())})
    names = [*NAMES.values(), _UNKNOWN]
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate([*names, *words])}, unk_token=_UNKNOWN)
    tokenizer.add_special_tokens(names)
    # Words are set apart and marks are not. (WordPiece's own cleanup would also turn "do not" into "don't".)
    closing = [decoders.Replace(f" {mark}", mark) for mark in ",.;:!?"]
    joining = [decoders.Replace(f" {mark} ", mark) for mark in "'-"]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *closing, *joining])
    return TextTokenizer(tokenizer)


def new_model(
    tokenizer: TextTokenizer,
    *,
    codes: int,
    features: int,
    hidden_size: int,
    intermediate_size: int,
    shared_layers: int,
    text_layers: int,
    audio_layers: int,
    heads: int,
    kv_heads: int,
    delay: int,
    seed: int,
) -> SpeechLM:
    """A speech LM of Kimi-Audio's architecture with fresh weights.

    Args:
        codes: size of the audio codebook. features: columns of the features it hears.
    """
    offset = -(-tokenizer.tokenizer.get_vocab_size() // 64) * 64
    config = SpeechLMConfig(
        vocab_size=offset + codes,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=shared_layers + text_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        kimia_token_offset=offset,
        kimia_mimo_layers=audio_layers,
        kimia_mimo_transformer_from_layer_index=shared_layers - 1,
        kimia_mimo_audiodelaytokens=delay,
        kimia_adaptor_input_dim=hidden_size,
        rope_theta=1e4,
        max_position_embeddings=1024,
        encoder_features=features,
    )
    model = SpeechLM(config, tokenizer.specials)
    model.initialise(seed)
    return model
