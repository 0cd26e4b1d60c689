"""The third stage in the pocket world: what was said and how, on both sides, looked up in the rules of world.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from paras2s_cli.judge.ears import spell
from paras2s_cli.judge.silence import verdict_on_silence
from paras2s_cli.judge.stages import Heard, Toned, Utterance, Verdict
from paras2s_cli.pocket.world import AnswerText, Sentence, World, load_world


@dataclass(frozen=True)
class Index:
    """The world's texts, found by their spelling."""

    sentences: dict[str, Sentence]
    answers: dict[str, AnswerText]


@cache
def index() -> Index:
    """Every text of the installed world."""
    world = load_world()
    return Index({spell(s.text): s for s in world.sentences()}, {spell(a.text): a for a in world.answer_texts()})


def style_of(sentence: Sentence, toned: Toned) -> str:
    """Which of the sentence's two styles was heard: for age and sex from those, else from the tone."""
    return max(sentence.contrast, key=lambda style: toned.style(style))


def fit(world: World, style: str, topic: str, answer: AnswerText, tone: str) -> Verdict:
    """Grades an answer whose text and tone are known against a query whose style and topic are known."""
    rules = world.fits[style]
    content, why = rules.content.get(answer.kind, rules.content["otherwise"])
    if answer.topic != topic:
        content = max(1, content - world.overall.other_topic)
        why += f", and it speaks of the {answer.topic} instead of the {topic}"
    manner, how = rules.tone[tone]
    mean = world.overall.content * content + world.overall.tone * manner
    score = min(_round_half_down(mean), content, manner + world.overall.slack)
    return Verdict(content=content, style=manner, score=score, reason=f"{_sentence(why)} {_sentence(how)}")


def score(query: Heard, query_tone: Toned, answer: Heard, answer_tone: Toned, *, closed: bool) -> Verdict:
    """Grades one pair from what the first two stages heard.

    Args:
        closed: the answers come from a model of this world, so what is not one of its texts is garbled speech (score 1) and not speech
            that the rubric does not know (no score).
    """
    world = load_world()
    if silent := verdict_on_silence(query, answer):
        return silent
    asked = index().sentences.get(spell(query.text)) if query.known else None
    if asked is None:
        return Verdict(None, None, None, "The rubric does not know what the query says.", "outside-world")
    said = index().answers.get(spell(answer.text)) if answer.known else None
    if said is None:
        if closed:
            return Verdict(1, 1, 1, "The answer cannot be understood.")
        return Verdict(None, None, None, "The rubric does not know what the answer says.", "outside-world")
    return fit(world, style_of(asked, query_tone), asked.topic, said, answer_tone.best(world.tones))


def _round_half_down(x: float) -> int:
    """2.5 -> 2, 2.6 -> 3."""
    return -int(-(x - 0.5) // 1)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


class RubricScorer:
    """The rubric as a stage of the judge."""

    name = "pocket-rubric"

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """See `Scorer`. The rules of world.yaml are the requirement."""
        return [score(q.heard, q.toned, a.heard, a.toned, closed=closed) for q, a in pairs]
