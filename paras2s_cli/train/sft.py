"""Supervised training: next-token loss on both streams over demonstrations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paras2s_cli.data.atomic import write_text
from paras2s_cli.data.worlds import World
from paras2s_cli.models.lora import Adapter
from paras2s_cli.models.prompt import Answers, spoken_answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.schema import BaseRecipe, SftRecipe
from paras2s_cli.train.demonstrations import (
    Demonstration,
    best_demonstrations,
    draw_demonstrations,
    speaking_lessons,
)
from paras2s_cli.train.loop import Stage, precision
from paras2s_cli.train.policy import NativePolicy, Policy
from paras2s_cli.train.prompts import answer_codes, prompts_of


def lay_out(
    demonstrations: Sequence[Demonstration], model: SpeechLM, tokenizer: TextTokenizer, generator: torch.Generator | None = None
) -> list[tuple[Streams, Answers]]:
    """Demonstrations as batches of one prompt kind each. With a generator the features are augmented.

    In a reading the text is given: it is no target, and the audio stream learns to follow it.
    """
    config, specials = model.config, model.specials
    batches = []
    for written in (True, False):
        rows = [d for d in demonstrations if (d.task == "transcription") == written]
        if not rows:
            continue
        texts = [tokenizer.encode(d.text) for d in rows]
        answers = spoken_answers(texts, answer_codes(model, [d.answer for d in rows]), config, specials)
        answers.text_free[[d.task == "reading" for d in rows]] = False
        batches.append((prompts_of(model, [d.query for d in rows], generator, answer_in_text=written), answers))
    return batches


def next_token_losses(model: Policy, prompts: Any, answers: Answers) -> tuple[Tensor, Tensor, int, int]:
    """Summed cross-entropy of the text and the audio stream over their free positions, and how many those are."""
    text, audio = model.losses(prompts, answers)
    return text, audio, int(answers.text_free.sum()), int(answers.audio_free.sum())


def descend(model: Policy, batches: Sequence[tuple[Any, Answers]]) -> dict:
    """Gradients of CE(text) + CE(audio), each averaged over its own positions in all batches."""
    words = max(1, sum(int(a.text_free.sum()) for _, a in batches))
    codes = max(1, sum(int(a.audio_free.sum()) for _, a in batches))
    text_total = audio_total = 0.0
    for prompts, answers in batches:
        text, audio, _, _ = next_token_losses(model, prompts, answers)
        (text / words + audio / codes).backward()
        text_total, audio_total = text_total + float(text.detach()) / words, audio_total + float(audio.detach()) / codes
    return {"text_loss": text_total, "audio_loss": audio_total}


@torch.no_grad()
def held_out_loss(model: Policy, batches: Sequence[tuple[Any, Answers]]) -> tuple[float, float]:
    """Mean text and audio loss over free positions."""
    parts = [next_token_losses(model, prompts, answers) for prompts, answers in batches]
    text, audio = sum(float(p[0]) for p in parts), sum(float(p[1]) for p in parts)
    return text / max(1, sum(p[2] for p in parts)), audio / max(1, sum(p[3] for p in parts))


def epochs(demonstrations: Sequence[Demonstration], batch: int, seed: int, step: int) -> list[Demonstration]:
    """Step's batch of a shuffle that is new each epoch and depends on the seed alone."""
    size = len(demonstrations)
    first = step * batch
    picked = []
    for place in range(first, first + batch):
        order = np.random.default_rng([seed, 29, place // size]).permutation(size)
        picked.append(demonstrations[order[place % size]])
    return picked


def base_stage(folder: Path, recipe: BaseRecipe, world: World, model: SpeechLM, tokenizer: TextTokenizer) -> Stage:
    """The stage that teaches a new model to speak, from lessons that are drawn anew each step."""
    settings, seed = recipe.train, recipe.seed

    def step(number: int) -> dict:
        rows = speaking_lessons(world, recipe.demonstrations, settings.batch, seed, number)
        with precision(settings):
            return descend(NativePolicy(model), lay_out(rows, model, tokenizer, _generator(seed, number)))

    return Stage(folder, {"model": model}, settings, step)


def sft_stage(
    folder: Path,
    recipe: SftRecipe,
    world: World,
    model: SpeechLM,
    tokenizer: TextTokenizer,
    demonstrations: Sequence[Demonstration] | None = None,
    adapter: Adapter | None = None,
) -> tuple[Stage, "Best"]:
    """The stage that warms `model` up, and the keeper of its best weights by held-out loss.

    Args:
        demonstrations: in the place of those that the recipe draws. adapter: of the model; it alone is trained and kept.
    """
    settings, seed = recipe.train, recipe.seed
    rows = demonstrations or draw_demonstrations(world, recipe.demonstrations, seed)
    held = lay_out(best_demonstrations(world, world.queries("validation"), seed), model, tokenizer)
    best, trained = Best(folder), adapter or model

    def step(number: int) -> dict:
        model.train()
        if adapter is not None:
            torch.manual_seed(seed * 1_000_003 + number)  # of its dropout
        batch = epochs(rows, settings.batch, seed, number)
        with precision(settings):
            return descend(NativePolicy(model), lay_out(batch, model, tokenizer, _generator(seed, number)))

    def after(number: int, metrics: dict) -> None:
        if (number + 1) % recipe.evaluate_every == 0 or number + 1 == settings.steps:
            model.eval()
            with precision(settings):
                text, audio = held_out_loss(NativePolicy(model), held)
            metrics |= {"held_out_text": text, "held_out_audio": audio}
            best.offer(number + 1, text + audio, trained)

    return Stage(folder, {"model": trained}, settings, step, after), best


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Best:
    """The weights with the least held-out loss so far, on disk: best.safetensors and best.json."""

    def __init__(self, folder: Path) -> None:
        self.record, self.weights = folder / "best.json", folder / "best.safetensors"

    def offer(self, step: int, loss: float, model: nn.Module) -> None:
        """Keeps the weights of a step if none before it did as well. A step that is done again replaces what it left."""
        if self.record.exists():
            held = json.loads(self.record.read_text(encoding="utf-8"))
            if held["step"] < step and held["loss"] <= loss:
                return
        fresh = self.weights.with_suffix(".new")
        save_file(model.state_dict(), fresh)
        fresh.replace(self.weights)
        write_text(self.record, json.dumps({"step": step, "loss": loss}) + "\n")

    def restore(self, model: nn.Module) -> None:
        """Puts them back into the model."""
        model.load_state_dict(load_file(self.weights))
