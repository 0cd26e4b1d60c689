"""Supervised training: next-token loss on both streams over demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paras2s_cli.data.cache import is_complete
from paras2s_cli.data.worlds import World
from paras2s_cli.models.lora import Adapter
from paras2s_cli.models.prompt import Answers, spoken_answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.speaking import BaseRecipe, SftRecipe
from paras2s_cli.train.at_once import pieces
from paras2s_cli.train.checkpoint import load_checkpoint, write_checkpoint
from paras2s_cli.train.demonstrations import (
    Demonstration,
    best_demonstrations,
    draw_demonstrations,
    speaking_lessons,
)
from paras2s_cli.train.loop import Stage, precision
from paras2s_cli.train.policy import NativePolicy, Policy
from paras2s_cli.train.prompts import answer_codes, prompts_of
from paras2s_cli.train.ranks import ALONE, Ranks
from paras2s_cli.train.stored import load_module


def lay_out(
    demonstrations: Sequence[Demonstration],
    model: SpeechLM,
    tokenizer: TextTokenizer,
    generator: torch.Generator | None = None,
    ranks: Ranks = ALONE,
    at_once: int = 0,
) -> list[tuple[Streams, Answers]]:
    """Demonstrations as batches of one prompt kind each, of which this rank has its share, in pieces of `at_once`. With a generator the
    features are augmented.

    In a reading the text is given: it is no target, and the audio stream learns to follow it. All ranks have as many batches, as they go
    through the model together: to a kind with too few rows for one, a row without targets stands in.
    """
    config, specials = model.config, model.specials
    batches = []
    for written in (True, False):
        rows = [d for d in demonstrations if (d.task == "transcription") == written]
        if not rows:
            continue
        share = ranks.share(len(rows))
        mine = share or range(1)
        kept = [rows[i] for i in mine]
        answers = spoken_answers([tokenizer.encode(d.text) for d in kept], answer_codes(model, [d.answer for d in kept]), config, specials)
        answers.text_free[[d.task == "reading" or not share for d in kept]] = False
        answers.audio_free &= bool(share)
        prompts = prompts_of(model, [d.query for d in rows], generator, answer_in_text=written, rows=mine)
        batches += [(prompts.select(some), answers.select(some)) for some in pieces(len(rows), at_once, ranks)]
    return batches


def next_token_losses(model: Policy, prompts: Any, answers: Answers) -> tuple[Tensor, Tensor, int, int]:
    """Summed cross-entropy of the text and the audio stream over their free positions, and how many those are."""
    text, audio = model.losses(prompts, answers)
    return text, audio, int(answers.text_free.sum()), int(answers.audio_free.sum())


def descend(model: Policy, batches: Sequence[tuple[Any, Answers]], ranks: Ranks = ALONE) -> dict:
    """Gradients of CE(text) + CE(audio), each averaged over its own positions in all batches of all ranks."""
    words, codes = ranks.total(sum(int(a.text_free.sum()) for _, a in batches), sum(int(a.audio_free.sum()) for _, a in batches))
    words, codes = max(1, words), max(1, codes)
    text_total = audio_total = 0.0
    for prompts, answers in batches:
        text, audio, _, _ = next_token_losses(model, prompts, answers)
        # the gradient of weights in parts is the mean over ranks
        ((text / words + audio / codes) * ranks.size).backward()
        text_total, audio_total = text_total + float(text.detach()) / words, audio_total + float(audio.detach()) / codes
    text_total, audio_total = ranks.total(text_total, audio_total)
    return {"text_loss": text_total, "audio_loss": audio_total}


@torch.no_grad()
def held_out_loss(model: Policy, batches: Sequence[tuple[Any, Answers]], ranks: Ranks = ALONE) -> tuple[float, float]:
    """Mean text and audio loss over free positions."""
    parts = [next_token_losses(model, prompts, answers) for prompts, answers in batches]
    text, audio, words, codes = ranks.total(*(sum(float(p[k]) for p in parts) for k in range(4)))
    return text / max(1, words), audio / max(1, codes)


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
    ranks: Ranks = ALONE,
    held_out: Sequence[Demonstration] | None = None,
) -> tuple[Stage, "Best"]:
    """The stage that warms `model` up, and the keeper of its best weights by held-out loss.

    Args:
        demonstrations, held_out: in the place of those that the recipe draws. adapter: of the model; it alone is trained and kept.
        ranks: among whom the model's weights lie in parts.
    """
    settings, seed = recipe.train, recipe.seed
    rows = demonstrations or draw_demonstrations(world, recipe.demonstrations, seed)
    measured = held_out or best_demonstrations(world, world.queries("validation"), seed)
    held = lay_out(measured, model, tokenizer, ranks=ranks, at_once=recipe.at_once)
    best, trained = Best(folder, ranks), adapter or model
    model.checkpoint_blocks(recipe.checkpointing)

    def step(number: int) -> dict:
        model.train()
        if adapter is not None:
            torch.manual_seed(seed * 1_000_003 + number + (ranks.rank << 52))  # of its dropout
        batch = epochs(rows, settings.batch, seed, number)
        with precision(settings):
            batches = lay_out(batch, model, tokenizer, _generator(seed, number), ranks, recipe.at_once)
            return descend(NativePolicy(model), batches, ranks)

    def after(number: int, metrics: dict) -> None:
        if (number + 1) % recipe.evaluate_every == 0 or number + 1 == settings.steps:
            model.eval()
            with precision(settings):
                text, audio = held_out_loss(NativePolicy(model), held, ranks)
            metrics |= {"held_out_text": text, "held_out_audio": audio}
            best.offer(number + 1, text + audio, trained)

    return Stage(folder, {"model": trained}, settings, step, after, ranks), best


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Best:
    """The weights with the least held-out loss so far, on disk as a checkpoint in `best/`."""

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder, self.ranks = folder / "best", ranks

    def offer(self, step: int, loss: float, model: nn.Module) -> None:
        """Keeps the weights of a step if none before it did as well. A step that is done again replaces what it left."""
        if is_complete(self.folder):
            held = load_checkpoint(self.folder)
            if held.step < step and held.state["loss"] <= loss:
                return
        write_checkpoint(self.folder, step, {"model": model.state_dict()}, {"loss": loss}, ranks=self.ranks)

    def restore(self, model: nn.Module) -> None:
        """Puts them back into the model."""
        load_module(model, load_checkpoint(self.folder).groups["model"])
