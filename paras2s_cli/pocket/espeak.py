"""Speech from espeak-ng, in a helper process of its own.

espeak-ng is GPL and not thread-safe, and its state carries over from call to call, so the same text does not give the same
samples twice. The helper (this file run as a module) loads the library once and forks one child per utterance: every
utterance starts from the same state, and the rest of the package never loads the library.
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from paras2s_cli.errors import UsageError

RATE = 22050
"""Samples a second of what espeak-ng returns, Hz."""

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1


class Espeak:
    """A helper process that speaks. Use as a context manager.

    Raises:
        UsageError: espeak-ng is not installed.
    """

    def __enter__(self) -> "Espeak":
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def speak(self, text: str, variant: str) -> np.ndarray:
        """The text in a voice variant of American English: int16 [T] at `RATE`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write((json.dumps([text, variant]) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        head = self._process.stdout.read(4)
        if len(head) < 4:
            raise UsageError("espeak-ng could not be loaded: install it with `pip install 'paras2s[pocket]'`")
        size = struct.unpack("<i", head)[0]
        if size < 0:
            raise UsageError(f"espeak-ng has no voice variant {variant!r}")
        return np.frombuffer(self._process.stdout.read(size), dtype=np.int16)


def _load(folder: str) -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError:
        raise SystemExit(1) from None  # the other side finds the pipe closed and says what to install

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    (Path(folder) / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, folder.encode(), _DONT_EXIT)
    if rate != RATE:
        raise RuntimeError(f"espeak-ng speaks at {rate} Hz, not {RATE}")
    return library


def _speak(library: ctypes.CDLL, text: str, variant: str) -> bytes:
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, _events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(1)  # the noise of breathy voices, else seeded by the clock
    library.espeak_SetVoiceByName(f"en-us+{variant}".encode())
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
    return b"".join(chunks)


def _serve() -> None:
    # Paths beyond about 150 characters overflow a buffer in the library, and virtual environments lie deep: a short link.
    with tempfile.TemporaryDirectory(prefix="espeak", dir="/tmp") as folder:
        library = _load(folder)
        for line in sys.stdin.buffer:
            text, variant = json.loads(line)
            if not (Path(folder) / "espeak-ng-data" / "voices" / "!v" / variant).is_file():  # the library would take any name
                sys.stdout.buffer.write(struct.pack("<i", -1))
                sys.stdout.buffer.flush()
                continue
            child = os.fork()
            if child == 0:
                spoken = _speak(library, text, variant)
                out = memoryview(struct.pack("<i", len(spoken)) + spoken)
                while out:
                    out = out[os.write(1, out) :]
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    _serve()
