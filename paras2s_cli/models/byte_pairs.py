"""Kimi-Audio's text tokenizer as it is published: byte pairs in `tiktoken.model`, read by the tokenizers library."""

import base64
import json
from itertools import count
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from paras2s_cli.errors import UsageError

RANKS = "tiktoken.model"
SETTINGS = "tokenizer_config.json"
FILES = (RANKS, SETTINGS, "special_tokens_map.json")
RESERVED = 421
"""Ids after the byte pairs that are kept for special tokens."""
PLACES = {
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
"""Where among those the special tokens stand; the rest are `<|reserved_token_0|>` and so on. The published code fixes this, not a file."""
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""What a text is cut into before bytes are paired: Qwen2's pattern."""


def published_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, bytes]]:
    """The tokenizer and the files it was made from. Special tokens that stand in a text are text.

    Raises:
        UsageError: a file is damaged.
    """
    ranks = read_ranks(folder / RANKS)
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    tokenizer = byte_pair_tokenizer(ranks, special_ids(folder / SETTINGS, len(ranks)))
    return tokenizer, files


def read_ranks(path: Path) -> dict[bytes, int]:
    """Lines of a byte string in base 64 and its rank, which is its id. Raises UsageError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not a token in base 64 and its rank; download the checkpoint again") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([i]) not in ranks for i in range(256)):
        raise UsageError(f"{path}: ranks have gaps, or single bytes are missing; download the checkpoint again")
    return ranks


def special_ids(path: Path, base: int) -> dict[str, int]:
    """Special tokens and their ids after `base` byte pairs; what tokenizer_config.json says of them goes before the places of old."""
    names, reserved = {place: name for name, place in PLACES.items()}, count()
    found = {base + i: names.get(i) or f"<|reserved_token_{next(reserved)}|>" for i in range(RESERVED)}
    if path.exists():
        try:
            given = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
            found |= {int(i): token["content"] for i, token in given.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: not the settings of a tokenizer ({error})") from error
    ids = {name: i for i, name in found.items()}
    if len(ids) < len(found) or sorted(ids.values()) != list(range(base, base + len(ids))):
        raise UsageError(f"{path}: added_tokens_decoder gives a token two ids, or leaves ids out after {base - 1}")
    return ids


def byte_pair_tokenizer(ranks: dict[bytes, int], specials: dict[str, int]) -> Tokenizer:
    """Byte-pair encoding that pairs first what gives the token of the lowest rank, as tiktoken does."""
    letters = _byte_letters()
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(spelt[a], spelt[b]) for a, b in sorted(halves, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()} | specials
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_letters() -> list[str]:
    """The letter that the library has for each byte: its own where that can be seen, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = count(256)
    return [chr(byte if byte in seen else next(unseen)) for byte in range(256)]
