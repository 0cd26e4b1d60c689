"""The judge end to end, against the library's own forward on the whole prompt, a pair at a time, in fp64 from the logits on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paras2s_cli.judge.end_to_end import EndToEndJudge
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.hearing.pair_scorer import PairReader, PairScorer
from paras2s_cli.judge.stages import Recording
from paras2s_cli.recipe.aligning import RewardLM
from paras2s_cli.recipe.judging import EndToEnd
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.sound_reward import SoundReward
from tests.pair_forward import Slow

FAMILIES = ["qwen2_audio", "omni"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(folder: Path, **more: object) -> EndToEnd:
    return EndToEnd.model_validate({"model": str(folder), "device": "cpu", "batch": 3, "floor": 0.0} | more)


def reward(folder: Path, **more: object) -> PairLM:
    lora = {"r": 4, "alpha": 8, "targets": ["q_proj", "up_proj"]}
    return PairLM(RewardLM.model_validate({"model": str(folder), "device": "cpu", "lora": lora} | more), "reward.audio_lm", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_with_a_reward_models_adapter(
    family: str, folders: dict[str, Path], pairs: tuple[list[np.ndarray], list[np.ndarray]], tmp_path: Path
) -> None:
    taught = reward(folders[family])
    with torch.no_grad():
        for name, weight in taught.adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    (tmp_path / "reward").mkdir()
    SoundReward(taught, lambda codes: [], Train(steps=0, lr=1e-6)).save(tmp_path / "reward")
    adapted = settings(folders[family], adapter=str(tmp_path / "reward"))
    judge = EndToEndJudge(PairScorer(adapted, pytest.fail))
    judged = judge.judge(*pairs)
    assert not judge.remembered
    slow = Slow(family, folders[family], tmp_path / "reward")
    for (asked, said, verdict), query, answer in zip(judged, *pairs, strict=True):
        labels, mass = slow.digits(query, answer)
        assert isinstance(asked, Recording) and isinstance(said, Recording) and said.wave is answer
        assert verdict.score == pytest.approx(sum(k * p for k, p in enumerate(labels, 1)), abs=1e-4)
        assert list(verdict.more["labels"]) == ["1", "2", "3", "4", "5"]
        np.testing.assert_allclose(list(verdict.more["labels"].values()), labels, atol=1e-5)
        assert verdict.more["label_mass"] == pytest.approx(mass, abs=1e-5)
        assert verdict.more["label"] == 1 + int(np.argmax(labels)) and verdict.content is verdict.style is None
    scores = [verdict.score or 0.0 for _, _, verdict in judged]
    np.testing.assert_allclose(scores, taught.grade(*pairs), atol=1e-4)
    bare, swapped = PairReader(settings(folders[family])).read(*pairs), PairReader(adapted).read(*pairs[::-1])
    for other in (bare, swapped):
        assert min(abs(np.dot(row[:5], range(1, 6)) - score) for row, score in zip(other, scores, strict=True)) > 1e-3, "told apart"
    assert np.abs(np.subtract.outer(scores, scores) + np.eye(4)).min() > 1e-3, "each pair has a score of its own"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_alone_and_in_a_batch_of_mixed_lengths(
    family: str, folders: dict[str, Path], pairs: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    reader = PairReader(settings(folders[family]))
    together = reader.read(*pairs)
    for row, query, answer in zip(together, *pairs, strict=True):
        np.testing.assert_allclose(reader.read([query], [answer])[0], row, atol=2e-5)


def test_half_precision_rounds_no_score(folders: dict[str, Path], pairs: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    """The reward model's head has its digits in fp32, and so has this one."""
    rows = PairReader(settings(folders["omni"], dtype="bfloat16", batch=8)).read(*pairs)
    wanted = reward(folders["omni"], dtype="bfloat16").grade(*pairs)
    np.testing.assert_allclose([np.dot(row[:5], range(1, 6)) for row in rows], wanted, atol=1e-5)


def test_what_was_heard_is_not_heard_again(
    folders: dict[str, Path], pairs: tuple[list[np.ndarray], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second, third, _), (one, two, three, _) = pairs
    silence = np.zeros(9000, np.float32)
    scorer = PairScorer(settings(folders["omni"]), pytest.fail)
    judge = EndToEndJudge(scorer)
    kept = [v.score for *_, v in judge.judge([first, second], [one, two])]
    read: list[int] = []

    def counted(self: PairReader, asked: list[np.ndarray], said: list[np.ndarray]) -> list[list[float]]:
        read.append(len(asked))
        return original(self, asked, said)

    original = PairReader.read
    monkeypatch.setattr(PairReader, "read", counted)
    again = EndToEndJudge(PairScorer(settings(folders["omni"], floor=0.9999), pytest.fail))
    rows = [v for *_, v in again.judge([second, first, first, third, first, silence], [two, one, two, three, silence, one])]
    assert read == [2], "only the pairs of which one side or the other is new: first with two, third with three"
    assert [v.failure for v in rows] == ["wrong-schema"] * 4 + [None, "outside-world"] and rows[4].score == 1
    assert [v.more["label"] for v in rows[:2]] == [v.more["label"] for *_, v in judge.judge([second, first], [two, one])]
    assert [v.score for *_, v in judge.judge([first, second], [one, two])] == kept
    assert scorer.report.startswith("2 pairs heard end to end by ") and "4 pairs" in again.scorer.report
    assert PairScorer(settings(folders["omni"], dtype="bfloat16"), pytest.fail).name != scorer.name, "another cache"


def test_logits_that_are_not_finite_are_a_failure_and_not_kept(
    folders: dict[str, Path], pairs: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    judge = EndToEndJudge(PairScorer(settings(folders["omni"]), pytest.fail))
    queries, answers = [side[-1:] for side in pairs]
    with torch.no_grad():
        head = judge.scorer._reader._model.get_output_embeddings().weight  # type: ignore[attr-defined]
        kept = head[0].clone()
        head[0] = float("nan")
        assert [v.failure for *_, v in judge.judge(queries, answers)] == ["judge-failed"]
        head[0] = kept
    assert [v.failure for *_, v in judge.judge(queries, answers)] == [None]
