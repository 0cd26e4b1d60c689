"""Systems that are not our own: programs, servers, files of answers, and cascades and toplines that are put together of these."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from paras2s_cli.audio.read import read_audio
from paras2s_cli.bench.kept import Count, Kept, Said
from paras2s_cli.bench.program import Program
from paras2s_cli.bench.served import Part, Served, Speech, SpokenAnswer, Transcript, WrittenAnswer
from paras2s_cli.bench.stage import Ask, Stage
from paras2s_cli.bench.systems import Answer, parse_systems, speaker_answers, speaker_of
from paras2s_cli.data.manifest import read_rows
from paras2s_cli.data.rows import Response
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.endpoint.cost import Estimate, Purse
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.hub import local_folder
from paras2s_cli.models.omni import MODEL_TYPE, QwenOmni, read_model_type
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.servers import Endpoint, Servers

OWN = "pocket"
"""A stage of a cascade, or a topline, that is the world's."""
_NOTHING_HEARD = Fault("empty", "nothing was heard in the query")


class Source(Protocol):
    """A system that is not our own, or not altogether."""

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        """One answer a query, in their order. asked: what was heard in the queries."""
        ...

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        """What servers are likely to be asked for so many answers to so many seconds of queries."""
        ...


@dataclass(frozen=True)
class Asked:
    """A stage with what it is kept in and shown by."""

    stage: Stage
    kept: Kept
    count: Count

    def ask(self, asks: Sequence[Ask | Fault]) -> list[Said | Fault]:
        """A reply or a fault each; what the stage before has failed at is passed on."""
        said = iter(self.kept.ask(self.stage, [ask for ask in asks if isinstance(ask, Ask)], self.count))
        return [ask if isinstance(ask, Fault) else next(said) for ask in asks]

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        """See `Source`."""
        found = self.stage.estimate(count, seconds)
        return [found] if found else []


@dataclass(frozen=True)
class Whole:
    """A program or a server that hears and speaks."""

    asked: Asked

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        said = self.asked.ask([Ask(query=query.path) for query in queries])
        return [_spoken(query, each, each.text if isinstance(each, Said) else None) for query, each in zip(queries, said, strict=True)]

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        return self.asked.estimates(count, seconds)


class Files:
    """Answers that are there already."""

    def __init__(self, path: Path, say: Callable[[str], None], allow_outside: bool) -> None:
        """Raises UsageError if the manifest cannot be read or answers a query twice."""
        self.path, self.say = path, say
        rows = list(read_rows(path, Response, allow_outside=allow_outside))
        twice = [query for query, count in Counter(row.query for row in rows).items() if count > 1]
        if twice:
            raise UsageError(f"{path} answers the query {twice[0]!r} twice; a system has one answer to each: write a manifest a system")
        self.rows = {row.query: row for row in rows}

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        """Raises UsageError if there is no answer to any of the queries."""
        others = len(self.rows.keys() - {query.id for query in queries})
        if others == len(self.rows):
            raise UsageError(f"{self.path} answers none of the {len(queries)} queries; the first is {queries[0].id!r}")
        if others:
            self.say(f"bench: {others} rows of {self.path} answer queries that are not asked here")
        return [self._answer(query) for query in queries]

    def _answer(self, query: Spoken) -> Answer:
        row = self.rows.get(query.id)
        if row is None:
            return _spoken(query, Fault("no-answer", f"{self.path} has no answer to it"), None)
        try:
            return _spoken(query, Said(row.text, row.audio), row.text)
        except UsageError as error:
            return _spoken(query, Fault("unreadable-audio", str(error)), None)

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        return []


@dataclass(frozen=True)
class Checkpoint:
    """A model from a folder: Kimi-Audio or Qwen2.5-Omni, as it was published or as a run has left it."""

    folder: str
    recipe: BenchRecipe

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        """Raises UsageError for a folder that holds neither."""
        place = local_folder(self.folder)
        native = (place / "config.json").is_file() and read_model_type(place) != MODEL_TYPE
        speaker = speaker_of(load_model(place) if native else QwenOmni.load(place))
        if speaker is None:
            raise UsageError(f"{self.folder} speaks the codec of a world: measure it in its run, by `paras2s bench aligned --run RUN`")
        return speaker_answers(speaker, queries, 0.0, self.recipe.seed, self.recipe.answer_limit)

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        return []


@dataclass(frozen=True)
class Cascade:
    """ASR, a language model that reads, TTS: deaf to style. None is the world's own."""

    asr: Asked | None
    llm: Asked | None
    tts: Asked | None

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        heard: list[str | Fault] = [u.heard.text or _NOTHING_HEARD for u in asked]
        if self.asr:
            heard = _texts(self.asr.ask([Ask(query=query.path) for query in queries]))
        if self.llm:
            written = _texts(self.llm.ask(_to_read(heard)))
        else:
            own = [text if isinstance(text, Fault) else world.blind_answer(text) for text in heard]
            if self.tts is None:
                return [_recorded(query, each) for query, each in zip(queries, own, strict=True)]
            written = [each if isinstance(each, Fault) else str(each.row["text"]) for each in own]
        assert self.tts is not None
        said = self.tts.ask(_to_read(written))
        return [_spoken(q, s, t if isinstance(t, str) else None) for q, s, t in zip(queries, said, written, strict=True)]

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        return [each for stage in (self.asr, self.llm, self.tts) if stage for each in stage.estimates(count, seconds)]


@dataclass(frozen=True)
class Topline:
    """An expressive TTS that reads answers which were written by someone who knows the style of the query."""

    tts: Asked
    recipe: BenchRecipe

    def answers(self, world: World, queries: Sequence[Spoken], asked: Sequence[Utterance]) -> list[Answer]:
        """Raises UsageError if a query of a manifest comes without a written answer."""
        scripts = self._given(queries) if self.recipe.queries else self._best(world, queries)
        said = self.tts.ask([Ask(text=text, style=style) for text, style in scripts])
        return [_spoken(q, s, text) for q, s, (text, _) in zip(queries, said, scripts, strict=True)]

    def _best(self, world: World, queries: Sequence[Spoken]) -> list[tuple[str, str]]:
        rng = np.random.default_rng([self.recipe.seed, 47])
        best = [answers[rng.integers(len(answers))].row for answers in map(world.best_answers, queries)]
        return [(row["text"], row["tone"]) for row in best]

    def _given(self, queries: Sequence[Spoken]) -> list[tuple[str, str]]:
        bare = next((query.id for query in queries if not query.row.get("answer_text")), None)
        if bare is not None:
            raise UsageError(
                f'topline: {self.recipe.queries}: the query {bare!r} has no "answer_text" to read; write one into every row,'
                ' and in "answer_style" how it is to be said'
            )
        return [(str(query.row["answer_text"]), str(query.row.get("answer_style") or "")) for query in queries]

    def estimates(self, count: int, seconds: float) -> list[Estimate]:
        return self.tts.estimates(count, seconds)


def make_sources(
    recipe: BenchRecipe, folder: Path, purse: Purse, say: Callable[[str], None], count_of: Callable[[str], Count], *, allow_outside: bool
) -> dict[str, Source]:
    """The recipe's systems that are not altogether our own, by name; nothing is asked or written yet.

    Args:
        folder: where replies are kept.
        count_of: gives what is told of the progress of a system.

    Raises:
        UsageError: a system or a stage cannot be what the recipe says.
    """
    if not recipe.systems:
        raise UsageError("systems: the list is empty; name one, such as sft")
    kept = Kept(folder)

    def asked(where: str, name: str, what: str, part: Part, needs: Sequence[str], may: Sequence[str] = ()) -> Asked | None:
        kind, colon, rest = what.partition(":")
        if what == OWN:
            return None
        if kind == "cmd" and colon:
            return Asked(Program(where, rest, needs, recipe.programs, folder, may), kept, count_of(name))
        if kind == "openai" and colon:
            return Asked(Served(part, recipe.openai, endpoint_of(where, recipe.openai, rest), purse), kept, count_of(name))
        raise UsageError(f"{where}: {what!r} is none of {OWN}, cmd:PROGRAM and openai:MODEL")

    sources: dict[str, Source] = {}
    for system in parse_systems(recipe.systems):
        if system.kind == "files":
            sources[system.name] = Files(Path(system.what), say, allow_outside)
        elif system.kind == "model":
            sources[system.name] = Checkpoint(system.what, recipe)
        elif system.kind in ("cmd", "openai"):
            whole = asked(system.kind, system.name, f"{system.kind}:{system.what}", SpokenAnswer(), ["query", "answer"])
            assert whole is not None
            sources[system.name] = Whole(whole)
        elif system.kind == "cascade":
            stages = recipe.cascade
            asr = asked("cascade.asr", "cascade: asr", stages.asr, Transcript(), ["query"])
            llm = asked("cascade.llm", "cascade: llm", stages.llm, WrittenAnswer(), ["text"])
            tts = asked("cascade.tts", "cascade: tts", stages.tts, Speech(), ["text", "answer"])
            if llm and not tts:
                raise UsageError(f"cascade.tts: {OWN} speaks only what cascade.llm: {OWN} writes; name a program or a model that speaks")
            if recipe.queries and not llm:
                raise UsageError(f"cascade.llm: {OWN} answers only the world's queries; name a program or a model that answers")
            if asr or llm or tts:
                sources[system.name] = Cascade(asr, llm, tts)
        elif system.kind == "topline":
            reader = asked("topline", "topline", recipe.topline, Speech(), ["text", "answer"], ["style"])
            if recipe.queries and not reader:
                raise UsageError(f"topline: {OWN} answers only the world's queries; name a program or a model that speaks")
            if reader:
                sources[system.name] = Topline(reader, recipe)
    return sources


def endpoint_of(where: str, servers: Servers, model: str) -> Endpoint:
    """A model's server by the recipe, else by OPENAI_BASE_URL. Raises UsageError if neither names one."""
    url = os.environ.get("OPENAI_BASE_URL", "")
    if not (servers.base_url or url or "base_url" in servers.models.get(model, {})):
        raise UsageError(f"{where}: no server for openai:{model}; write openai.base_url=http://HOST/v1 or export OPENAI_BASE_URL")
    try:
        return servers.endpoint(model, url)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise UsageError(f"{where}: openai:{model} (with OPENAI_BASE_URL={url}): {what}") from None


def _texts(said: Sequence[Said | Fault]) -> list[str | Fault]:
    return [each if isinstance(each, Fault) else each.text or "" for each in said]


def _to_read(texts: Sequence[str | Fault]) -> list[Ask | Fault]:
    return [text if isinstance(text, Fault) else Ask(text=text) for text in texts]


def _recorded(query: Spoken, own: Spoken | Fault) -> Answer:
    """A recording of the world as the answer to a query."""
    if isinstance(own, Fault):
        return _spoken(query, own, None)
    return Answer(query, read_audio(own.path), own.row["text"], own)


def _spoken(query: Spoken, said: Said | Fault, written: str | None) -> Answer:
    """An answer from outside, or its absence."""
    if isinstance(said, Fault):
        return Answer(query, None, written, None, outside=True, fault=said)
    assert said.audio is not None
    return Answer(query, read_audio(said.audio), written, None, outside=True, file=said.audio)
