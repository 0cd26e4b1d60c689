"""The sizes in a WAV's header, which libsndfile does not hold against the file's length."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What programs write that stream and cannot go back: 0, or a little less than 2 GiB or 4 GiB.
_STREAMED = 0x7FFFF000


@dataclass(frozen=True)
class DataChunk:
    """Where the data chunk's size stands in the file, the size (None: streamed), and the bytes there."""

    at: int
    promised: int | None
    held: int
    order: str


def data_chunk(path: Path) -> DataChunk | None:
    """The data chunk of a WAV (RIFF, RIFX or RF64); None for another format, or if there is none."""
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        magic = file.read(12)
        if magic[:4] not in (b"RIFF", b"RIFX", b"RF64") or magic[8:] != b"WAVE":
            return None
        order = "big" if magic[:4] == b"RIFX" else "little"
        wide = 0
        while len(head := file.read(8)) == 8:
            size, body = _number(head[4:], order), file.tell()
            if head[:4] == b"ds64":
                wide = _number(file.read(16)[8:], "little")
            elif head[:4] == b"data":
                if size == 0xFFFFFFFF and wide:
                    size = wide
                elif size >= _STREAMED or (size == 0 and not _only_chunks(file, length, order)):
                    return DataChunk(body - 4, None, length - body, order)
                return DataChunk(body - 4, size, length - body, order)
            file.seek(body + size + size % 2)
    return None


class StreamedWav(io.FileIO):
    """A streamed WAV as if its writer had gone back: the data chunk's size is the bytes that are there."""

    def __init__(self, path: Path, chunk: DataChunk) -> None:
        super().__init__(path)
        size = min(chunk.held, 0xFFFFFFFE)
        self._at, self._bytes = chunk.at, size.to_bytes(4, "big" if chunk.order == "big" else "little")

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer`, with the size in place."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        got = super().readinto(view) or 0
        for offset, byte in enumerate(self._bytes, start=self._at - start):
            if 0 <= offset < got:
                view[offset] = byte
        return got


def _only_chunks(file: io.BufferedReader, length: int, order: str) -> bool:
    """Whether nothing but well-formed chunks follows: then a data chunk of size 0 is really empty."""
    while len(head := file.read(8)) == 8 and head[:4].isascii() and head[:4].decode("ascii").isprintable():
        file.seek(_number(head[4:], order), os.SEEK_CUR)
        if file.tell() > length:
            return False
    return len(head) == 0


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "big" if order == "big" else "little")
