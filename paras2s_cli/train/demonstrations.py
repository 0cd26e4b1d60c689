"""Which demonstrations a model is taught on, drawn from a world and a seed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.recipe.speaking import Demonstrations

Task = Literal["answer", "transcription", "reading"]


@dataclass(frozen=True)
class Demonstration:
    """A query and what to make of it: an answer to it; its own words as text; or any answer text, given, to be read aloud.

    Attributes:
        described: a transcription ends with how it was said.
    """

    query: Spoken
    answer: Spoken | None
    task: Task = "answer"
    tone_deaf: bool = False
    described: bool = False

    @property
    def text(self) -> str:
        """What the text stream says."""
        words = str((self.answer or self.query).row["text"])
        return f"{words} {description(self.query)}" if self.described else words


def description(spoken: Spoken) -> str:
    """How something was said and by whom, in three words."""
    return f"{spoken.row['tone']} {spoken.row['age']} {spoken.row['sex']}"


def draw_demonstrations(world: World, settings: Demonstrations, seed: int) -> list[Demonstration]:
    """`count` demonstrations on training queries, spread evenly over dimensions and styles; the given share is tone-deaf.

    A good one is any of the best answers; a tone-deaf one is on the topic, of a random kind in a random tone.
    """
    rng = np.random.default_rng([seed, 17])
    by_style: dict[tuple[str, str], list[Spoken]] = defaultdict(list)
    for query in world.queries("train"):
        by_style[query.row["dimension"], query.row["style"]].append(query)
    piles = [[pile[i] for i in rng.permutation(len(pile))] for _, pile in sorted(by_style.items())]
    order = [pile[i] for i in range(max(map(len, piles))) for pile in piles if i < len(pile)]
    chosen = order[: settings.count]
    deaf = set(rng.permutation(len(chosen))[: round(settings.tone_deaf * len(chosen))].tolist())
    found = []
    for i, query in enumerate(chosen):
        best = world.best_answers(query)
        answer = world.random_answer(query, rng) if i in deaf else best[rng.integers(len(best))]
        found.append(Demonstration(query, answer, tone_deaf=i in deaf))
    return found


def best_demonstrations(world: World, queries: Sequence[Spoken], seed: int) -> list[Demonstration]:
    """One of the best answers to each query."""
    rng = np.random.default_rng([seed, 19])
    return [Demonstration(q, best[rng.integers(len(best))]) for q in queries for best in [world.best_answers(q)]]


def speaking_lessons(world: World, settings: Demonstrations, batch: int, seed: int, step: int) -> list[Demonstration]:
    """A batch for a model that learns to speak, and to answer without regard to style: tone-deaf answers, transcriptions, readings."""
    rng = np.random.default_rng([seed, 23, step])
    queries = world.queries("train")
    carriers = world.carriers()
    everything = [*queries, *world.polytone()]
    found = []
    for place in range(batch):
        share = (place + 0.5) / batch
        if share < settings.transcriptions:
            pile = carriers if rng.random() < settings.carriers else everything
            found.append(Demonstration(pile[rng.integers(len(pile))], None, "transcription", described=settings.described))
            continue
        reading = share < settings.transcriptions + settings.readings
        pile = carriers if not reading and rng.random() < settings.carriers else queries
        query = pile[rng.integers(len(pile))]
        answer = world.random_answer(query, rng, same_topic=not reading)
        found.append(Demonstration(query, answer, "reading" if reading else "answer", tone_deaf=not reading))
    return found
