"""What the reward model is taught: to read answers, digits of all pairs under other names; and how its agreement is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.judge.ears import Describer, Transcriber
from paras2s_cli.judge.pair_digits import Side
from paras2s_cli.judge.reward import RewardModel, agreeing
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.judge.vocabulary import Vocabulary
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.distill import Judged, Lessons, agreement, digits_loss, grading_stage, reading_loss, reading_stage, vocabulary_of
from paras2s_cli.train.loop import train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.reward import CodeReward

TONES = ["calm", "cheerful", "gentle"]


def utterance(text: str, *, known: bool = True, **chances: float) -> Utterance:
    tones = {k: v for k, v in chances.items() if k not in ("child", "female")}
    child, female = chances.get("child", 0.0), chances.get("female", 0.0)
    return Utterance(Heard(text, known), Toned(tones, {"adult": 1 - child, "child": child}, {"male": 1 - female, "female": female}), "")


ASKED = [
    utterance("I just heard about the lake.", happy=0.9, sad=0.1),
    utterance("I just heard about the lake.", happy=0.2, sad=0.8),
    utterance("no such query", known=False),
]
SAID = [
    utterance("How wonderful! Enjoy every bit of the lake.", cheerful=0.7, calm=0.3),
    utterance("I am so sorry. Take your time with the party.", gentle=1.0),
    utterance("garble", known=False),
]


@pytest.fixture
def lessons(silent_world: PocketWorld) -> Lessons:
    judge = SimpleNamespace(scorer=silent_world.scorer())
    return Lessons(judge, Vocabulary(vocabulary_of(silent_world)), TONES, ["lake", "party", "museum"])  # type: ignore[arg-type]


def test_digits_by_hand(lessons: Lessons) -> None:
    # happy: celebrate and cheerful are 5; comfort is 1. sad: celebrate 1; comfort 5, less 2 for the other topic, with a gentle voice.
    # A garbled answer is 1. A query that is not known has no score.
    assert lessons.digits(ASKED, SAID).tolist() == [[4, 0, 0], [0, 2, 0], [-100, -100, -100]]


def test_what_was_heard(lessons: Lessons) -> None:
    words = lessons.heard_words([SAID[0], SAID[2]])
    assert {w for w, i in lessons.vocabulary.columns.items() if words[0, i]} == set(
        ["how", "wonderful", "enjoy", "every", "bit", "of", "the", "lake"]
    )
    assert not words[1].any()
    torch.testing.assert_close(lessons.heard_tones(SAID[:2]), torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]]))


def made(lessons: Lessons) -> RewardModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "shared_layers": 2, "text_layers": 1, "audio_layers": 1}
    lm = new_model(word_tokenizer(["yes"]), codes=20, features=SIZE, heads=4, kv_heads=2, delay=2, seed=1, **shape)
    torch.manual_seed(0)
    return RewardModel(lm, Transcriber(16), Describer(8, 16), words=list(lessons.vocabulary.columns), query_tones=5, answer_tones=3).eval()


def rows(count: int = 2) -> list[Judged]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        query = Spoken({"id": str(i)}, None, rng.standard_normal((30 + i, SIZE)).astype(np.float32))  # type: ignore[arg-type]
        found.append(Judged(query, rng.integers(0, 20, 6 + i), ASKED[i % 2], SAID[i % 2], float(1 + i)))
    return found


def test_reading_is_taught_word_by_word_and_by_the_probabilities_of_tones(lessons: Lessons) -> None:
    reward, some = made(lessons), rows()
    nothing = replace(some[0], codes=some[0].codes[:0])
    words, tones = (t.detach().double() for t in reward.read([r.codes for r in some]))
    heard, likely = lessons.heard_words(SAID[:2]).double(), lessons.heard_tones(SAID[:2]).double()
    cost = 0.0
    for i in range(2):
        chance = 1 / (1 + torch.exp(-words[i]))
        cost -= float((heard[i] * chance.log() + (1 - heard[i]) * (1 - chance).log()).sum()) / 2
        cost -= float((likely[i] * (tones[i] - tones[i].logsumexp(0))).sum()) / 2
    assert float(reading_loss(reward, lessons, [*some, nothing]).detach()) == pytest.approx(cost, rel=1e-4)
    assert reading_loss(reward, lessons, [nothing]).item() == 0


def test_a_renaming_is_of_slots_alone_and_the_same_on_both_sides(lessons: Lessons) -> None:
    reward, generator = made(lessons), torch.Generator().manual_seed(3)
    columns, slots = lessons.vocabulary.columns, [lessons.vocabulary.columns[w] for w in ("lake", "museum", "party")]
    order = lessons.renaming(generator)
    assert sorted(order[slots].tolist()) == slots and order[slots].tolist() != slots
    assert all(order[i] == i for i in range(len(columns)) if i not in slots)
    target = lessons.digits(ASKED, SAID)
    queries, answers = Side(lessons.heard_words(ASKED), torch.ones(3, 12)), Side(lessons.heard_words(SAID), torch.ones(3, 3))
    found = digits_loss(reward, lessons, queries, answers, target, torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = reward.digits(queries.renamed(order), answers.renamed(order))
    cost = [-logits[i, j].log_softmax(-1)[target[i, j]] for i in range(2) for j in range(3)]  # the third query has no digits
    torch.testing.assert_close(found, torch.stack(cost).mean(), atol=1e-5, rtol=0)
    plain = digits_loss(reward, replace_slots(lessons), queries, answers, target, torch.Generator().manual_seed(3))
    assert abs((plain - found).item()) > 1e-7


def replace_slots(lessons: Lessons) -> Lessons:
    return Lessons(lessons, lessons.vocabulary, lessons.tones)  # type: ignore[arg-type]


def test_both_stages_teach_their_own_part_alone(lessons: Lessons, tmp_path: Path) -> None:
    reward, some = made(lessons), rows(12)
    settings = Train(steps=40, lr=4e-3, batch=8, warmup=0)
    for folder, part in (("a", "answer"), ("b", "digits")):
        before = {n: p.clone() for n, p in reward.named_parameters()}
        reward.train()
        asked = [(r.query, r.asked) for r in some]
        if part == "answer":
            stage = reading_stage(tmp_path / folder, settings, 1, reward, lessons, some)
        else:
            stage = grading_stage(tmp_path / folder, settings, 1, reward, lessons, asked, some)
        (tmp_path / folder).mkdir()
        train(stage)
        changed = {n.split(".")[0] for n, p in reward.named_parameters() if not torch.equal(p, before[n])}
        losses = [line["loss"] for line in read_metrics(tmp_path / folder / "metrics.jsonl")]
        assert changed == {part} and losses[-1] < 0.7 * losses[0]


def test_agreement_is_pearsons_over_what_has_a_score(lessons: Lessons) -> None:
    reward, some = made(lessons), rows(6)
    judge = CodeReward(reward, lessons, lambda ids: "", 1.0, Train(steps=1, lr=1e-3))
    given = judge.rewards([r.query for r in some], [r.codes for r in some]).double().numpy()
    wanted = np.corrcoef(given, [r.score for r in some])[0, 1]
    unscored = Judged(some[0].query, some[0].codes, some[0].asked, some[0].said, None)
    assert agreement(judge.rewards, [*some, unscored]) == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(agreement(judge.rewards, [some[0], some[0]])) and np.isnan(agreement(judge.rewards, some[:1]))


def test_a_lesson_adds_what_is_read_and_what_is_graded(lessons: Lessons) -> None:
    reward, some = made(lessons), rows(6)
    taught = CodeReward(reward, lessons, lambda ids: "", 1.0, Train(steps=1, lr=1e-3, precision="fp32")).teach(some, 3)
    found = {n: p.grad.clone() for n, p in reward.named_parameters() if p.grad is not None}
    reward.zero_grad()
    target = lessons.digits([r.asked for r in some], [r.said for r in some])
    queries, answers = reward.queries([r.query.features for r in some]), reward.answers([r.codes for r in some])
    answers = Side(answers.words.detach(), answers.manner.detach())
    graded = digits_loss(reward, lessons, queries, answers, target, torch.Generator().manual_seed(3))
    loss = reading_loss(reward, lessons, some) + graded
    loss.backward()
    assert taught == pytest.approx(loss.item())
    for name, weight in reward.named_parameters():
        assert (weight.grad is None) == (name not in found)
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad)


def test_a_reward_holds_sound_against_text_where_it_is_given(lessons: Lessons) -> None:
    some = rows(4)
    asked, codes, texts = [some[0].query, some[1].query], [r.codes for r in some], torch.tensor([[1], [1], [2], [2]])
    judge = CodeReward(made(lessons), lessons, lambda ids: "lake" if ids == [1] else "no", 0.5, Train(steps=1, lr=1e-3))
    given, spoken = judge.module.grade([q.features for q in asked], codes, 2)
    assert torch.equal(judge.rewards(asked, codes, None, 2), given)
    written = lessons.vocabulary.words_in(["lake", "lake", "no", "no"])
    assert written[0].any() and torch.equal(judge.rewards(asked, codes, texts, 2), agreeing(given, spoken, written, 0.5))
