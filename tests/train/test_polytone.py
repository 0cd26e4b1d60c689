"""Training the ears: what an utterance teaches, which tones compete, and that toy speech is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.judge.ears import LETTERS, Describer, Transcriber, best_path, pad
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.train import polytone
from paras2s_cli.train.loop import train
from paras2s_cli.train.polytone import Example, batch_of, describer_stage, examples, listener_folder, transcriber_stage

SETTINGS = Train(steps=60, batch=16, lr=3e-3, warmup=5, precision="fp32", save_every=1000)
QUERY_TONES = 3


def test_an_example_says_the_words_the_tone_the_age_and_the_sex(silent_world: PocketWorld) -> None:
    tones = [*silent_world.query_tones, *silent_world.answer_tones]
    utterances = [*silent_world.polytone(), *silent_world.answers(), *silent_world.queries("train")]
    for spoken, example in zip(utterances, examples(silent_world, utterances), strict=True):
        assert "".join(LETTERS[c - 1] for c in example.letters).split() == spoken.row["text"].lower().replace("?", "").replace(
            ".", "").replace("!", "").replace(",", "").split()  # fmt: skip
        assert (tones[example.tone] == spoken.row["tone"]) if example.tone >= 0 else spoken.row["tone"] == "neutral"
        assert example.age == (spoken.row["age"] == "child") and example.sex == (spoken.row["sex"] == "female")


def test_the_same_speech_after_the_codec_teaches_the_same(silent_world: PocketWorld) -> None:
    answers = silent_world.answers()[:3]
    heard = [np.ones((5, SIZE), np.float32)] * 3
    for clean, coded in zip(examples(silent_world, answers), examples(silent_world, answers, heard), strict=True):
        assert coded.features is heard[0] and (coded.letters, coded.tone) == (clean.letters, clean.tone)


def test_only_training_sentences_and_voices_teach(silent_world: PocketWorld) -> None:
    rules = silent_world.rules
    held = {s.name for s in rules.sentences() if s.split != "train"}
    taught = [*silent_world.polytone(), *silent_world.queries("train"), *silent_world.answers()]
    assert not held & {u.row["sentence"] for u in taught}
    assert {u.row["speaker"] for u in taught} == {*rules.voices["train"], "assistant"}


def test_a_batch_is_drawn_by_seed_and_step_and_without_repeats() -> None:
    first = batch_of(100, SETTINGS, 1, 4)
    assert (first == batch_of(100, SETTINGS, 1, 4)).all() and len(set(first)) == SETTINGS.batch
    assert (first != batch_of(100, SETTINGS, 1, 5)).any() and (first != batch_of(100, SETTINGS, 2, 4)).any()
    assert len(batch_of(5, SETTINGS, 1, 4)) == SETTINGS.batch


def test_the_other_roles_tones_are_out_of_the_competition() -> None:
    logits = torch.zeros(3, 5)
    found = polytone._of_role(logits, torch.tensor([1, 4, -100]), QUERY_TONES).softmax(-1)
    assert found[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert found[1].tolist() == pytest.approx([0, 0, 0, 1 / 2, 1 / 2])
    assert (logits == 0).all()


def toy(count: int, seed: int) -> list[Example]:
    """'Speech' in which each letter lights its own feature for three frames, and the tone, age and sex shift the last columns."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        letters = rng.integers(2, 7, size=rng.integers(2, 6)).tolist()
        tone, age, sex = int(rng.integers(5)), int(rng.integers(2)), int(rng.integers(2))
        table = rng.normal(size=(3 * len(letters) + 4, SIZE)).astype(np.float32) * 0.1
        for place, letter in enumerate(letters):
            table[3 * place + 1 : 3 * place + 3, 3 * letter] += 3
        table[:, -1] += tone - 2
        table[:, -2] += 2 * age
        table[:, -3] += 2 * sex
        found.append(Example(table, letters, tone, age, sex))
    return found


def test_the_describer_learns_toy_tones_and_a_missing_tone_teaches_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Describer(5, 16), toy(200, 0)
    data += [Example(e.features, e.letters, -100, e.age, e.sex) for e in toy(40, 5)]
    train(describer_stage(tmp_path, model, data, SETTINGS, 1, QUERY_TONES))
    test = toy(60, 1)
    with torch.no_grad():
        tones, ages, sexes = model.eval()(*pad([e.features for e in test]))
    target = torch.tensor([e.tone for e in test])
    assert (polytone._of_role(tones, target, QUERY_TONES).argmax(1) == target).float().mean() > 0.85
    assert (ages.argmax(1) == torch.tensor([e.age for e in test])).float().mean() > 0.9
    assert (sexes.argmax(1) == torch.tensor([e.sex for e in test])).float().mean() > 0.9


def test_the_transcriber_learns_toy_letters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transcriber(32)
    settings = SETTINGS.model_copy(update={"steps": 300, "lr": 5e-3})
    train(transcriber_stage(tmp_path, model, toy(200, 0), settings, 1))
    test = toy(30, 1)
    with torch.no_grad():
        logprobs = model.eval()(*pad([e.features for e in test]))
    said = ["".join(LETTERS[c - 1] for c in e.letters) for e in test]
    heard = [best_path(row[: len(e.features)]) for row, e in zip(logprobs, test, strict=True)]
    assert np.mean([a == b for a, b in zip(said, heard, strict=True)]) > 0.8, list(zip(said, heard, strict=True))[:5]


@pytest.mark.parametrize("kind", ["describer", "transcriber"])
def test_a_step_depends_on_its_number_and_the_seed_alone(tmp_path: Path, kind: str) -> None:
    def gradient(seed: int, step: int, before: tuple[int, ...] = ()) -> torch.Tensor:
        torch.manual_seed(0)
        data = toy(60, 0)
        model: Describer | Transcriber = Describer(5, 8) if kind == "describer" else Transcriber(8)
        stage = (
            describer_stage(tmp_path, model, data, SETTINGS, seed, QUERY_TONES)
            if isinstance(model, Describer)
            else transcriber_stage(tmp_path, model, data, SETTINGS, seed)
        )
        for number in (*before, step):
            model.zero_grad()
            stage.step(number)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient(1, 3)
    assert torch.equal(plain, gradient(1, 3, before=(0, 1, 2))) and plain.abs().sum() > 0
    assert not torch.equal(plain, gradient(1, 4)) and not torch.equal(plain, gradient(2, 3))


def test_a_listener_is_kept_by_its_recipe_and_its_world(silent_world: PocketWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("pocket/polytone", [], PolytoneRecipe)
    folder = listener_folder(recipe, silent_world)
    assert folder == listener_folder(recipe, silent_world)
    assert folder != listener_folder(recipe.model_copy(update={"seed": recipe.seed + 1}), silent_world)
    monkeypatch.setattr(polytone, "WORST_FIT", 2.0)
    assert folder != listener_folder(recipe, silent_world)
