"""Kimi-Audio's text tokenizer from its published files, beside byte pairs made by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.models.byte_pairs import byte_pair_tokenizer, read_ranks, special_ids
from paras2s_cli.models.tokenizer import NAMES, TextTokenizer
from tests.checkpoints import WORDS, byte_pairs, write_tokenizer

PUBLISHED = {
    "msg_end": 151645,
    "media_begin": 151661,
    "media_end": 151663,
    "blank": 151666,
    "text_eos": 151667,
    "user_start": 151670,
    "assistant_start": 151671,
    "speech_ct": 151675,
    "speech_ctd": 151676,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, byte_pairs(WORDS, 44))
    return tmp_path


def paired(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte pairs as they are defined: again and again the leftmost pair whose whole has the lowest rank."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not found:
            return [ranks[part] for part in parts]
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


PIECES = [
    " the",
    " thing",
    " strange",
    " it",
    "'s",
    " rain",
    "strain",
    " thththat",
    " !?",
    "7",
    "5",
    " Ünïcödé",
    "\n\n",
    "ain",
    " ,",
]


def test_ids_are_those_of_byte_pairs_made_by_hand(folder: Path) -> None:
    tokenizer, ranks = TextTokenizer.load(folder), read_ranks(folder / "tiktoken.model")
    rng = np.random.default_rng(1)
    for _ in range(200):
        pieces = [PIECES[i] for i in rng.integers(len(PIECES), size=6)]
        wanted = [i for piece in pieces for i in paired(piece.encode(), ranks)]
        cut = tokenizer.tokenizer.pre_tokenizer.pre_tokenize_str("".join(pieces))
        if len(cut) == len(pieces):  # where pieces do not run into one another
            assert tokenizer.encode("".join(pieces)) == wanted
            assert tokenizer.decode(wanted) == "".join(pieces)
    assert len(tokenizer.encode(" strange")) < 4 < len(tokenizer.encode(" Ünïcödé"))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It's 1205 o'clock", ["It", "'s", " ", "1", "2", "0", "5", " o", "'clock"]),
        ("a  b\n\n c!?\r\nd", ["a", " ", " b", "\n\n", " c", "!?\r\n", "d"]),
        ("(early)   ", ["(early", ")", "   "]),
        ("WE'LL", ["WE", "'LL"]),
    ],
)
def test_a_text_is_cut_as_qwen2_cuts_it(folder: Path, text: str, pieces: list[str]) -> None:
    tokenizer, ranks = TextTokenizer.load(folder), read_ranks(folder / "tiktoken.model")
    assert tokenizer.encode(text) == [i for piece in pieces for i in paired(piece.encode(), ranks)]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_published_ids() -> None:
    found = special_ids(Path("tokenizer_config.json"), 151643)
    assert {key: found[name] for key, name in NAMES.items()} == PUBLISHED
    assert sorted(found.values()) == list(range(151643, 152064))
    assert found["<|reserved_token_0|>"] == 151648 and found["<|reserved_token_19|>"] == 151674 and found["<|reserved_token_20|>"] == 151677


def test_special_tokens_go_by_name(folder: Path) -> None:
    assert TextTokenizer.load(folder).specials.blank == 300 + 23
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    tokens = settings["added_tokens_decoder"]
    tokens["323"]["content"], tokens["324"]["content"] = tokens["324"]["content"], tokens["323"]["content"]
    path.write_text(json.dumps(settings))
    specials = TextTokenizer.load(folder).specials
    assert (specials.blank, specials.text_eos, specials.media_end) == (324, 323, 320)
    path.unlink()
    assert TextTokenizer.load(folder).specials.blank == 323


def test_special_tokens_in_a_text_are_text(folder: Path) -> None:
    tokenizer = TextTokenizer.load(folder)
    text = "say <|im_msg_end|>[BOS]"
    ids = tokenizer.encode(text)
    assert max(ids) < 300 and tokenizer.decode(ids) == text
    assert tokenizer.decode([*tokenizer.encode("a day"), tokenizer.specials.text_eos, *ids]) == "a day"


@pytest.mark.parametrize("line", ["dGhl", "!!! 3", "dGhl x", "dGhl 900", "dGhl 3"])
def test_a_damaged_rank_is_named(folder: Path, line: str) -> None:
    path = folder / "tiktoken.model"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:280], line, *lines[281:]]))
    with pytest.raises(UsageError, match=r"tiktoken\.model"):
        TextTokenizer.load(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"added_tokens_decoder": {"x": {}}}', '{"added_tokens_decoder": {"323": {"content": "[BOS]"}}}']
)
def test_damaged_settings_are_named(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"tokenizer_config\.json"):
        TextTokenizer.load(folder)


def test_pairs_that_overlap_are_taken_from_the_left() -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"aa": 256, b"aaa": 257, b"ab": 258, b"aab": 259, b"ba": 260}
    tokenizer = byte_pair_tokenizer(ranks, special_ids(Path("none"), len(ranks)))
    for text in ("aaaaa", "aabaaab", "abababa", "baabaa", "aaabaaaab"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == paired(text.encode(), ranks)


def test_a_whole_piece_is_one_token_and_each_digit_a_piece() -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"12": 256, b"wxyz": 257}
    tokenizer = byte_pair_tokenizer(ranks, special_ids(Path("none"), len(ranks)))
    assert tokenizer.encode("wxyz", add_special_tokens=False).ids == [257]  # no two of its letters make a token
    assert tokenizer.encode("wxyzz12", add_special_tokens=False).ids == list(b"wxyzz12")
