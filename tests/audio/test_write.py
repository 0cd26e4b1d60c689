"""PCM16, clipped, the same bytes for the same samples, whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.audio.read import read_audio
from paras2s_cli.audio.write import wav_bytes, write_wav
from paras2s_cli.errors import UsageError


def test_round_trip_is_exact(tmp_path: Path) -> None:
    stored = np.arange(-32768, 32768, 7).astype(np.int16)
    write_wav(tmp_path / "a.wav", stored.astype(np.float32) / 32768)
    assert np.array_equal(read_audio(tmp_path / "a.wav") * 32768, stored)
    write_wav(tmp_path / "b.wav", read_audio(tmp_path / "a.wav"))
    write_wav(tmp_path / "c.wav", stored)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 1.0, -1.0, 0.0]), rate=24000)
    data, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert data.tolist() == [32767, -32768, 32767, -32768, 0] and rate == 24000


@pytest.mark.parametrize("samples", [np.zeros((2, 3)), np.array([np.nan]), np.array([np.inf])])
def test_nonsense_is_a_bug_of_the_caller(samples: np.ndarray) -> None:
    with pytest.raises(ValueError):
        wav_bytes(samples)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, np.zeros(10))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match=r"cannot write .*a\.wav: No space left on device; free some space"):
        write_wav(path, np.ones(10))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.wav"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file stands where a folder is needed"):
        write_wav(tmp_path / "file" / "a.wav", np.zeros(10))
    with pytest.raises(UsageError, match="not a file"):
        write_wav(tmp_path, np.zeros(10))
    with pytest.raises(UsageError, match="not a file"):
        write_wav("/dev/null", np.zeros(10))
