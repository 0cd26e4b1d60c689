"""Any file in, mono float32 at 16 kHz out; every refusal names the file and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.audio.read import audio_info, read_audio
from paras2s_cli.errors import UsageError


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def saved(path: Path, samples: np.ndarray, rate: int = 16000, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count(tmp_path: Path, rate: int, channels: int) -> None:
    path = saved(tmp_path / "a.wav", np.stack([tone(rate)] * channels, axis=1), rate, subtype="FLOAT")
    heard = read_audio(path)
    assert heard.dtype == np.float32 and heard.ndim == 1 and heard.flags.c_contiguous
    want = tone(16000)
    assert len(heard) == len(want)
    inner = slice(800, -800)  # a resampler's filter has nothing to look at beyond the ends
    assert np.abs(heard[inner] - want[inner]).max() < 1e-3


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_formats(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, np.stack([tone(48000)] * 2, axis=1), 48000)
    heard = read_audio(path)
    assert abs(len(heard) - 8000) <= 16
    spectrum = np.abs(np.fft.rfft(heard[1000:7000]))
    assert spectrum.argmax() * 16000 / 6000 == pytest.approx(440, abs=4)
    assert np.abs(heard[1000:7000]).max() == pytest.approx(0.3, abs=0.03)


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    heard = read_audio(saved(tmp_path / "a.wav", tone(48000, hertz=10_000), 48000, subtype="FLOAT"))
    assert np.abs(heard[800:-800]).max() < 1e-4


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.wav", np.stack([tone(16000), -tone(16000)], axis=1), subtype="FLOAT")
    assert np.abs(read_audio(path)).max() == 0


def test_same_rate_is_untouched_across_blocks(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 600_000).astype(np.float32)
    path = saved(tmp_path / "a.wav", noise, subtype="FLOAT")
    assert np.array_equal(read_audio(path), noise)


def test_other_target_rate(tmp_path: Path) -> None:
    assert len(read_audio(saved(tmp_path / "a.wav", tone(16000)), rate=24000)) == 12000


def test_silence_and_clipping_are_not_refused(tmp_path: Path) -> None:
    assert not read_audio(saved(tmp_path / "silence.wav", np.zeros(160, np.float32))).any()
    loud = read_audio(saved(tmp_path / "loud.wav", tone(16000, level=3.0), subtype="FLOAT"))
    assert loud.max() > 2.9


def test_info(tmp_path: Path) -> None:
    info = audio_info(saved(tmp_path / "a.flac", np.zeros((4800, 2)), 48000))
    assert (info.rate, info.channels, info.frames, info.seconds, info.format) == (48000, 2, 4800, 0.1, "FLAC")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_streamed_wav_is_whole(tmp_path: Path, size: int) -> None:
    path = saved(tmp_path / "a.wav", tone(16000))
    whole, want = path.read_bytes(), read_audio(path)
    patch = size.to_bytes(4, "little")
    path.write_bytes(whole[:4] + patch + whole[8:40] + patch + whole[44:])
    assert np.array_equal(read_audio(path), want)
    path.write_bytes(whole[:40] + patch + whole[44:])
    assert np.array_equal(read_audio(path), want)


def cut(path: Path, part: float | int) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part) if isinstance(part, float) else part])
    return path


def refusals(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """What is wrong -> (the file, what the sentence must say)."""
    bad = tone(16000)
    bad[100] = np.nan
    hot = tone(16000)
    hot[7] = np.inf
    chunk = saved(tmp_path / "empty-then-list.wav", np.zeros(0))
    chunk.write_bytes(chunk.read_bytes() + b"LIST\4\0\0\0INFO")
    odd_rate = bytearray(saved(tmp_path / "odd.wav", tone(16000)).read_bytes())
    odd_rate[24:28] = (1).to_bytes(4, "little")
    files = {
        "text.wav": b"not audio at all",
        "empty.wav": b"",
        "odd.wav": bytes(odd_rate),
        "headerless.raw": b"12345678",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    return {
        "missing": (tmp_path / "missing.wav", "does not exist"),
        "folder": (tmp_path, "is a folder"),
        "pipe": (tmp_path / "pipe.wav", "not a regular file"),
        "loop of links": (tmp_path / "loop.wav", "cannot be opened"),
        "name with NUL": (tmp_path / "a\0b.wav", "cannot be opened"),
        "text": (tmp_path / "text.wav", "not audio"),
        "raw": (tmp_path / "headerless.raw", "not audio"),
        "no bytes": (tmp_path / "empty.wav", "empty file"),
        "no samples": (saved(tmp_path / "zero.wav", np.zeros(0)), "no samples"),
        "no samples, more chunks": (chunk, "no samples"),
        "too few samples to resample": (
            saved(tmp_path / "one.wav", np.zeros(1), 96000),
            "no samples at 16000",
        ),
        "NaN": (saved(tmp_path / "nan.wav", bad, subtype="FLOAT"), "NaN or infinite"),
        "infinity": (saved(tmp_path / "inf.wav", hot, subtype="FLOAT"), "NaN or infinite"),
        "over float32": (
            saved(tmp_path / "big.wav", tone(16000).astype(np.float64) * 1e300, subtype="DOUBLE"),
            "NaN or infinite",
        ),
        "rate of 1 Hz": (tmp_path / "odd.wav", "sample rate of 1 Hz"),
        "header cut": (cut(saved(tmp_path / "head.wav", tone(16000)), 30), "truncated"),
        "wav cut": (
            cut(saved(tmp_path / "cut.wav", tone(16000)), 0.5),
            "its header promises 16000 bytes",
        ),
        "one byte cut": (cut(saved(tmp_path / "cut1.wav", tone(16000)), 16043), "is truncated"),
        "rf64 cut": (cut(saved(tmp_path / "c.rf64", tone(16000), format="RF64"), 0.5), "is truncated"),
        "flac cut": (cut(saved(tmp_path / "cut.flac", tone(16000, 4)), 0.5), "truncated"),
        "long": (saved(tmp_path / "long.wav", np.zeros(8 * 601), 8, subtype="PCM_U8"), "sample rate of 8 Hz"),
        "too long": (saved(tmp_path / "too.wav", np.zeros(1000 * 601), 1000), "--max-seconds 602"),
    }


CASES = [
    "missing", "folder", "pipe", "loop of links", "name with NUL", "text", "raw", "no bytes", "no samples",
    "no samples, more chunks", "too few samples to resample", "NaN", "infinity", "over float32",
    "rate of 1 Hz", "header cut", "wav cut", "one byte cut", "rf64 cut", "flac cut", "long", "too long",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    path, words = refusals(tmp_path)[case]
    with pytest.raises(UsageError) as refusal:
        read_audio(path)
    sentence = str(refusal.value)
    assert words in sentence and path.name.replace("\0", "\\x00") in sentence
    assert "\n" not in sentence and ("; " in sentence)


def test_limit_can_be_raised(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.wav", np.zeros(1000 * 601), 1000)
    assert len(read_audio(path, max_seconds=602)) == 16000 * 601


def test_a_long_file_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.wav", np.zeros(1000 * 601), 1000)
    monkeypatch.setattr("paras2s_cli.audio.read._decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UsageError, match="lasts 601 s, longer than the limit of 600 s"):
        read_audio(path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.wav", tone(16000))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UsageError, match=r"may not be read; .*chmod"):
        read_audio(path)
