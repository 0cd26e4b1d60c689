"""Queries of a manifest: any container, twins, splits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.audio.read import read_audio
from paras2s_cli.bench.suite import manifest_queries
from paras2s_cli.errors import UsageError

ROWS = [
    {"id": "a/happy", "audio": "a.wav", "dimension": "emotion", "style": "happy", "text": "We won.", "requirement": "rejoice"},
    {"id": "b", "audio": "b.flac", "contrast": "c", "dimension": "accent", "style": "scots"},
    {"id": "c", "audio": "c.mp3", "contrast": "b", "split": "test"},
    {"id": "d", "audio": "a.wav", "split": "train"},
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    wave = 0.3 * np.sin(np.arange(4800) / 9)
    for name, rate in (("a.wav", 16000), ("b.flac", 44100), ("c.mp3", 24000)):
        soundfile.write(tmp_path / name, np.stack([wave, wave], axis=1), rate)
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "queries.jsonl"


def read(manifest: Path, heard: bool = False) -> list:
    return manifest_queries(manifest, "test", manifest.parent / "wavs", allow_outside=False, heard=heard)


def test_rows_keep_their_styles_and_every_recording_becomes_wav(manifest: Path) -> None:
    a, b, c = read(manifest, heard=True)
    assert [q.id for q in (a, b, c)] == ["a/happy", "b", "c"], "those of the split, and those of none"
    assert [(q.row["dimension"], q.row["style"]) for q in (a, b, c)] == [("emotion", "happy"), ("accent", "scots"), ("other", "unknown")]
    assert a.row["sentence"] == "We won." and b.row["sentence"] == c.row["sentence"] == "b c", "twins are one sentence"
    assert a.row["requirement"] == "rejoice"
    assert a.path == manifest.parent / "a.wav" and {b.path.parent, c.path.parent} == {manifest.parent / "wavs"}
    for query, name in ((a, "a.wav"), (b, "b.flac"), (c, "c.mp3")):
        assert query.path.read_bytes()[:4] == b"RIFF"
        wave = read_audio(manifest.parent / name)
        np.testing.assert_allclose(read_audio(query.path), wave, atol=1 / 32768)
        assert len(query.features) == -(-len(wave) // 320)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "b", "audio": "a.wav"}, "the id 'b' is there 2 times"),
        ({"id": "e", "audio": "gone.wav"}, "gone.wav does not exist"),
        ({"id": "e", "audio": "../a.wav"}, "--allow-outside"),
        ({"id": "e"}, '"audio" is missing'),
    ],
)
def test_a_suite_at_fault_is_refused(manifest: Path, row: dict, says: str) -> None:
    with open(manifest, "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=says):
        read(manifest)


def test_a_split_without_queries_is_refused(manifest: Path) -> None:
    manifest.write_text(json.dumps(ROWS[3]))
    with pytest.raises(UsageError, match="no queries of the split test"):
        read(manifest)
