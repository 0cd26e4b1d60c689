"""Manifests: all errors of a file at once, no way out of its folder, and torn lines are no obstacle."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paras2s_cli.data.manifest import (
    JsonlWriter,
    append_row,
    drop_torn_line,
    read_done,
    read_rows,
    read_rows_leniently,
)
from paras2s_cli.data.rows import BadRow, Demonstration, Judgement, Pair
from paras2s_cli.errors import UsageError

GOOD = '{"query": "q.wav", "answer": "sub/a.wav", "note": "ä"}'


def manifest(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_paths_become_absolute_and_oddities_are_read(tmp_path: Path) -> None:
    path = manifest(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), "", "  ", GOOD + "\r")
    rows = list(read_rows(path, Pair))
    assert len(rows) == 2
    assert rows[0].query == tmp_path.resolve() / "q.wav" and rows[1].answer == tmp_path.resolve() / "sub/a.wav"
    assert rows[0].model_dump()["note"] == "ä"


def test_stdin_is_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert next(iter(read_rows("-", Pair))).query == tmp_path.resolve() / "q.wav"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    with pytest.raises(UsageError, match=r"^stdin:1: not JSON"):
        read_rows("-", Pair)


STRUCTURAL = [
    ("{not json", "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ('{"query": NaN, "answer": "a.wav"}', "NaN is no number"),
    ("[" * 100_000, "not JSON"),
    (b'{"query": "\xff.wav", "answer": "a.wav"}', r"not UTF-8 \(byte 12 of the line"),
    ('{"query": "q.wav", "anwser": "a.wav"}', '"answer" is missing .there is "anwser"'),
    ('{"query": "../q.wav", "answer": "a.wav"}', '"query" ../q.wav leaves the manifest'),
    ('{"query": "/etc/passwd", "answer": "a.wav"}', "leaves the manifest.*--allow-outside"),
    ('{"query": "link/q.wav", "answer": "a.wav"}', "leaves the manifest"),
    ('{"messages": [], "audios": []}', "no assistant message"),
]


@pytest.mark.parametrize(("line", "words"), STRUCTURAL)
@pytest.mark.parametrize("read", [read_rows, read_rows_leniently])
def test_structural_errors_name_file_and_line(tmp_path: Path, read: Any, line: str | bytes, words: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    path = manifest(folder, GOOD, "", line)
    with pytest.raises(UsageError, match=rf"pairs\.jsonl:3: .*{words}") as refusal:
        read(path, Pair)
    assert "\n" not in str(refusal.value)


def test_links_and_dots_that_stay_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = manifest(tmp_path, '{"query": "link/../q.wav", "answer": "link/a.wav"}')
    assert next(iter(read_rows(path, Pair))).answer == tmp_path.resolve() / "real/a.wav"


def test_allow_outside(tmp_path: Path) -> None:
    path = manifest(tmp_path, '{"query": "../q.wav", "answer": "/a.wav"}')
    row = next(iter(read_rows(path, Pair, allow_outside=True)))
    assert row.query == tmp_path.resolve().parent / "q.wav" and row.answer == Path("/a.wav")


def test_a_nested_path_is_held_inside_too(tmp_path: Path) -> None:
    line = {"query": {"id": "x", "audio": "../q.wav"}, "audio": "a.wav", "text": "Hi."}
    with pytest.raises(UsageError, match=r':1: "query\.audio" \.\./q\.wav leaves'):
        read_rows(manifest(tmp_path, json.dumps(line)), Demonstration)


def test_ten_errors_and_a_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        read_rows(manifest(tmp_path, *["{"] * 25), Pair)
    lines = str(refusal.value).split("\n")
    assert len(lines) == 11 and ":10: " in lines[9] and lines[10] == "... and 15 more lines"


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        GOOD,
        '{"id": "x", "query": "q.wav", "answer": ["a"], "requirement": 5}',
        '{"query": "", "answer": "a.wav"}',
        '{"query": "a\\u0000b", "answer": "a.wav"}',
    )
    rows = list(read_rows_leniently(path, Pair))
    assert isinstance(rows[0], Pair)
    bad = rows[1]
    assert isinstance(bad, BadRow) and (bad.line, bad.id, bad.failure) == (2, "x", "bad-row")
    assert bad.reason == '"answer" should be a path, written as a string'
    assert all(isinstance(row, BadRow) for row in rows[2:])
    with pytest.raises(UsageError, match=r'pairs\.jsonl:2: "answer" .*\n.*:3: "query" the path is empty\n'):
        read_rows(path, Pair)


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl", Pair)
    with pytest.raises(UsageError, match="is a folder"):
        read_rows(tmp_path, Pair)


def test_messages_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "<audio>Yes."}]
    path = manifest(tmp_path, json.dumps({"messages": turns, "audios": ["q.wav", "a.wav"]}))
    row = next(iter(read_rows(path, Demonstration)))
    assert row.query.audio == tmp_path.resolve() / "q.wav" and row.text == "Yes."


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    row = Pair(query=tmp_path.resolve() / "new/q.wav", answer=Path("/x/a.wav"), requirement="ä\ud800 \u2028")
    with JsonlWriter(path) as writer:
        writer.write(row)
        writer.write({"query": "q.wav", "answer": "a.wav", "n": np.float32(0.5)})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3 and json.loads(lines[0])["query"] == "q.wav"
    rows = list(read_rows(path, Pair, allow_outside=True))
    assert rows[0].query == row.query and rows[0].answer == row.answer
    with JsonlWriter(path) as writer, pytest.raises(ValueError):
        writer.write({"score": float("nan")})
    assert path.read_bytes().split(b"\n") == lines


class Reluctant(io.BytesIO):
    """An unbuffered file that takes three bytes at a time."""

    def write(self, data: Any) -> int:
        return super().write(data[:3])


def test_a_partial_write_goes_on() -> None:
    file = Reluctant()
    append_row(file, {"a": "long enough"})
    assert file.getvalue() == b'{"a": "long enough"}\n'


def judgement(number: int) -> Judgement:
    return Judgement(query=f"q{number}", system="s", score=4, reason="fits, naturally")


def test_every_torn_end_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with JsonlWriter(path) as writer:
        for number in range(3):
            writer.write(judgement(number))
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
    for length in [*range(0, len(whole), 5), *(end - back for end in ends for back in (0, 1, 2))]:
        path.write_bytes(whole[:length])
        # A line that lacks nothing but its newline is whole.
        count = sum(end - 1 <= length for end in ends)
        assert len(read_done(path, "query")) == count
        with JsonlWriter(path) as writer:
            for number in range(count, 3):
                writer.write(judgement(number))
        assert path.read_bytes() == whole
    assert read_done(path, ("query", "system")) == {(f"q{number}", "s") for number in range(3)}
    assert read_done(tmp_path / "none.jsonl", "query") == set()


def test_a_long_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"b": "' + b"x" * 300_000)
    drop_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n'


def test_zeros_after_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(100))
    drop_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n'


def test_another_kind_of_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my only copy")
    with pytest.raises(UsageError, match="not a JSONL file"):
        JsonlWriter(path)
    assert path.read_text() == "my only copy"
    with pytest.raises(UsageError, match="not a file"):
        JsonlWriter(tmp_path)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device; free"):  # noqa: SIM117
        with JsonlWriter(tmp_path / "scores.jsonl") as writer:
            writer._file.close()
            writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
            writer.write({"a": 1})
