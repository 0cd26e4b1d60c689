"""How well the judge's ears hear: words and tones of a split's queries, tones of the assistant's answers before and after the codec."""

from collections import defaultdict

import numpy as np

from paras2s_cli.audio.features import features
from paras2s_cli.bench.words import word_errors
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.judge.ears import spell
from paras2s_cli.judge.listener import SmallListener
from paras2s_cli.judge.stages import Utterance


def hearing(listener: SmallListener, world: World, split: str) -> dict[str, float]:
    """Accuracies in 0..1: of the style of a query between its two (a dimension, and all), of the words (word error rate)."""
    queries = world.queries(split)
    heard = listener.listen_features([q.features for q in queries], [""] * len(queries), "query")
    rates: dict[str, list[float]] = defaultdict(list)
    twins = {q.id: q for q in queries}
    for query, utterance in zip(queries, heard, strict=True):
        contrast = twins[query.row["contrast"]].row["style"]
        right = utterance.toned.style(query.row["style"]) > utterance.toned.style(contrast)
        rates[f"style_{query.row['dimension']}"].append(float(right))
        rates["style"].append(float(right))
    found = {key: float(np.mean(values)) for key, values in sorted(rates.items())}
    found["word_error"] = _word_error(queries, heard)
    answers = world.answers()
    coded = [features(w) for w in world.decode([a.codes for a in answers if a.codes is not None])]
    for name, tables in (("answer_tone_clean", [a.features for a in answers]), ("answer_tone_coded", coded)):
        said = listener.listen_features(tables, [""] * len(answers), "answer")
        hits = [u.toned.best(world.answer_tones) == a.row["tone"] for u, a in zip(said, answers, strict=True)]
        found[name] = float(np.mean(hits))
    return found


def _word_error(spoken: list[Spoken], heard: list[Utterance]) -> float:
    pairs = [word_errors(spell(q.row["text"]), u.heard.text) for q, u in zip(spoken, heard, strict=True)]
    return sum(edits for edits, _ in pairs) / sum(words for _, words in pairs)
