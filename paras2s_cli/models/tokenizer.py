"""The text tokenizer of a speech LM and its special tokens, found by name in tokenizer.json."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from paras2s_cli.errors import UsageError

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
    """tokenizer.json, with the special tokens by name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [name for name in NAMES.values() if tokenizer.token_to_id(name) is None]
        if missing:
            raise UsageError(f"the tokenizer has no token {missing[0]}: it is not a speech LM's")
        self.tokenizer = tokenizer
        self.specials = Specials(**{key: int(tokenizer.token_to_id(name) or 0) for key, name in NAMES.items()})
        self._special_ids = {tokenizer.token_to_id(name) for name in NAMES.values()}

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Raises UsageError when the file is missing or is no tokenizer."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except UsageError:
            raise
        except Exception as error:  # the library raises a bare Exception for every fault of a file
            raise UsageError(f"{path}: not a tokenizer.json ({error})") from error

    def save(self, path: Path) -> None:
        self.tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of a stream: everything up to text_eos, special tokens left out."""
        if self.specials.text_eos in ids:
            ids = ids[: ids.index(self.specials.text_eos)]
        return str(self.tokenizer.decode([i for i in ids if i not in self._special_ids]))
