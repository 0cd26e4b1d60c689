"""Trains the judge's ears: a transcriber by CTC, and a tone describer the PolyTone way.

PolyTone (ParaS2S, arXiv 2511.08723): the describer hears the same sentence in many tones, so that the words tell it nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.audio.features import features
from paras2s_cli.data.cache import cache_root, content_key, folder_lock, is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken, World, load_world
from paras2s_cli.judge.ears import LETTERS, Describer, Transcriber, augment, pad, spell
from paras2s_cli.judge.listener import Knowledge, SmallListener
from paras2s_cli.judge.open_speech import OpenTranscriber
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.load import recipe_hash
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.loop import Say, Stage, WatchOf, precision, train

WORST_FIT = 1.4
"""A known text is heard where its CTC cost is within this many nats a letter of the best path's: see tests/judge/test_listener.py."""


@dataclass(frozen=True)
class Example:
    """What one training utterance teaches. tone: index among all tones or -100; age and sex: 0 or 1."""

    features: np.ndarray
    letters: list[int]
    tone: int
    age: int
    sex: int


def examples(world: World, utterances: Sequence[Spoken], heard: Sequence[np.ndarray] | None = None) -> list[Example]:
    """Examples of utterances; `heard` replaces their features (the same speech after the codec)."""
    tones = [*world.query_tones, *world.answer_tones]
    tables = heard if heard is not None else [u.features for u in utterances]
    return [
        Example(
            table,
            [LETTERS.index(c) + 1 for c in spell(u.row["text"])],
            tones.index(u.row["tone"]) if u.row["tone"] in tones else -100,
            int(u.row["age"] == "child"),
            int(u.row["sex"] == "female"),
        )
        for u, table in zip(utterances, tables, strict=True)
    ]


def batch_of(size: int, settings: Train, seed: int, step: int) -> np.ndarray:
    """Rows of step's batch: drawn without replacement where there are enough."""
    rng = np.random.default_rng([seed, step])
    return rng.choice(size, settings.batch, replace=size < settings.batch)


def transcriber_stage(folder: Path, model: Transcriber, data: Sequence[Example], settings: Train, seed: int) -> Stage:
    """CTC on letters. Batches hold utterances of like length."""
    by_length = sorted(range(len(data)), key=lambda i: len(data[i].features))

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, number])
        near = np.clip(rng.integers(len(by_length)) + rng.integers(-400, 400, settings.batch), 0, len(by_length) - 1)
        rows = [data[by_length[i]] for i in near]
        x, lengths = pad([r.features for r in rows])
        with precision(settings):
            logprobs = model(augment(x, _generator(seed, number)), lengths)
        targets = torch.tensor([c for r in rows for c in r.letters])
        counts = torch.tensor([len(r.letters) for r in rows])
        loss = F.ctc_loss(logprobs.transpose(0, 1), targets, lengths, counts, zero_infinity=True)
        loss.backward()
        return {"loss": float(loss.detach())}

    return Stage(folder, {"transcriber": model}, settings, step)


def describer_stage(folder: Path, model: Describer, data: Sequence[Example], settings: Train, seed: int, query_tones: int) -> Stage:
    """Cross-entropy on the tone among those of its role, on age and on sex."""

    def step(number: int) -> dict:
        rows = [data[i] for i in batch_of(len(data), settings, seed, number)]
        x, lengths = pad([r.features for r in rows])
        with precision(settings):
            tones, ages, sexes = model(augment(x, _generator(seed, number)), lengths)
        target = torch.tensor([r.tone for r in rows])
        tone = F.cross_entropy(_of_role(tones.float(), target, query_tones), target)
        age = F.cross_entropy(ages.float(), torch.tensor([r.age for r in rows]))
        sex = F.cross_entropy(sexes.float(), torch.tensor([r.sex for r in rows]))
        (tone + 0.5 * age + 0.5 * sex).backward()
        return {"loss": float(tone.detach()), "age": float(age.detach()), "sex": float(sex.detach())}

    return Stage(folder, {"describer": model}, settings, step)


def _of_role(logits: Tensor, target: Tensor, query_tones: int) -> Tensor:
    """Takes the other role's tones out of the competition."""
    answers = (target >= query_tones)[:, None]
    is_answer_tone = (torch.arange(logits.shape[1]) >= query_tones)[None, :]
    return logits.masked_fill((answers != is_answer_tone) & (target >= 0)[:, None], -1e4)


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def listener_folder(recipe: PolytoneRecipe, world: World) -> Path:
    """Where the cache keeps the listener of a recipe."""
    return cache_root() / f"listener-{content_key(recipe_hash(recipe), world.key, WORST_FIT)}"


def load_listener(recipe: PolytoneRecipe, world: World, say: Say, watch: WatchOf | None = None) -> SmallListener:
    """The listener of a recipe, trained if the cache lacks it; a killed training goes on where it was."""
    final = listener_folder(recipe, world)
    if not is_complete(final):
        with folder_lock(final):
            if not is_complete(final):
                say("training the judge's ears (transcriber and tone describer): they are not in the cache")
                listener = train_listener(recipe, world, final.with_name(final.name + "-training"), say, watch)
                with publish_folder(final) as folder:
                    listener.save(folder)
    return SmallListener.load(final, recipe.threads)


def train_listener(recipe: PolytoneRecipe, world: World, scratch: Path, say: Say, watch: WatchOf | None = None) -> SmallListener:
    """Trains both networks on clean speech and on the assistant's answers after the codec, which is what they will hear."""
    answers = world.answers()
    coded = [features(wave) for wave in world.decode([a.codes for a in answers if a.codes is not None])]
    data = examples(world, [*world.polytone(), *world.carriers(), *world.queries("train"), *answers]) + examples(world, answers, coded)
    torch.manual_seed(recipe.seed)
    tones = [*world.query_tones, *world.answer_tones]
    transcriber, describer = Transcriber(), Describer(len(tones))
    for name, stage in (
        ("transcriber", transcriber_stage(scratch / "transcriber", transcriber, data, recipe.transcriber, recipe.seed)),
        (
            "describer",
            describer_stage(scratch / "describer", describer, data, recipe.describer, recipe.seed, len(world.query_tones)),
        ),
    ):
        stage.folder.mkdir(parents=True, exist_ok=True)
        train(stage, watch(name) if watch else None, say)
    knowledge = Knowledge(
        name=f"pocket-ears-4-{content_key(recipe_hash(recipe), world.key)}",
        query_texts=world.known_texts("query"),
        answer_texts=world.known_texts("answer"),
        query_tones=world.query_tones,
        answer_tones=world.answer_tones,
        worst_fit=WORST_FIT,
    )
    return SmallListener(transcriber, describer, knowledge, recipe.threads)


def make_judge(recipe: PolytoneRecipe, say: Say) -> Judge:
    """The whole judge of a recipe (see `judge.backends`)."""
    world = load_world(recipe.world, recipe.threads, say)
    listener = load_listener(recipe, world, say)
    listener.open_speech = OpenTranscriber()
    return Judge(listener, world.scorer())
