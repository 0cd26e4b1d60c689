"""File to waveform: any container, rate and channel count in, mono float32 out."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from paras2s_cli.audio.wav_header import StreamedWav, data_chunk
from paras2s_cli.errors import UsageError

MAX_SECONDS = 600.0
_BLOCK = 1 << 18  # frames decoded at a time: many channels never lie in memory at full length
_UNKNOWN = 1 << 62  # libsndfile reports a count near 2**63 for a stream whose header does not say how long it is
_RATES = (1_000, 768_000)


@dataclass(frozen=True)
class AudioInfo:
    """What the header says: `rate` in Hz, `frames` a channel and `seconds` (None where it does not say)."""

    rate: int
    channels: int
    frames: int | None
    format: str

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.rate


def audio_info(path: Path | str) -> AudioInfo:
    """The header of `path`, without decoding; raises UsageError like `read_audio` for what is not audio."""
    _check_file(Path(path))
    with _open(Path(path)) as file:
        return _info(Path(path), file)


def read_audio(path: Path | str, *, rate: int = 16000, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The waveform of `path`: float32 `[T]`, mean over channels, resampled to `rate` Hz (soxr HQ).

    Samples are as stored (PCM within [-1, 1); float files may exceed it). Silence and clipping are fine.
    Raises UsageError for a file that is missing, unreadable, not audio, empty, truncated, longer than
    `max_seconds` (judged by its header, before decoding), or that holds NaN or infinite samples.
    """
    path = Path(path)
    _check_file(path)
    with _open(path) as file:
        info = _info(path, file)
        if info.frames == 0:
            raise UsageError(f"{path} holds no samples; give a file with sound in it")
        if info.seconds is not None and info.seconds > max_seconds:
            raise _too_long(path, info.seconds, max_seconds)
        samples = _decode(path, file, info, max_seconds)
    if info.rate != rate:
        samples = soxr.resample(samples, info.rate, rate, quality="HQ")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.size == 0:
        raise UsageError(f"{path} holds no samples at {rate} Hz; give a file with sound in it")
    if not np.isfinite(samples).all():
        raise _not_finite(path)
    return samples


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder; name an audio file in it")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is not a regular file; save the audio to a file first")
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise UsageError(f"{path} may not be read; give yourself read permission (chmod +r)") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be opened ({error}); check the path") from None
    if empty:
        raise UsageError(f"{path} is an empty file (0 bytes); give a file with sound in it")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[soundfile.SoundFile]:
    with contextlib.ExitStack() as stack:
        chunk = data_chunk(path)
        try:
            source: Any = os.fspath(path)
            if chunk is not None and chunk.promised is None:
                source = stack.enter_context(StreamedWav(path, chunk))
            file = stack.enter_context(soundfile.SoundFile(source))
        # soundfile raises TypeError for a headerless .raw, whose rate nobody knows.
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
            reason = str(getattr(error, "error_string", "")).rstrip(".")
            # libsndfile says of an MP3 without a whole frame that the file does not exist.
            known = f" ({reason})" if reason and "does not exist" not in reason else ""
            raise UsageError(
                f"{path} is not audio that can be read, or its header is truncated{known}; convert it to WAV, FLAC, OGG or MP3"
            ) from None
        if chunk is not None and chunk.promised is not None and chunk.promised > chunk.held:
            raise UsageError(
                f"{path} is truncated: its header promises {chunk.promised} bytes of sound and"
                f" {chunk.held} are there; copy or save it again"
            )
        yield file


def _info(path: Path, file: soundfile.SoundFile) -> AudioInfo:
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise UsageError(f"{path} claims a sample rate of {file.samplerate} Hz, outside {_RATES[0]} to {_RATES[1]}; save it again")
    frames = None if file.frames < 0 or file.frames >= _UNKNOWN else file.frames
    return AudioInfo(file.samplerate, file.channels, frames, file.format)


def _decode(path: Path, file: soundfile.SoundFile, info: AudioInfo, max_seconds: float) -> np.ndarray:
    blocks: list[np.ndarray] = []
    count, most = 0, int(max_seconds * info.rate)
    buffer = np.empty((min(_BLOCK, info.frames or _BLOCK), info.channels), np.float32)
    try:
        # Not read(): it sizes its buffer by the header's frame count, which may be unknown.
        while got := file.buffer_read_into(buffer, dtype="float32"):
            blocks.append(buffer[:got].mean(axis=1, dtype=np.float32))
            count += got
            if not np.isfinite(blocks[-1]).all():
                raise _not_finite(path)
            if count > most:
                raise _too_long(path, None, max_seconds)
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise UsageError(f"{path} is damaged or truncated ({reason}); copy or save it again") from None
    if count == 0:
        raise UsageError(f"{path} holds no samples; give a file with sound in it")
    # An MP3's length may be an estimate; elsewhere the header is exact.
    slack = max(info.rate, (info.frames or 0) // 20) if info.format.startswith("MP") else 0
    if info.frames is not None and count < info.frames - slack:
        raise _truncated(path, count / info.rate, info.frames / info.rate)
    return np.concatenate(blocks)


def _not_finite(path: Path) -> UsageError:
    return UsageError(f"{path} holds NaN or infinite samples; save it again, as 16-bit PCM for instance")


def _truncated(path: Path, held: float, promised: float) -> UsageError:
    return UsageError(f"{path} is truncated: its header promises {promised:.2f} s and {held:.2f} s are there; copy or save it again")


def _too_long(path: Path, seconds: float | None, limit: float) -> UsageError:
    if seconds is None:
        return UsageError(f"{path} lasts longer than the limit of {limit:g} s; --max-seconds N raises the limit")
    return UsageError(f"{path} lasts {seconds:.0f} s, longer than the limit of {limit:g} s; --max-seconds {int(seconds) + 1} raises it")
