"""Pairs in, judgements out, in the order of the manifest, a window at a time."""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paras2s_cli.data.rows import BadRow, Judgement, Pair
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.heard_cache import HeardCache
from paras2s_cli.judge.pipeline import Judge, utterance_key
from paras2s_cli.judge.stages import Recording, Toned, Utterance, Verdict
from paras2s_cli.judge.windows import AnyPair, Sound, decode_ahead

BATCH = 64
SHOWN = 3
"""Tones whose probabilities are told, the likeliest first."""
_OWN = frozenset(Judgement.model_fields)


def judge_stream(
    judge: Judge,
    cache: HeardCache,
    rows: Sequence[AnyPair],
    done: Sequence[bool],
    *,
    folder: Path,
    closed: bool,
    max_seconds: float,
    batch: int = BATCH,
) -> Generator[Judgement, None, None]:
    """Judges what is not `done`, one flag a row. Paths are told relative to `folder` where they lie in it.

    What cannot be judged is a row without a score, with its failure and the reason. Windows are `batch` rows.
    """
    for window in decode_ahead(rows, done, batch, max_seconds):
        begun = time.monotonic()
        waves, requirements = _whole(window.rows, window.sounds)
        judged = iter(hear_and_score(judge, cache, waves, closed=closed, requirements=requirements))
        found = [None if isinstance(row, BadRow) or _trouble(row, window.sounds) else next(judged) for row in window.rows]
        seconds = round((time.monotonic() - begun) / len(window.rows), 4)
        for row, heard in zip(window.rows, found, strict=True):
            fields = _names(row, folder) | {"judge": who(judge, closed), "seconds": seconds}
            if heard is not None:
                fields |= told(*heard)
            elif isinstance(row, BadRow):
                fields |= {"failure": row.failure, "reason": row.reason}
            else:
                fields |= {"failure": "unreadable-audio", "reason": _trouble(row, window.sounds)}
            yield Judgement.model_validate(fields)


def hear_and_score(
    judge: Judge,
    cache: HeardCache,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    closed: bool,
    requirements: Sequence[str | None] | None = None,
) -> list[tuple[Utterance, Utterance, Verdict]]:
    """All three stages on (query, answer) waves; what the cache knows is not listened to."""
    keys = [utterance_key(wave, role) for pair in pairs for wave, role in zip(pair, ("query", "answer"), strict=True)]
    known = cache.fetch(keys)
    # What the windows before have left would grow with the manifest; the cache has it.
    judge.remembered = dict(known)
    queries, answers = judge.hear([query for query, _ in pairs], "query"), judge.hear([answer for _, answer in pairs], "answer")
    # Before the scores: a scorer may give up, and what was heard is heard all the same.
    cache.store({key: heard for key, heard in judge.remembered.items() if key not in known})
    sides = list(zip(queries, answers, strict=True))
    verdicts = judge.scorer.score(sides, closed=closed, requirements=requirements)
    # Words are paid for once: in the first row that they are in.
    first = {key: place for place, key in reversed([*enumerate(keys)]) if key not in known}
    paid = [
        sum(side.heard.cost for turn, side in enumerate(pair) if first.get(keys[2 * row + turn]) == 2 * row + turn)
        for row, pair in enumerate(sides)
    ]
    return [(*side, replace(v, cost=v.cost + cost)) for side, v, cost in zip(sides, verdicts, paid, strict=True)]


def who(judge: Judge, closed: bool) -> dict[str, Any]:
    """What the scores depend on besides the sound, for the rows: scores of another judge are not mixed in."""
    return {**judge.name, "closed": closed}


def told(query: Utterance, answer: Utterance, verdict: Verdict) -> dict[str, Any]:
    """The fields of a Judgement that say what was heard, and the verdict."""
    return {
        **_side(query, "in"),
        **_side(answer, "out"),
        "content_score": verdict.content,
        "style_score": verdict.style,
        "score": verdict.score,
        "failure": verdict.failure,
        "reason": verdict.reason,
        "cost": verdict.cost,
        **verdict.more,
    }


def _side(side: Utterance, where: str) -> dict[str, Any]:
    """What was said and how; where nobody speaks there is no tone either, whatever the networks make of it."""
    fields: dict[str, Any] = {"content": side.heard.text, "tone": None, "tones": {}, "voice": {}}
    if side.heard.failure is not None or (side.heard.speech and isinstance(side, Recording)):
        fields["content"] = None
    if side.heard.speech and not isinstance(side, Recording):
        fields |= {"tone": side.words, "tones": likeliest(side.toned.tones), "voice": voice(side.toned)}
        if side.heard.spans:
            fields["times"] = [[span.text, round(span.begin, 2), round(span.end, 2)] for span in side.heard.spans]
    return {f"{name}_{where}": value for name, value in fields.items()}


def likeliest(probabilities: Mapping[str, float], shown: int = SHOWN) -> dict[str, float]:
    """The `shown` likeliest, rounded."""
    order = sorted(probabilities.items(), key=lambda item: -item[1])
    return {name: round(float(value), 3) for name, value in order[:shown]}


def voice(toned: Toned) -> dict[str, float]:
    """The likelier age and the likelier sex."""
    return likeliest(toned.age, 1) | likeliest(toned.sex, 1)


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one pair from another in a row of scores."""
    return tuple(row.get(name) for name in ("id", "query", "answer", "line"))


def identity_of(row: AnyPair, folder: Path) -> tuple[Any, ...]:
    """The `identity` that the judgement of `row` will have."""
    return identity(_names(row, folder))


def _names(row: AnyPair, folder: Path) -> dict[str, Any]:
    """Which pair it is, and the row's own further keys."""
    if isinstance(row, BadRow):
        bad = {"id": row.id} if row.id is not None else {}
        return {"query": row.id or f"line {row.line}", "system": "", "line": row.line, **bad}
    extra = {key: value for key, value in (row.model_extra or {}).items() if key not in _OWN}
    answer = place(row.answer, folder)
    system = (row.model_extra or {}).get("system")
    names = {"query": place(row.query, folder), "system": answer if system is None else str(system)}
    return extra | names | ({"id": row.id} if row.id is not None else {}) | {"answer": answer}


def place(path: Path, folder: Path) -> str:
    """`path` relative to `folder` where it lies in it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _trouble(row: Pair, sounds: Mapping[Path, Sound]) -> str:
    """Why a row cannot be heard; nothing when it can."""
    errors = [str(sounds[p]) for p in dict.fromkeys((row.query, row.answer)) if isinstance(sounds[p], UsageError)]
    return "; ".join(errors)


def _whole(rows: Sequence[AnyPair], sounds: Mapping[Path, Sound]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str | None]]:
    """The pairs of waves that can be heard, and their requirements."""
    pairs = [(sounds[row.query], sounds[row.answer], row.requirement) for row in rows if isinstance(row, Pair)]
    heard = [(q, a, r) for q, a, r in pairs if isinstance(q, np.ndarray) and isinstance(a, np.ndarray)]
    return [(q, a) for q, a, _ in heard], [r for _, _, r in heard]
