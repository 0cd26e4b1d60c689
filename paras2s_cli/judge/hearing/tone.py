"""The second stage by an audio language model that is asked how a voice sounds.

The question forbids judging by the words: such models read the mood off them (ParaS2S, arXiv 2511.08723).
"""

from collections.abc import Sequence

import numpy as np

from paras2s_cli.data.cache import content_key
from paras2s_cli.judge.hearing.audio_lm import AudioLanguageModel, Question
from paras2s_cli.judge.stages import Toned
from paras2s_cli.recipe.judging import AudioLM

_BY_EAR = (
    "Go by the sound of the voice alone: its pitch, loudness, pace and quality. What the words say is no evidence, since any words can be"
    " said in any way. Answer with one of these and nothing else: {}."
)
TONE = "In which tone does the speaker speak? " + _BY_EAR
AGE = "Is the speaker an adult or a child? " + _BY_EAR
SEX = "Is the speaker male or female? " + _BY_EAR


def question(text: str, answers: Sequence[str]) -> Question:
    """A question that names its answers."""
    return Question(text.format(", ".join(answers)), answers)


class AudioLMDescriber:
    """An audio language model as the second stage of the judge."""

    def __init__(self, settings: AudioLM) -> None:
        """Raises UsageError for a model or an adapter that cannot be loaded."""
        self._model = AudioLanguageModel(settings, "tone")
        self._batch = settings.batch
        who = {"age": question(AGE, ("adult", "child")), "sex": question(SEX, ("male", "female"))}
        # Who speaks is asked of queries only: an answer's voice is the system's own.
        self._questions = {
            "query": {"tone": question(TONE, settings.query_tones)} | who,
            "answer": {"tone": question(TONE, settings.answer_tones)},
        }
        asked = [[q.text for q in questions.values()] for questions in self._questions.values()]
        self.name = f"audio-lm {self._model.name} {content_key(asked)[:8]}"

    def describe(self, waves: Sequence[np.ndarray], role: str) -> list[Toned]:
        """See `judge.stages.Describer`."""
        questions = self._questions[role]
        order = sorted(range(len(waves)), key=lambda i: len(waves[i]))  # batches of like length
        found: dict[int, Toned] = {}
        for place in range(0, len(order), self._batch):
            rows = order[place : place + self._batch]
            tables = self._model.ask([[waves[i]] for i in rows], questions)
            for at, row in enumerate(rows):
                told = {name: dict(zip(questions[name].answers, table[at].tolist(), strict=True)) for name, table in tables.items()}
                found[row] = Toned(told["tone"], told.get("age", {}), told.get("sex", {}))
        return [found[i] for i in range(len(waves))]
