"""What a bench asks: the world's queries, or those of a manifest."""

from collections import Counter
from pathlib import Path

import numpy as np

from paras2s_cli.audio.features import SIZE, features
from paras2s_cli.audio.read import read_audio
from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.cache import content_key
from paras2s_cli.data.manifest import read_rows
from paras2s_cli.data.rows import Query
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError


def manifest_queries(path: Path, split: str, folder: Path, *, allow_outside: bool, heard: bool) -> list[Spoken]:
    """The queries of a manifest that are of `split` or of none, their recordings as WAV.

    Rows with one text, or that name each other as `contrast`, are one `sentence`: they are resampled together. Rows without a dimension
    are of `other`.

    Args:
        folder: gets a WAV of each recording that is none.
        heard: whether features are needed.

    Raises:
        UsageError: the manifest or a recording cannot be read, an id is there twice, or nothing is left.
    """
    rows = [row for row in read_rows(path, Query, allow_outside=allow_outside) if row.split in (None, split)]
    if not rows:
        raise UsageError(f"{path} holds no queries of the split {split}; write one JSON row a line, or choose another split=")
    (name, count), *_ = Counter(row.id for row in rows).most_common(1)
    if count > 1:
        raise UsageError(f"{path}: the id {name!r} is there {count} times; every query needs one of its own")
    return [_spoken(row, folder, heard) for row in rows]


def _spoken(row: Query, folder: Path, heard: bool) -> Spoken:
    wave = read_audio(row.audio)
    path = row.audio
    if path.read_bytes()[:4] != b"RIFF":
        path = folder / f"{content_key(path.read_bytes())}.wav"
        write_wav(path, wave)
    fields = row.model_dump(mode="json")
    fields["dimension"] = row.dimension or "other"
    fields["style"] = row.style or "unknown"
    fields["sentence"] = row.text or " ".join(sorted({row.id, row.contrast or row.id}))
    return Spoken(fields, path, features(wave) if heard else np.empty((0, SIZE), np.float32))
