"""The reward model that hears pairs, against the library's own forward on the whole prompt, a pair at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.pair_digits import expected_digit
from paras2s_cli.recipe.aligning import RewardLM
from tests.pair_forward import Slow

FAMILIES = ["qwen2_audio", "omni"]


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
        np.testing.assert_allclose(row, slow.digits(query, answer)[0], atol=1e-5)
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
