"""What `paras2s judge` does: check the inputs, make the judge, go through the pairs, add up."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paras2s_cli.audio.read import audio_info, read_audio
from paras2s_cli.data.manifest import JsonlWriter, drop_torn_line, read_rows_leniently
from paras2s_cli.data.rows import Judgement, Pair
from paras2s_cli.errors import TooManyFailed, UsageError
from paras2s_cli.judge.auto import choose
from paras2s_cli.judge.backends import Say, assemble_judge, load_scorer
from paras2s_cli.judge.endpoint.asking import Asking
from paras2s_cli.judge.heard_cache import HeardCache
from paras2s_cli.judge.responses import response_pairs
from paras2s_cli.judge.scores import (
    PASSING,
    Row,
    Tally,
    alone,
    already_judged,
    check_same_judge,
    check_writable,
    drop_passing,
    read_scores,
)
from paras2s_cli.judge.stages import RATE
from paras2s_cli.judge.stream import hear_and_score, identity_of, judge_stream, told, who
from paras2s_cli.judge.windows import AnyPair, sound_seconds
from paras2s_cli.recipe.judging import JudgeRecipe
from paras2s_cli.recipe.load import dump_recipe, load_recipe

AUTO = "auto"
"""The judge's name where the best that can run here is wanted."""
Emit = Callable[[Judgement], None]
Watch = Callable[[int, int], None]
"""Told how many rows are done, of how many."""


@dataclass(frozen=True)
class Settings:
    """What the options say."""

    judge: str
    closed: bool
    batch: int
    max_fail: float
    max_seconds: float
    allow_outside: bool
    asking: Asking
    queries: Path | None = None
    """Of a manifest that holds responses."""

    def load_recipe(self) -> JudgeRecipe:
        """Raises UsageError for a recipe that is at fault, and for options that it has no use for."""
        recipe = choose().recipe if self.judge == AUTO else load_recipe(self.judge, [], JudgeRecipe)
        self.asking.check(recipe, self.judge)
        return recipe

    def heard_cache(self, recipe: JudgeRecipe, listener: str, say: Say) -> HeardCache:
        """What a server heard is not taken from the cache where it is to be asked again."""
        return HeardCache(listener, say, keep=self.asking.cache or recipe.transcriptions is None)

    def tell_choice(self, say: Say) -> None:
        """Says which judge was chosen, where the choice was left to us."""
        if self.judge == AUTO:
            say(str(choose()))


def judge_pair(query: Path, answer: Path, settings: Settings, say: Say) -> Judgement:
    """One pair. Raises UsageError for audio that cannot be read, before anything is made."""
    recipe = settings.load_recipe()
    waves = _read(query, settings), _read(answer, settings)
    settings.asking.tell_cost(recipe, 1, sum(map(len, waves)) / RATE, say)
    judge = assemble_judge(recipe, say, load_scorer(recipe, say, settings.asking), settings.asking)
    settings.tell_choice(say)
    cache = settings.heard_cache(recipe, judge.listener.name, say)
    heard = hear_and_score(judge, cache, [waves], closed=settings.closed)[0]
    names = {"query": str(query), "system": str(answer), "answer": str(answer)}
    return Judgement.model_validate(names | {"judge": who(judge, settings.closed)} | told(*heard))


def judge_manifest(manifest: str, out: Path | None, settings: Settings, emit: Emit, say: Say, watch: Watch) -> Tally:
    """The pairs of a manifest (`-`: stdin), in order: appended to `out`, or told to `emit` where that is None.

    Rows that `out` has already are passed over, but for those without a score whose failure may have passed.

    Raises:
        UsageError: the manifest or `out` cannot be used; nothing was written.
    """
    recipe, (rows, folder) = settings.load_recipe(), read_manifest(manifest, settings)
    left: Sequence[AnyPair] = rows
    scores: Sequence[Row] = []
    if out is not None:
        check_writable(out, manifest)
        scores = read_scores(out)
        left = _left(rows, _done(out, scores, rows, folder))
    settings.asking.tell_cost(recipe, len(left), sum(map(sound_seconds, left)), say)
    scorer = load_scorer(recipe, say, settings.asking)
    judge = assemble_judge(recipe, say, scorer, settings.asking)
    cache = settings.heard_cache(recipe, judge.listener.name, say)
    if out is not None:
        check_same_judge(out, scores, who(judge, settings.closed))
    settings.tell_choice(say)
    with _opened(out, say) as (writer, scores):
        done = [False] * len(rows)
        if out is not None and scores:
            done = _done(out, scores, rows, folder)
            say(_where(out, done))
        tally = Tally(scores)
        stream = judge_stream(
            judge,
            cache,
            rows,
            done,
            folder=folder,
            closed=settings.closed,
            max_seconds=settings.max_seconds,
            batch=settings.batch,
        )
        watch(tally.total, len(rows))
        with contextlib.closing(stream):
            for row in stream:
                writer.write(row) if writer is not None else emit(row)
                tally.add(row.score, row.failure)
                watch(tally.total, len(rows))
    if recipe.e2e is None:
        say(f"{cache.found} of {len(cache.asked)} utterances from the cache")
    if scorer is not None:
        say(scorer.report)
    say(str(tally))
    return tally


def check_failures(tally: Tally, max_fail: float) -> None:
    """Raises TooManyFailed if more than this share of the rows has no score."""
    if tally.failed > max_fail * tally.total:
        raise TooManyFailed(
            f"{tally.failed} of {tally.total} pairs have no score, more than --max-fail {max_fail:g} allows; each row says why"
        )


def plan_pair(query: Path, answer: Path, settings: Settings) -> str:
    """The resolved recipe and what would be listened to."""
    recipe = settings.load_recipe()
    seconds = [audio_info(path).seconds or 0.0 for path in (query, answer)]
    return f"{dump_recipe(recipe)}# 1 pair, {sum(seconds):.1f} s of sound{_asked(settings, recipe, 1, sum(seconds))}"


def plan_manifest(manifest: str, out: Path | None, settings: Settings) -> str:
    """The resolved recipe, how many pairs there are and are left, and how much sound that is."""
    recipe, (rows, folder) = settings.load_recipe(), read_manifest(manifest, settings)
    done = [False] * len(rows)
    if out is not None:
        check_writable(out, manifest)
        done = _done(out, read_scores(out), rows, folder)
    left = _left(rows, done)
    seconds = sum(map(sound_seconds, left))
    bad = sum(not isinstance(row, Pair) for row in left)
    words = f"{len(rows)} pairs, {len(left)} to judge, {seconds / 60:.1f} minutes of sound" + (f"; {bad} bad rows" if bad else "")
    return f"{dump_recipe(recipe)}# {words}{_asked(settings, recipe, len(left), seconds)}"


def _asked(settings: Settings, recipe: JudgeRecipe, pairs: int, seconds: float) -> str:
    return "".join(f"\n# {line}" for line in settings.asking.plan(recipe, pairs, seconds))


def _left(rows: Sequence[AnyPair], done: Sequence[bool]) -> list[AnyPair]:
    return [row for row, was in zip(rows, done, strict=True) if not was]


def _read(path: Path, settings: Settings) -> np.ndarray:
    return read_audio(path, rate=RATE, max_seconds=settings.max_seconds)


def read_manifest(manifest: str, settings: Settings) -> tuple[list[AnyPair], Path]:
    """The rows of a manifest (`-`: stdin), and the folder that their paths start from. Raises UsageError if there are none."""
    if settings.queries is not None:
        rows = list(response_pairs(manifest, settings.queries, allow_outside=settings.allow_outside))
    else:
        rows = list(read_rows_leniently(manifest, Pair, allow_outside=settings.allow_outside))
    if not rows:
        raise UsageError(f"{'stdin' if manifest == '-' else manifest} holds no pairs; write one JSON row a line")
    return rows, (Path.cwd() if manifest == "-" else Path(manifest).parent).resolve()


def _settled(scores: Sequence[Row]) -> list[Row]:
    """Without those whose failure may have passed."""
    return [row for row in scores if row.get("failure") not in PASSING]


def _done(out: Path, scores: Sequence[Row], rows: Sequence[AnyPair], folder: Path) -> list[bool]:
    """Which rows the scores of `out` settle."""
    names = [identity_of(row, folder) for row in rows]
    already_judged(out, scores, names)
    return already_judged(out, _settled(scores), names)


@contextlib.contextmanager
def _opened(out: Path | None, say: Say) -> Iterator[tuple[JsonlWriter | None, list[Row]]]:
    """What appends to `out`, and what is settled there."""
    if out is None:
        yield None, []
        return
    with contextlib.ExitStack() as held:
        # Locked before it is opened: opening may cut a torn line, which another process may be writing.
        held.enter_context(alone(out))
        scores = read_scores(out)
        settled = _settled(scores)
        if passed := len(scores) - len(settled):
            drop_torn_line(out)
            drop_passing(out)
            held.enter_context(alone(out))  # it is another file now
            say(f"judging {passed} pairs of {out} again, whose failure may have passed")
        yield held.enter_context(JsonlWriter(out)), settled


def _where(out: Path, done: Sequence[bool]) -> str:
    if all(done):
        return f"{out} holds all {len(done)} judgements already"
    return f"{out} holds {sum(done)} of {len(done)} judgements; going on from row {done.index(False) + 1}"
