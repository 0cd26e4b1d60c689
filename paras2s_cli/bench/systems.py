"""Systems under test: each answers recorded queries."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from paras2s_cli.data.cache import file_name
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.models.omni import QwenOmni
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.rollout.engine import BATCH
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.distill import answer_queries, codes_of_all
from paras2s_cli.train.policy import KimiPolicy, OmniPolicy, Speaker

MODELS = ("base", "sft", "aligned")
REFERENCES = ("cascade", "topline")
_OUTSIDE = re.compile(r"(?:([\w-]+)=)?((cmd|openai|files|model):(.*))", re.DOTALL)


@dataclass(frozen=True)
class System:
    """A system as it is asked for. name: in tables. kind: `cmd`, `openai`, `files`, `model`, or the name of one of our own. what: the
    rest."""

    name: str
    kind: str
    what: str = ""


@dataclass(frozen=True)
class Answer:
    """What a system answered. wave: float32 at 16 kHz. written: its text stream or script. spoken: the recording it is, where it is one.

    An answer from outside is a `file`, and maybe nothing that the world knows. One that is missing has a `fault` instead of a wave.
    """

    query: Spoken
    wave: np.ndarray | None
    written: str | None
    spoken: Spoken | None
    outside: bool = False
    file: Path | None = None
    fault: Fault | None = None


def model_answers(
    model: SpeechLM, tokenizer: TextTokenizer, world: World, queries: Sequence[Spoken], temperature: float, seed: int
) -> list[Answer]:
    """A speech LM's answers, as sound."""
    rollouts = answer_queries(model.eval(), queries, sampling=Sampling(temperature), seed=seed)
    codes = codes_of_all(model, rollouts)
    texts = [tokenizer.decode(row.tolist()) for r in rollouts for row in r.answers.text]
    distinct = {c.tobytes(): c for c in codes}
    waves = dict(zip(distinct, world.decode(list(distinct.values())), strict=True))
    known = {key: world.recognise(c) if len(c) else None for key, c in distinct.items()}
    return [Answer(q, waves[c.tobytes()], t, known[c.tobytes()]) for q, c, t in zip(queries, codes, texts, strict=True)]


def speaker_answers(speaker: Speaker, queries: Sequence[Spoken], temperature: float, seed: int, limit: int) -> list[Answer]:
    """Answers of a model with a voice of its own.

    Args:
        temperature: of both streams; 0 samples as the model's publisher does, for greedy codes fall into loops.
        limit: positions of a stream at most; what was said by then is the answer.
    """
    sampling = Sampling(temperature) if temperature else speaker.usual
    found = []
    for first in range(0, len(queries), BATCH):
        asked = queries[first : first + BATCH]
        rows = torch.arange(first, first + len(asked))
        answers = speaker.rollout(speaker.prompt(asked), group=1, sampling=sampling, seed=seed, row_ids=rows, limit=limit).answers
        waves = speaker.speak(speaker.codes(answers), seed)
        texts = [speaker.written(text) for text in answers.text]
        found += [Answer(q, wave, text, None, outside=True) for q, wave, text in zip(asked, waves, texts, strict=True)]
    return found


def cascade_answers(world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
    """ASR, then an answerer who reads, then neutral speech: deaf to style by construction."""
    return [_recorded(q, world.blind_answer(u.heard.text)) for q, u in zip(queries, asked, strict=True)]


def topline_answers(world: World, queries: Sequence[Spoken], seed: int) -> list[Answer]:
    """One of the best answers by the truth about the query, in the assistant's own voice (no codec)."""
    rng = np.random.default_rng([seed, 47])
    return [_recorded(q, best[rng.integers(len(best))]) for q in queries for best in [world.best_answers(q)]]


def _recorded(query: Spoken, answer: Spoken) -> Answer:
    return Answer(query, soundfile.read(answer.path, dtype="float32")[0], answer.row["text"], answer)


def is_system(word: str) -> bool:
    """Whether a word of the command line names a system, and is no override of a recipe's key."""
    found = _OUTSIDE.fullmatch(word)
    return "=" not in word or bool(found and found[1] not in BenchRecipe.model_fields)


def parse_systems(words: Sequence[str]) -> list[System]:
    """Names of our own systems, `cmd:PROGRAM ...`, `openai:MODEL`, `files:MANIFEST` and `model:FOLDER`; these four may begin with `NAME=`.

    Raises:
        UsageError: a system is not known, or two have one name.
    """
    systems: list[System] = []
    for word in words:
        found = _OUTSIDE.fullmatch(word)
        if found is None and word not in (*MODELS, *REFERENCES):
            known = ", ".join((*MODELS, *REFERENCES))
            raise UsageError(f"no system is called {word!r}; there are {known}, cmd:PROGRAM, openai:MODEL, files:MANIFEST, model:FOLDER")
        systems.append(System(found[1] or found[2], found[3], found[4]) if found else System(word, word))
        if systems[-1].name in [system.name for system in systems[:-1]]:
            raise UsageError(f"two systems are called {systems[-1].name!r}; write NAME={word} for one of them")
        if found and systems[-1].name in (*MODELS, *REFERENCES):
            raise UsageError(f"{systems[-1].name!r} is the name of a system of our own; choose another for {found[2]!r}")
    return systems


Loaded = tuple[SpeechLM, TextTokenizer] | QwenOmni
LoadModel = Callable[[str], Loaded]
"""base, sft or aligned -> the model of a run."""


def answers_of(
    name: str,
    world: World,
    queries: Sequence[Spoken],
    asked: Sequence[Utterance],
    temperature: float,
    seed: int,
    load: LoadModel,
    limit: int,
) -> list[Answer]:
    """The answers of a system by name. `temperature` 0 is greedy; it means nothing to the references.

    asked: what was heard in the queries, for a cascade. limit: see `speaker_answers`.
    """
    if name == "cascade":
        return cascade_answers(world, queries, asked)
    if name == "topline":
        return topline_answers(world, queries, seed)
    loaded = load(name)
    speaker = speaker_of(loaded)
    if speaker is not None:
        return speaker_answers(speaker, queries, temperature, seed, limit)
    assert not isinstance(loaded, QwenOmni)
    return model_answers(*loaded, world, queries, temperature, seed)


def speaker_of(loaded: Loaded) -> Speaker | None:
    """A model with a voice of its own as what answers; None for one that speaks a world's codec."""
    if isinstance(loaded, QwenOmni):
        return OmniPolicy(loaded, None)
    return None if loaded[0].config.encoder_features else KimiPolicy(*loaded)


def saved(answer: Answer, folder: Path, name: str) -> Path | None:
    """Where an answer's file is, written if it is none yet; None where there is no answer."""
    from paras2s_cli.audio.write import write_wav

    if answer.wave is None or answer.file is not None:
        return answer.file
    path = folder / f"{name}.{file_name(answer.query.id)}.wav"
    write_wav(path, answer.wave)
    return path
