"""Qwen2.5-Omni is aligned by the step that aligns the speech LM: from a recording, and only the part that is to learn."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from paras2s_cli.audio.read import read_audio
from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Heard, Toned, Utterance, Verdict
from paras2s_cli.models.omni import Part, QwenOmni
from paras2s_cli.recipe.aligning import DistillRecipe, Grpo
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train import pieces
from paras2s_cli.train.demonstrations import Demonstration
from paras2s_cli.train.distill import Judged
from paras2s_cli.train.grpo import Experience, grpo_stage
from paras2s_cli.train.judged import JudgedSound, sampled_sound
from paras2s_cli.train.loop import train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.omni import lay_out_omni
from paras2s_cli.train.pieces import Pieces
from paras2s_cli.train.policy import OmniPolicy
from paras2s_cli.train.sft import descend
from paras2s_cli.train.supervised import run_supervised
from tests.qwen2_5_omni import write_qwen2_5_omni

if TYPE_CHECKING:
    from paras2s_cli.pocket.embedded import PocketWorld


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_5_omni(tmp_path_factory.mktemp("omni"))


def recordings(folder: Path) -> list[Spoken]:
    found = []
    for i, n in enumerate((5000, 9000)):
        path = folder / f"query{i}.wav"
        write_wav(path, (0.1 * np.random.default_rng(i).normal(size=n)).astype(np.float32))
        found.append(Spoken({"id": f"query{i}"}, path, np.zeros((1, 1), np.float32)))
    return found


def test_the_loss_of_a_demonstration_is_the_librarys(folder: Path, tmp_path: Path) -> None:
    omni = QwenOmni.load(folder)
    rows = [
        Demonstration(q, Spoken({"text": text}, q.path, q.features)) for q, text in zip(recordings(tmp_path), ("so", "it is"), strict=True)
    ]
    policy = OmniPolicy(omni, "both")
    ((prompts, answers),) = lay_out_omni(omni, rows)
    found = descend(policy, [(prompts, answers)])
    totals, count = 0.0, 0
    for i in range(2):
        ids, said = prompts.ids[i][prompts.valid[i]], answers.text[i][answers.text_free[i]]
        whole = torch.cat([ids, said])[None]
        alone = {"input_features": prompts.mel[i : i + 1], "feature_attention_mask": prompts.frames[i : i + 1].long()}
        out = omni.model.thinker(input_ids=whole, attention_mask=torch.ones_like(whole), **alone)
        told = out.logits[0, len(ids) - 1 : -1].masked_fill(omni.text_banned, -torch.inf).double().log_softmax(-1)
        totals, count = totals - float(told.gather(1, said[:, None]).sum().detach()), count + len(said)
    assert found == pytest.approx({"text_loss": totals / count, "audio_loss": 0.0}, abs=1e-4)
    assert all(w.grad is None for w in omni.model.talker.parameters())
    gradients = {name: weight.grad.clone() for name, weight in omni.model.named_parameters() if weight.grad is not None}
    omni.model.zero_grad()
    pieces = lay_out_omni(omni, rows, 1)
    assert len(pieces) == 2 and descend(policy, pieces) == pytest.approx(found, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(omni.model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)
    given = omni.answers(["so", "it is"], [np.array([3, 1, 4]), np.array([1, 5])])
    assert descend(policy, [(prompts, given)])["audio_loss"] > 1
    assert all(w.grad is not None for w in omni.model.talker.codec_head.parameters())


def test_layers_computed_again_have_the_same_gradients(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    omni = QwenOmni.load(folder)
    policy, prompts = OmniPolicy(omni, "both"), omni.prompt([read_audio(q.path) for q in recordings(tmp_path)])
    answers = omni.answers(["so", "it is"], [np.array([3, 1, 4]), np.array([1, 5])])
    layer, calls = omni.model.talker.model.layers[0].mlp, 0

    def counted(module: torch.nn.Module, given: object) -> None:
        nonlocal calls
        calls += 1

    layer.register_forward_pre_hook(counted)
    found = []
    for again in (False, True):
        omni.checkpointing, calls = again, 0
        omni.model.zero_grad()
        text, audio = policy.losses(prompts, answers)
        (text + audio).backward()
        found.append({n: w.grad.clone() for n, w in omni.model.named_parameters() if w.grad is not None})
        assert calls == 1 + again
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert all(torch.allclose(found[1][name], grad, atol=1e-6) for name, grad in found[0].items())
    rolled = policy.rollout(prompts, group=2, sampling=Sampling(), seed=1, row_ids=torch.arange(4), limit=6)
    text_scores, _ = policy.scores(prompts, rolled.answers, Sampling())
    torch.testing.assert_close(text_scores.logprobs, rolled.text_logprobs[rolled.answers.text_free], atol=1e-4, rtol=0)


def test_a_reward_model_is_taught_what_grpo_will_say(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 2)

    class Ears:
        name = "ears"

        def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
            return [Utterance(Heard("", False), Toned({"calm": float(np.abs(wave).mean())}, {}, {}), "") for wave in waves]

    class Rubric:
        name = "rubric"
        left = 99

        def score(self, pairs: Sequence[tuple[Utterance, Utterance]], **_: object) -> list[Verdict]:
            self.left -= 1
            assert self.left >= 0
            return [Verdict(3, 3, 1 + 4 * said.toned.style("calm"), asked.words) for asked, said in pairs]

    policy, pool = OmniPolicy(QwenOmni.load(folder), None), recordings(tmp_path)
    settings = load_recipe("qwen2.5-omni-7b/distill", [], DistillRecipe)

    def sampled(top: int, out: str, calls: int = 99) -> list[Judged]:
        heard = JudgedSound(policy, Judge(Ears(), Rubric()))
        heard.judge.scorer.left = calls  # type: ignore[attr-defined]
        answered = partial(sampled_sound, heard, settings, Grpo(train=Train(steps=1, lr=1e-3), audio_top_k=top, limit=8))
        return Pieces(tmp_path / out, settings.seed, "", heard.judge, answered, print, lambda name: lambda *_: None).of("train", pool, 4)

    drawn = []
    for top in (0, 1):
        rows = sampled(top, f"top {top}")
        assert [row.query.id for row in rows[:2]] == [row.query.id for row in rows[2:]] and max(len(row.codes) for row in rows) <= 8
        drawn.append([code for row in rows for code in row.codes.tolist()])
    rolled = policy.rollout(
        policy.prompt([row.query for row in rows]),
        group=1,
        sampling=Sampling(settings.temperature, 1),
        seed=settings.seed,
        row_ids=torch.arange(4),
        limit=8,
    )
    assert drawn[1] == [code for codes in policy.codes(rolled.answers) for code in codes.tolist()] != drawn[0]
    shutil.rmtree(tmp_path / "top 1" / "train" / "0000002-0000004")
    resumed = sampled(1, "top 1", calls=1)
    assert [(r.codes.tolist(), r.said, r.score) for r in resumed] == [(r.codes.tolist(), r.said, r.score) for r in rows]


def test_keys_that_are_of_the_speech_lm_are_refused(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("qwen2.5-omni-7b", [f"base.folder={folder}", "lora={r: 2}"], SftRecipe)
    with pytest.raises(UsageError, match=r"^lora: .*write lora=null"):
        run_supervised(recipe, tmp_path, print, lambda stage: lambda step, metrics: None)


@pytest.mark.slow
def test_the_judge_hears_what_is_said(folder: Path, pocket_judge: Judge, pocket_world: PocketWorld) -> None:
    omni = QwenOmni.load(folder)
    queries = pocket_world.queries("test")[:2]
    rewards = JudgedSound(OmniPolicy(omni, None), pocket_judge)(
        queries, [np.array([3, 1, 4] * 4), np.zeros(0, dtype=np.int64)] * 2, torch.zeros(4, 1), 2
    )
    # what holds no speech is heard as such; noise may be taken for words that the rubric does not know
    assert rewards[1] == rewards[3] == 1 and rewards.shape == (4,)


def test_a_step_in_pieces_is_the_whole_step(folder: Path, tmp_path: Path) -> None:
    """Three groups of two answers: all, or one and then two."""

    def reward(asked: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        return torch.tensor([float("nan") if i < 2 else float(i) for i in range(len(codes))])

    warm, found = QwenOmni.load(folder), []
    with torch.no_grad():
        for weight in (warm.model.talker.codec_head.weight, warm.model.thinker.lm_head.weight):
            weight.mul_(0.5)
    for at_once in (0, 5):
        omni = QwenOmni.load(folder)
        settings = Grpo(
            train=Train(steps=1, lr=1e-4, warmup=0, precision="fp32"), prompts=3, group=2, audio_top_k=12, limit=10, at_once=at_once
        )
        (tmp_path / str(at_once)).mkdir()
        policy = OmniPolicy(omni, "both")
        stage = grpo_stage(tmp_path / str(at_once), settings, 3, policy, OmniPolicy(warm, None), recordings(tmp_path), reward)
        told = stage.step(0)
        gradients = {name: weight.grad for name, weight in policy.module.named_parameters()}
        omni.model.zero_grad()
        train(stage)
        found.append((told, gradients, policy.module.state_dict()))
    assert found[0][0]["kl_text"] > 0.01 and found[0][0]["kl_audio"] > 0.01
    for metrics, *tensors in found[1:]:
        assert metrics == pytest.approx(found[0][0], abs=1e-6)
        for some, others in zip(tensors, found[0][1:], strict=True):
            for name, tensor in some.items():
                torch.testing.assert_close(tensor, others[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", ["talker", "thinker", "both"])
def test_a_step_changes_the_part_that_learns(folder: Path, tmp_path: Path, part: Part) -> None:
    seen: list[Experience] = []

    def reward(asked: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        assert len(codes) == len(asked) * group == len(texts)
        return torch.arange(float(len(codes)))

    omni, warm = QwenOmni.load(folder), QwenOmni.load(folder)
    settings = Grpo(
        train=Train(steps=2, lr=1e-2, warmup=0, weight_decay=0.0, precision="fp32"),
        prompts=2,
        group=2,
        temperature=0.9,
        audio_top_k=12,
        limit=10,
    )
    before = {name: weight.clone() for name, weight in omni.model.state_dict().items()}
    stage = grpo_stage(
        tmp_path,
        settings,
        3,
        OmniPolicy(omni, part),
        OmniPolicy(warm, None),
        recordings(tmp_path),
        reward,
        lambda step, metrics, experience: seen.append(experience),
    )
    train(stage)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    changed = {name.split(".")[0] for name, weight in omni.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == ({"talker", "thinker"} if part == "both" else {part})
    assert all(torch.equal(weight, before[name]) for name, weight in warm.model.state_dict().items())
    assert all(rows[i][f"off_policy_{stream}"] <= 1e-5 for i in range(2) for stream in ("text", "audio"))
    assert rows[0]["kl_audio"] < 1e-9 < rows[1]["kl_audio"]
    assert (rows[1]["kl_text"] > 1e-9) == (part != "talker")
    codes = max(seen[0].codes, key=len)
    assert len(codes) and len(omni.speak([codes], [1])[0]) == 480 * len(codes)
