"""Judged answers in pieces: a broken run has the lessons of a whole one, to the bit, and judges only what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.end_to_end import EndToEndJudge
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Heard, Span, Toned, Utterance, Verdict
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.recipe.aligning import DistillRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.train import pieces
from paras2s_cli.train.distill import Judged, sampled_answers
from paras2s_cli.train.pieces import Pieces, weights_key

if TYPE_CHECKING:
    from paras2s_cli.models.speech_lm import SpeechLM

COUNT = 14
WORLD: Any = SimpleNamespace(decode=lambda codes: [(0.1 + np.repeat(row, 160)).astype(np.float32) for row in codes])
"""A codec is all that is asked of it."""


class Ears:
    """What they hear depends on what else they listen to, as the last bits of a network's outputs do."""

    name = "ears"

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        total = float(np.sum([np.abs(wave).sum() for wave in waves])) / 3
        heard = Heard("it's \u2013 5\u2028", True, fit=-1 / 3, spans=(Span("it", 0.1, 1 / 7),), cost=1e-7)
        return [Utterance(replace(heard, fit=len(w) / 7), Toned({"calm": total}, {"adult": 0.1}, {}), role) for w in waves]


@dataclass
class Rubric:
    """Some pairs have no score. It breaks down at one call."""

    breaks: int = -1
    name: str = "rubric"
    calls: list[int] = field(default_factory=list)

    def score(self, pairs: Sequence[tuple[Utterance, Utterance]], **_: object) -> list[Verdict]:
        if len(self.calls) == self.breaks:
            raise RuntimeError
        self.calls.append(len(pairs))
        null = Verdict(None, None, None, "nobody there", "no-reply")
        return [null if i % 3 == 1 else Verdict(2, 3, 1 + i / 7, f"{i}") for i in range(len(pairs))]


@pytest.fixture(scope="module")
def model() -> SpeechLM:
    shape = {"hidden_size": 32, "intermediate_size": 48, "shared_layers": 2, "text_layers": 1, "audio_layers": 1}
    made = new_model(word_tokenizer(["yes"]), codes=2, features=SIZE, heads=4, kv_heads=2, delay=2, seed=1, **shape).eval()
    with torch.no_grad():
        made.mimo_output.weight[made.specials.media_end] *= 3
    return made


@pytest.fixture
def pool(tmp_path: Path) -> list[Spoken]:
    rng, found = np.random.default_rng(0), []
    for i in range(6):
        path = tmp_path / f"{i}.wav"
        write_wav(path, (0.1 * rng.standard_normal(800 + 100 * i)).astype(np.float32))
        found.append(Spoken({"id": f"query {i}"}, path, rng.standard_normal((8, SIZE)).astype(np.float32)))
    return found


class Maker:
    """Pieces in a folder by a judge of its own, as every process has."""

    def __init__(self, folder: Path, model: SpeechLM, breaks: int = -1, warm: str = "warm") -> None:
        self.said: list[str] = []
        self.seen: list[tuple[str, int, int]] = []
        self.rubric = Rubric(breaks)
        self.judge = Judge(Ears(), self.rubric)
        self.answered = partial(sampled_answers, load_recipe("pocket/distill", [], DistillRecipe), model, self.judge, WORLD)
        self.pieces = Pieces(folder, 3, warm, self.judge, self.answered, self.said.append, self._watch)

    def _watch(self, name: str) -> partial:
        return partial(lambda name, done, metrics: self.seen.append((name, done, metrics["of"])), name)


def told(rows: Sequence[Judged]) -> list[tuple]:
    plain = [(r.query.id, r.codes.dtype, r.codes.tolist(), r.asked, r.said, r.score, r.failure, r.reason) for r in rows]
    assert {type(side) for row in rows for side in (row.asked, row.said)} == {Utterance}
    return plain


def test_broken_at_a_piece_and_resumed_it_has_the_lessons_of_a_whole_run(
    model: SpeechLM, pool: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 4)
    whole = Maker(tmp_path / "whole", model)
    order = np.random.default_rng([3, 37]).permutation(6)
    queries = [pool[order[i % 6]] for i in range(COUNT)]
    wanted = told([row for first in range(0, COUNT, 4) for row in whole.answered(queries[first : first + 4], first)])
    assert {len(row[2]) for row in wanted} > {0} and {row[5] is None for row in wanted} == {True, False}
    alone = Maker(tmp_path / "alone", model)
    assert told(alone.pieces.of("train", pool, COUNT)) == wanted
    assert alone.said == ["judging 14 answers to train queries"] and alone.rubric.calls == [4, 4, 4, 2]
    assert alone.seen == [("train answers", done, 14) for done in (4, 8, 12, 14)]
    broken = Maker(tmp_path / "run", model, breaks=2)
    with pytest.raises(RuntimeError):
        broken.pieces.of("train", pool, COUNT)
    resumed = Maker(tmp_path / "run", model)
    assert told(resumed.pieces.of("train", pool, COUNT)) == wanted
    assert resumed.said == ["judging 14 answers to train queries: going on from answer 8 of 14"] and resumed.rubric.calls == [4, 2]
    assert resumed.judge.remembered == alone.judge.remembered == whole.judge.remembered
    again = Maker(tmp_path / "run", model, breaks=0)
    assert told(again.pieces.of("train", pool, COUNT)) == wanted
    assert again.said == ["all 14 answers to train queries are judged already"] and not again.judge.listened
    (tmp_path / "run" / "train" / "0000012-0000014" / "answers.jsonl").write_text('{"query": "qu')
    torn = Maker(tmp_path / "run", model)
    assert told(torn.pieces.of("train", pool, COUNT)) == wanted and torn.rubric.calls == [2]
    assert torn.said == ["judging 14 answers to train queries: going on from answer 12 of 14"]


def test_what_is_drawn_does_not_depend_on_the_size_of_pieces(
    model: SpeechLM, pool: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (2048, 5):
        monkeypatch.setattr(pieces, "PART", size)
        maker = Maker(tmp_path / "run", model)  # pieces of another size are not taken for one's own
        found.append([(row.query.id, row.codes.tolist()) for row in maker.pieces.of("train", pool, COUNT)])
        assert sum(maker.rubric.calls) == COUNT
    assert found[0] == found[1] and len({str(row) for row in found[0]}) > 6


def test_what_is_of_another_model_judge_or_queries_is_not_taken(model: SpeechLM, pool: list[Spoken], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "reward" / "answers"
    Maker(folder, model).pieces.of("train", pool, 2)
    other = Maker(folder, model, warm="cold")
    other.rubric.name = "another"
    changed = [replace(pool[0], row={**pool[0].row, "requirement": "be brief"}), *pool[1:]]
    for maker, asked, what in (
        (other, pool, "the warm model and the judge"),
        (Maker(folder, model), changed, "the queries"),
    ):
        with pytest.raises(UsageError, match=f"^{folder}/train holds answers from before {what} changed: delete {folder.parent} "):
            maker.pieces.of("train", asked, 2)
    damaged = folder / "train" / "0000000-0000002" / "answers.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"{", b"["))
    with pytest.raises(UsageError, match=r"0000000-0000002 is damaged \(.*\); delete it, and its answers are made again"):
        Maker(folder, model).pieces.of("train", pool, 2)


def test_the_sound_of_recordings_is_not_kept(tmp_path: Path, pool: list[Spoken]) -> None:
    judge = EndToEndJudge(Rubric())
    wave = np.full(16000, 0.1, np.float32)

    def answered(queries: Sequence[Spoken], first: int) -> list[Judged]:
        asked, said = judge.hear([wave] * len(queries), "query"), judge.hear([wave] * len(queries), "answer")
        return [Judged(q, np.arange(first + 3), a, s, 2.0) for q, a, s in zip(queries, asked, said, strict=True)]

    kept = Pieces(tmp_path / "run", 3, "warm", judge, answered, print, lambda name: lambda done, metrics: None)
    assert [row[2:6] for row in told(kept.of("train", pool, 2))] == [([0, 1, 2], side, side, 2.0) for side in [plain()] * 2]
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.jsonl")) < 2000


def plain() -> Utterance:
    return Utterance(Heard("", False), Toned({}, {}, {}), "")


def test_the_key_of_weights_is_of_all_files(tmp_path: Path) -> None:
    keys = {weights_key(tmp_path)}
    for name, data in (("b.safetensors", b"1"), ("a.safetensors", b"2"), ("a.safetensors", b"3"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(data)
        keys.add(weights_key(tmp_path))
    assert len(keys) == 4
