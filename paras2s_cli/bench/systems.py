"""Systems under test: each answers recorded queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.distill import answer_queries, codes_of_all

MODELS = ("base", "sft", "aligned")
REFERENCES = ("cascade", "topline")


@dataclass(frozen=True)
class Answer:
    """What a system answered. wave: float32 at 16 kHz. written: its text stream or script. spoken: the recording it is, where it is one."""

    query: Spoken
    wave: np.ndarray
    written: str
    spoken: Spoken | None


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


def cascade_answers(world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
    """ASR, then an answerer who reads, then neutral speech: deaf to style by construction."""
    return [_recorded(q, world.blind_answer(u.heard.text)) for q, u in zip(queries, asked, strict=True)]


def topline_answers(world: World, queries: Sequence[Spoken], seed: int) -> list[Answer]:
    """One of the best answers by the truth about the query, in the assistant's own voice (no codec)."""
    rng = np.random.default_rng([seed, 47])
    return [_recorded(q, best[rng.integers(len(best))]) for q in queries for best in [world.best_answers(q)]]


def _recorded(query: Spoken, answer: Spoken) -> Answer:
    return Answer(query, soundfile.read(answer.path, dtype="float32")[0], answer.row["text"], answer)


def check_names(names: Sequence[str]) -> None:
    """Raises UsageError for a system that is not known."""
    for name in names:
        if name not in (*MODELS, *REFERENCES):
            raise UsageError(f"no system is called {name!r}; there are {', '.join((*MODELS, *REFERENCES))}")


LoadModel = Callable[[str], tuple[SpeechLM, TextTokenizer]]
"""base, sft or aligned -> the model of a run."""


def answers_of(
    name: str,
    world: World,
    queries: Sequence[Spoken],
    asked: Sequence[Utterance],
    temperature: float,
    seed: int,
    load: LoadModel,
) -> list[Answer]:
    """The answers of a system by name. `temperature` 0 is greedy; it means nothing to the references.

    asked: what was heard in the queries, for a cascade.
    """
    if name == "cascade":
        return cascade_answers(world, queries, asked)
    if name == "topline":
        return topline_answers(world, queries, seed)
    model, tokenizer = load(name)
    return model_answers(model, tokenizer, world, queries, temperature, seed)


def saved(answer: Answer, folder: Path, name: str) -> Path:
    """Writes an answer as a file and says where."""
    from paras2s_cli.audio.write import write_wav

    path = folder / f"{name}.{answer.query.id}.wav"
    write_wav(path, answer.wave)
    return path
