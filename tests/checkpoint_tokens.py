"""The vocabulary that the small checkpoints' tokenizers share."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = (
    "happy surprised sad angry fearful disgusted sincere sarcastic neutral reassuring apologetic cheerful sympathetic excited playful"
    " serious calm flat adult child male female the speaker in which tone does speak go by sound of voice alone answer with one these"
)


def byte_level(count: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level pairs: 256 bytes and at most `count` pairs of WORDS."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + count, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    trained.train_from_iterator([WORDS], trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
