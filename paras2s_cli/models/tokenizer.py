"""The text tokenizer of a speech LM and its special tokens, found by name: tokenizer.json, or Kimi-Audio's own files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from paras2s_cli.errors import UsageError
from paras2s_cli.models.byte_pairs import RANKS, published_tokenizer

JSON = "tokenizer.json"
NAMES = {
    "msg_end": "<|im_msg_end|>",
    "media_begin": "<|im_media_begin|>",
    "media_end": "<|im_media_end|>",
    "blank": "<|im_kimia_text_blank|>",
    "text_eos": "<|im_kimia_text_eos|>",
    "user_start": "<|im_kimia_user_msg_start|>",
    "assistant_start": "<|im_kimia_assistant_msg_start|>",
    "speech_ct": "<|im_kimia_speech_ct_id|>",
    "speech_ctd": "<|im_kimia_speech_ctd_id|>",
}


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the special tokens that prompts and answers are built from."""

    msg_end: int
    media_begin: int
    media_end: int
    blank: int
    text_eos: int
    user_start: int
    assistant_start: int
    speech_ct: int
    speech_ctd: int


class TextTokenizer:
    """Text to ids and back, with the special tokens by name.

    Args:
        files: the published files that it was made from, which `save` writes back; without them it is a tokenizer.json.
    """

    def __init__(self, tokenizer: Tokenizer, files: Mapping[str, bytes] | None = None) -> None:
        missing = [name for name in NAMES.values() if tokenizer.token_to_id(name) is None]
        if missing:
            raise UsageError(f"the tokenizer has no token {missing[0]}: it is not a speech LM's")
        self.tokenizer, self.files = tokenizer, dict(files or {})
        self.specials = Specials(**{key: int(tokenizer.token_to_id(name) or 0) for key, name in NAMES.items()})
        self._special_ids = {tokenizer.token_to_id(name) for name in NAMES.values()}

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Reads the tokenizer of a checkpoint. Raises UsageError when its files are missing or are no tokenizer."""
        path = folder / JSON
        if not path.exists() and (folder / RANKS).exists():
            return cls(*published_tokenizer(folder))
        try:
            return cls(Tokenizer.from_file(str(path)))
        except UsageError:
            raise
        except Exception as error:  # the library raises a bare Exception for every fault of a file
            raise UsageError(f"{path}: not a tokenizer.json ({error})") from error

    def save(self, folder: Path) -> None:
        """Writes its files into an existing folder."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if not self.files:
            self.tokenizer.save(str(folder / JSON))

    @property
    def size(self) -> int:
        """How many ids there are, special tokens included."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of a stream: everything up to text_eos, special tokens left out."""
        if self.specials.text_eos in ids:
            ids = ids[: ids.index(self.specials.text_eos)]
        return str(self.tokenizer.decode([i for i in ids if i not in self._special_ids]))
