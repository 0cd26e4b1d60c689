"""What the reward model is taught: digits of all pairs, words and tones; and how its agreement is measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.judge.ears import Describer
from paras2s_cli.judge.reward import RewardModel
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.train.distill import Judged, Lessons, agreement, reward_loss, vocabulary_of

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
    return Lessons(SimpleNamespace(scorer=silent_world.scorer()), vocabulary_of(silent_world), TONES)  # type: ignore[arg-type]


def test_digits_by_hand(lessons: Lessons) -> None:
    # happy: celebrate and cheerful are 5; comfort is 1. sad: celebrate 1; comfort 5, less 2 for the other topic, with a gentle voice.
    # A garbled answer is 1. A query that is not known has no score.
    assert lessons.digits(ASKED, SAID).tolist() == [[4, 0, 0], [0, 2, 0], [-100, -100, -100]]


def test_what_was_heard(lessons: Lessons) -> None:
    words = lessons.heard_words([SAID[0], SAID[2]])
    assert {w for w, i in lessons.words.items() if words[0, i]} == set(["how", "wonderful", "enjoy", "every", "bit", "of", "the", "lake"])
    assert not words[1].any()
    torch.testing.assert_close(lessons.heard_tones(SAID[:2]), torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]]))


def made(lessons: Lessons) -> RewardModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "shared_layers": 2, "text_layers": 1, "audio_layers": 1}
    lm = new_model(word_tokenizer(["yes"]), codes=20, features=SIZE, heads=4, kv_heads=2, delay=2, seed=1, **shape)
    torch.manual_seed(0)
    return RewardModel(lm, Describer(8), words=len(lessons.words), query_tones=5, answer_tones=3, width=24).eval()


def rows(count: int = 2) -> list[Judged]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        query = Spoken({"id": str(i)}, None, rng.standard_normal((30 + i, SIZE)).astype(np.float32))  # type: ignore[arg-type]
        found.append(Judged(query, rng.integers(0, 20, 6 + i), ASKED[i % 2], SAID[i % 2], float(1 + i)))
    return found


def test_the_loss_pair_by_pair(lessons: Lessons) -> None:
    """Own pairs are the diagonal; overheard queries are paired with every answer and are nobody's own."""
    reward, some = made(lessons), rows()
    generator = torch.Generator().manual_seed(0)
    overheard = [(rows(3)[2].query, ASKED[1])]
    _, found = reward_loss(reward, lessons, some, generator, overheard)
    target = lessons.digits([*ASKED[:2], ASKED[1]], SAID[:2])
    from paras2s_cli.judge.ears import augment, pad

    tables = [r.query.features for r in some] + [overheard[0][0].features]
    x, lengths = pad(tables)
    heard = [t[:n].numpy() for t, n in zip(augment(x, torch.Generator().manual_seed(0)), lengths, strict=True)]
    with torch.no_grad():
        logits = [
            [reward.digits(reward.queries([t], [h]).vector[0], reward.answers([r.codes]).vector[0]) for r in some]
            for t, h in zip(tables, heard, strict=True)
        ]
    cost = [[float(-logits[i][j].log_softmax(-1)[target[i, j]]) for j in range(2)] for i in range(3)]
    assert found["pairs"] == pytest.approx(np.mean(cost), abs=1e-4)
    assert found["own"] == pytest.approx((cost[0][0] + cost[1][1]) / 2, abs=1e-4)


def test_agreement_is_pearsons_over_what_has_a_score(lessons: Lessons) -> None:
    reward, some = made(lessons), rows(6)
    given = reward.reward([r.query.features for r in some], [r.codes for r in some]).double().numpy()
    wanted = np.corrcoef(given, [r.score for r in some])[0, 1]
    unscored = Judged(some[0].query, some[0].codes, some[0].asked, some[0].said, None)
    assert agreement(reward, [*some, unscored]) == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(agreement(reward, [some[0], some[0]])) and np.isnan(agreement(reward, some[:1]))
