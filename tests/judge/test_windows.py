"""Windows: where they are cut, and that no more than a few lie in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stand_in_judge import make_pairs

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.manifest import read_rows_leniently
from paras2s_cli.data.rows import BadRow, Pair
from paras2s_cli.errors import UsageError
from paras2s_cli.judge import windows as under_test
from paras2s_cli.judge.windows import AnyPair, decode_ahead, windows


def pairs(folder: Path, count: int) -> list[AnyPair]:
    return list(read_rows_leniently(make_pairs(folder, count), Pair))


def test_cuts_by_rows_and_by_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs(tmp_path, 10)
    assert [len(w) for w in windows(rows, 4)] == [4, 4, 2]
    write_wav(tmp_path / "a5.wav", np.zeros(16000))
    monkeypatch.setattr(under_test, "MOST_SECONDS", 0.5)
    assert [len(w) for w in windows(rows, 4)] == [4, 1, 1, 4], "a long row is alone"
    assert list(windows([], 4)) == []


def test_what_is_done_is_not_decoded_and_moves_no_cut(tmp_path: Path) -> None:
    rows = pairs(tmp_path, 10)
    done = [index in (0, 1, 2, 3, 5, 9) for index in range(10)]
    found = [[row.id for row in w.rows] for w in decode_ahead(rows, done, 4, 600)]
    assert found == [["p4", "p6", "p7"], ["p8"]]


def test_a_file_is_decoded_once_a_window_and_few_windows_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = pairs(tmp_path, 40), []
    real = under_test.read_audio

    def noted(path: Path, **options: float) -> np.ndarray:
        read.append(path.name)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(under_test, "read_audio", noted)
    stream = decode_ahead(rows, [False] * 40, 4, 600)
    first = next(stream)
    assert len(first.rows) == 4 and len(first.sounds) == 7  # 3 queries and 4 answers
    stream.close()
    assert len(read) <= (under_test.AHEAD + 1) * 7
    read.clear()
    assert sum(len(w.rows) for w in decode_ahead(rows, [False] * 40, 4, 600)) == 40
    assert len(read) == 70


def test_what_cannot_be_read_is_a_sentence_in_its_place(tmp_path: Path) -> None:
    rows = pairs(tmp_path, 2)
    (tmp_path / "a1.wav").write_text("no sound")
    window = next(iter(decode_ahead([*rows, BadRow(3, None, "bad-row", "x")], [False] * 3, 4, 600)))
    assert isinstance(window.sounds[tmp_path / "a1.wav"], UsageError)
    assert window.sounds[tmp_path / "a0.wav"].dtype == np.float32
