"""A Kimi-Audio folder in the trainer: it hears recordings, is warmed up on recorded answers, and takes a step of GRPO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.prompt import codes_of
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.aligning import AlignRecipe, Grpo
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.adapters import publish_trained
from paras2s_cli.train.align import Run, warm_model
from paras2s_cli.train.demonstrations import Demonstration
from paras2s_cli.train.grpo import grpo_stage
from paras2s_cli.train.policy import KimiPolicy, NativePolicy
from paras2s_cli.train.prompts import answer_codes, prompts_of
from paras2s_cli.train.sft import descend, lay_out
from paras2s_cli.train.supervised import warm_up
from tests.checkpoints import write_kimi_audio_that_hears


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kimi_audio_that_hears(tmp_path_factory.mktemp("kimi"))


@pytest.fixture
def loaded(folder: Path) -> tuple[SpeechLM, TextTokenizer]:
    model, tokenizer = load_model(folder)
    assert model.hearing is not None
    model.hearing.dtype = torch.float32
    return model.float(), tokenizer


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[Spoken]:
    """Recordings, of which the world's features and codes are of no use to Kimi-Audio."""
    folder = tmp_path_factory.mktemp("sound")
    found = []
    for i, samples in enumerate((5000, 9000, 2600, 3900)):
        path = folder / f"{i}.wav"
        write_wav(path, (0.1 * np.random.default_rng(i).standard_normal(samples)).astype(np.float32))
        found.append(Spoken({"id": str(i), "text": " it is late"}, path, np.zeros((3, 44), np.float32), np.array([99])))
    return found


def test_recordings_are_heard_and_not_the_worlds_features(loaded: tuple[SpeechLM, TextTokenizer], spoken: list[Spoken]) -> None:
    model, _ = loaded
    prompts = prompts_of(model, spoken[:2], torch.Generator().manual_seed(1))
    assert prompts.continuous.sum(1).tolist() == [4, 8]
    coded = [row[keep] - model.config.kimia_token_offset for row, keep in zip(prompts.audio, prompts.continuous, strict=True)]
    found = answer_codes(model, [spoken[1], None, spoken[0]])
    assert found[0] is not None and found[1] is None and found[2] is not None
    assert coded[0].tolist() == found[2].tolist() and coded[1].tolist() == found[0].tolist()
    assert prompts.features is not None and prompts.features[1].std() > 0.1


def test_a_warm_up_learns_recorded_answers(loaded: tuple[SpeechLM, TextTokenizer], spoken: list[Spoken]) -> None:
    model, tokenizer = loaded
    rows = [Demonstration(spoken[0], spoken[2]), Demonstration(spoken[1], spoken[3]), Demonstration(spoken[0], None, "transcription")]
    batches = lay_out(rows, model, tokenizer)
    assert [[len(codes) for codes in codes_of(answers, model.config)] for _, answers in batches] == [[0], [3, 4]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(descend(NativePolicy(model), batches))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1]["audio_loss"] < 0.5 * losses[0]["audio_loss"] and losses[-1]["text_loss"] < 0.5 * losses[0]["text_loss"]


def test_steps_too_small_for_bf16_add_up(folder: Path, spoken: list[Spoken], tmp_path: Path) -> None:
    """At the paper's learning rate a step is less than half the distance between most weights and their neighbours in bf16."""
    rows = [{"query": str(a.path), "audio": str(b.path), "text": " it is late"} for a, b in (spoken[:2], spoken[2:])]
    manifest = tmp_path / "demonstrations.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows).replace(f"{spoken[0].path.parent}/", ""))
    for each in spoken:
        shutil.copy(each.path, tmp_path)
    words = [f"base.folder={folder}", f"data={manifest}", "train.steps=2", "train.batch=1", "train.warmup=0", "train.precision=fp32"]
    recipe = load_recipe("kimi-audio-7b", words, SftRecipe)
    found, _ = warm_up(recipe, SimpleNamespace(), tmp_path, print, lambda stage: lambda step, metrics: None)  # type: ignore[arg-type]
    name = "model.mimo_layers.0.mlp.down_proj.weight"
    before, kept = load_model(folder)[0].state_dict()[name], load_file(tmp_path / "checkpoints" / "step-000002" / "model.safetensors")[name]
    assert found.state_dict()[name].dtype == before.dtype == torch.bfloat16
    assert float((kept != before).float().mean()) > 0.9 and float((kept.float() - before.float()).abs().max()) < 3e-5


def test_a_step_of_grpo_is_on_policy(loaded: tuple[SpeechLM, TextTokenizer], folder: Path, spoken: list[Spoken], tmp_path: Path) -> None:
    model, _ = loaded
    settings = Grpo(train=Train(steps=1, lr=1e-3, precision="fp32"), prompts=2, group=4, limit=12)

    def reward(queries: list[Spoken], codes: list[np.ndarray], texts: torch.Tensor, group: int) -> torch.Tensor:
        return torch.arange(len(queries) * group).float() % 3

    stage = grpo_stage(tmp_path, settings, 1, NativePolicy(model), NativePolicy(load_model(folder)[0].float()), spoken, reward)
    metrics = stage.step(0)
    assert metrics["kl_text"] < 1e-6 and metrics["kl_audio"] < 1e-6 and metrics["off_policy_audio"] < 1e-4
    touched = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any("mimo_layers" in name for name in touched) and any("vq_adaptor" in name for name in touched)


def test_prompt_and_answer_share_the_positions_that_there_are(
    loaded: tuple[SpeechLM, TextTokenizer], spoken: list[Spoken], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = KimiPolicy(*loaded)
    prompts = policy.prompt(spoken[:2])
    assert prompts.valid.sum(1).tolist() == [4 + 6, 8 + 6]
    for positions, width in ((1500, 12), (14 + 9, 9), (14, 1)):
        monkeypatch.setattr("paras2s_cli.models.prompt.POSITIONS", positions)
        rolled = policy.rollout(prompts, group=4, sampling=Sampling(), seed=1, row_ids=torch.arange(8), limit=12)
        assert rolled.answers.audio.shape[1] == width


def test_align_says_that_it_cannot_hear_a_model_of_other_codes(loaded: tuple[SpeechLM, TextTokenizer], tmp_path: Path) -> None:
    publish_trained(tmp_path / "sft" / "model", *loaded)
    recipe = load_recipe("pocket", [], AlignRecipe)
    for size, said in ((24, None), (256, "speaks 24 codes and the codec of small has 256")):
        world: Any = SimpleNamespace(name="small", codec=SimpleNamespace(size=size))
        run = Run(recipe, tmp_path, print, lambda stage: lambda step, metrics: None, world)  # type: ignore[arg-type]
        if said is None:
            assert warm_model(run)[0].config.codes == 24
        else:
            with pytest.raises(UsageError, match=said):
                warm_model(run)
