"""The reward model that hears pairs, against the library's own forward on the whole prompt, a pair at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.pair import PAIR
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.pair_digits import expected_digit
from paras2s_cli.recipe.schema import RewardLM
from tests.qwen2_5_omni import write_qwen2_5_omni

FAMILIES = ["qwen2_audio", "omni"]
LENGTHS = [(8000, 31000), (30000, 3000), (12345, 20000), (5000, 1700)]
"""Samples of query and answer."""


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Qwen2.5-Omni whole, with a talker that is not needed here."""
    return {**checkpoints, "omni": write_qwen2_5_omni(tmp_path_factory.mktemp("whole") / "omni")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, PairLM]:
    return {family: made(folders[family]) for family in FAMILIES}


def made(folder: Path) -> PairLM:
    """With an adapter that changes something."""
    lora = {"r": 4, "alpha": 8, "targets": ["q_proj", "up_proj"]}
    settings = RewardLM.model_validate({"model": str(folder), "device": "cpu", "batch": 3, "lora": lora})
    model = PairLM(settings, "reward.audio_lm", 1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def pairs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def wave(length: int) -> np.ndarray:
        pitch, loud = rng.uniform(150, 900), rng.uniform(0.05, 0.4)
        return (loud * np.sin(2 * np.pi * pitch * np.arange(length) / 16000) + 0.02 * rng.standard_normal(length)).astype(np.float32)

    return [wave(a) for a, _ in LENGTHS], [wave(b) for _, b in LENGTHS]


class Slow:
    """The library's model with the adapter merged by peft: one pair at a time, its prompt made by the folder's own template."""

    def __init__(self, family: str, folder: Path, adapter: Path) -> None:
        import transformers
        from peft import PeftModel

        self.family, self.folder = family, folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        kind = "Qwen2AudioForConditionalGeneration" if family == "qwen2_audio" else "Qwen2_5OmniThinkerForConditionalGeneration"
        model: Any = getattr(transformers, kind).from_pretrained(folder)
        self.model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()

    def prompt(self, waves: list[np.ndarray]) -> dict[str, torch.Tensor]:
        asked = {"role": "user", "content": [*[{"type": "audio", "audio": ""}] * 2, {"type": "text", "text": PAIR.text}]}
        if self.family == "qwen2_audio":
            import transformers

            processor = transformers.Qwen2AudioProcessor.from_pretrained(self.folder)
            text = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
            return dict(processor(text=text, audio=waves, sampling_rate=16000, return_tensors="pt"))
        heard = self.extractor(waves, sampling_rate=16000, return_tensors="pt", return_attention_mask=True, padding="max_length")
        template = json.loads((self.folder / "chat_template.json").read_text())["chat_template"]
        said = [{"role": "system", "content": "You are a helpful assistant."}, asked]
        parts = self.tokenizer.apply_chat_template(said, chat_template=template, add_generation_prompt=True, tokenize=False)
        before, between, after = parts.split("<|AUDIO|>")
        first, second = ("<|AUDIO|>" * (((frames - 1) // 2 - 1) // 2 + 1) for frames in heard["attention_mask"].sum(1).tolist())
        ids = self.tokenizer(before + first + between + second + after, return_tensors="pt").input_ids
        features = {"input_features": heard["input_features"], "feature_attention_mask": heard["attention_mask"]}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **features}

    @torch.no_grad()
    def digits(self, asked: np.ndarray, said: np.ndarray) -> list[float]:
        """Probabilities of the five digits among themselves."""
        logits = self.model(**self.prompt([asked, said])).logits[0, -1].double()
        return logits[[self.tokenizer.convert_tokens_to_ids(digit) for digit in "12345"]].softmax(0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_digits_are_what_the_library_says_a_pair_at_a_time(
    family: str, folders: dict[str, Path], models: dict[str, PairLM], pairs: tuple[list, list], tmp_path: Path
) -> None:
    model, (asked, said) = models[family], pairs
    model.adapter.save(tmp_path)
    with torch.no_grad():
        found = model.logits(asked, said).softmax(-1)
    slow = Slow(family, folders[family], tmp_path)
    for row, query, answer in zip(found, asked, said, strict=True):
        np.testing.assert_allclose(row, slow.digits(query, answer), atol=1e-5)
        swapped = model.logits(said, asked).softmax(-1)
        with model.adapter.off():
            bare = model.logits(asked, said).softmax(-1)
    for other in (swapped, bare, found.roll(1, 1), found.roll(1, 0)):
        assert (other - found).abs().max() > 1e-3, "the checkpoint tells them apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_alone_and_in_a_batch_of_mixed_lengths(family: str, models: dict[str, PairLM], pairs: tuple[list, list]) -> None:
    model, (asked, said) = models[family], pairs
    together = model.grade(asked, said)
    assert together.shape == (4,) and together.unique().numel() == 4
    for i in range(4):
        torch.testing.assert_close(model.grade([asked[i]], [said[i]])[0], together[i], atol=2e-5, rtol=0)
    assert sorted(map(len, model.batches(asked, said))) == [1, 3]


def test_the_reward_is_the_expected_digit() -> None:
    chances = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25], [0.0, 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(expected_digit(chances.log()), torch.tensor([3.25, 5.0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_on_the_text_layers_alone(family: str, models: dict[str, PairLM]) -> None:
    adapter = models[family].adapter
    adapter.requires_grad_(False)
    adapter.thaw()
    learning = [name for name, weight in adapter.named_parameters() if weight.requires_grad]
    assert len(learning) == 2 * 2 * 2  # A and B, two layers, two products
    assert all("language_model.layers" in name and ("q_proj" in name or "up_proj" in name) for name in learning)
    assert sorted(tensor.numel() for tensor in adapter.state_dict().values()) == [4 * 32] * 6 + [4 * 48] * 2


def test_a_model_without_digits_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from paras2s_cli.judge.hearing import pair_lm
    from paras2s_cli.judge.hearing.audio_lm import Question

    monkeypatch.setattr(pair_lm, "PAIR", Question("?", ("one two", "2")))
    with pytest.raises(UsageError, match=r"reward\.audio_lm\.model: .* no token for each of the digits"):
        made(folders["omni"])
