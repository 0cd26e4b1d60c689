"""Supervised training: the loss token by token, what is a target, and which weights are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM, legal, log_softmax
from tiny_lm import CODES, TEXTS, double, random_frames, tiny_model, tiny_tokenizer

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.prompt import Answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.recipe.speaking import BaseRecipe, Demonstrations, SftRecipe, Shape
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.demonstrations import Demonstration, speaking_lessons
from paras2s_cli.train.loop import train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.ranks import Ranks
from paras2s_cli.train.sft import Best, base_stage, descend, epochs, held_out_loss, lay_out, sft_stage

TOKENIZER = tiny_tokenizer()


def spoken(name: str, text: str, frames: int, codes: int | None = None, **row: Any) -> Spoken:
    given = None if codes is None else np.random.default_rng(codes).integers(0, CODES, codes)
    return Spoken({"id": name, "text": text, **row}, Path("none"), random_frames([frames])[0], given)


class TinyWorld:
    """Six queries and three answers, as much of a world as the supervised stages ask for."""

    def __init__(self) -> None:
        styles = ("happy", "sad")
        self.all = [
            spoken(f"q{i}", TEXTS[i % 3], 9 + 5 * i, style=styles[i % 2], dimension="emotion", split=split)
            for i, split in enumerate(("train", "train", "train", "train", "validation", "validation"))
        ]
        self.said = [spoken(f"a{i}", TEXTS[i], 20, 3 + 2 * i) for i in range(3)]

    def queries(self, split: str) -> list[Spoken]:
        return [q for q in self.all if q.row["split"] == split]

    def polytone(self) -> list[Spoken]:
        return self.queries("train")[:2]

    def carriers(self) -> list[Spoken]:
        return self.queries("train")[2:]

    def best_answers(self, query: Spoken) -> list[Spoken]:
        return self.said[:2]

    def random_answer(self, query: Spoken, rng: np.random.Generator, *, same_topic: bool = True) -> Spoken:
        return self.said[rng.integers(3)]


WORLD: Any = TinyWorld()
EVERY_KIND = [
    Demonstration(WORLD.all[0], WORLD.said[0]),
    Demonstration(WORLD.all[1], None, "transcription"),
    Demonstration(WORLD.all[3], WORLD.said[2], "reading"),
    Demonstration(WORLD.all[2], WORLD.said[1]),
    Demonstration(WORLD.all[4], None, "transcription"),
]


def naive_loss(model: SpeechLM, batches: list[tuple[Streams, Answers]]) -> tuple[float, float]:
    """CE(text), CE(audio): one row at a time, one position at a time."""
    naive, ids = NaiveLM.of(model), model.audio_ids.tolist()
    losses: tuple[list[float], list[float]] = ([], [])
    for prompts, answers in batches:
        for i in range(len(answers.audio)):
            n = int(answers.valid[i].sum())
            joined = [torch.cat([p[i : i + 1], a[i : i + 1, :n]], 1) for p, a in (
                (prompts.audio, answers.audio), (prompts.text, answers.text), (prompts.valid, answers.valid),
                (prompts.continuous, torch.zeros_like(answers.valid)),
            )]  # fmt: skip
            text, audio = legal(model, *naive.row(Streams(*joined, prompts.features[i : i + 1]), 0))  # type: ignore[index]
            for t in range(n):
                if answers.text_free[i, t]:
                    losses[0].append(-log_softmax(text[t - n - 1])[int(answers.text[i, t])])
                if answers.audio_free[i, t]:
                    losses[1].append(-log_softmax(audio[t - n - 1])[ids.index(int(answers.audio[i, t]))])
    return float(np.mean(losses[0])), float(np.mean(losses[1]))


def test_what_is_a_target() -> None:
    model = tiny_model()
    s, offset = model.specials, model.config.kimia_token_offset
    (written, transcripts), (asked, answers) = lay_out(EVERY_KIND, model, TOKENIZER)
    assert (written.audio[:, -3] == s.speech_ct).all() and (asked.audio[:, -3] == s.speech_ctd).all()
    for i, query in enumerate((WORLD.all[1], WORLD.all[4])):
        words = [*TOKENIZER.encode(query.row["text"]), s.text_eos]
        assert transcripts.text[i][transcripts.text_free[i]].tolist() == words
    assert not transcripts.audio_free.any() and (transcripts.audio == s.blank).all()
    for i, (row, answer) in enumerate(zip(EVERY_KIND[::2][:1] + EVERY_KIND[2:4], (0, 2, 1), strict=True)):
        said = WORLD.said[answer]
        words = [*TOKENIZER.encode(said.row["text"]), s.text_eos]
        assert answers.text[i, : len(words)].tolist() == words
        assert answers.text_free[i].sum() == (0 if row.task == "reading" else len(words))
        assert answers.audio[i][answers.audio_free[i]].tolist() == [*(said.codes + offset).tolist(), s.media_end]
    for prompts, queries in ((written, (1, 4)), (asked, (0, 3, 2))):
        for i, q in enumerate(queries):
            np.testing.assert_array_equal(prompts.features[i].flatten(0, 1)[: 9 + 5 * q].numpy(), WORLD.all[q].features)


def test_features_are_augmented_only_with_a_generator() -> None:
    model = tiny_model()
    plain = lay_out(EVERY_KIND, model, TOKENIZER)
    a, b, c = (lay_out(EVERY_KIND, model, TOKENIZER, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    for k in range(2):
        assert torch.equal(a[k][0].features, b[k][0].features) and not torch.equal(a[k][0].features, c[k][0].features)
        assert not torch.equal(a[k][0].features, plain[k][0].features)
        assert torch.equal(a[k][1].audio, plain[k][1].audio) and torch.equal(a[k][0].valid, plain[k][0].valid)
    np.testing.assert_array_equal(WORLD.all[0].features, TinyWorld().all[0].features)


def test_the_loss_and_its_gradient_are_those_of_the_naive_model() -> None:
    model = tiny_model().double()
    batches = [(double(prompts), answers) for prompts, answers in lay_out(EVERY_KIND, model, TOKENIZER)]
    found = descend(NativePolicy(model), batches)
    wanted = naive_loss(model, batches)
    assert (found["text_loss"], found["audio_loss"]) == pytest.approx(wanted, abs=1e-5)
    assert held_out_loss(NativePolicy(model), batches) == pytest.approx(wanted, abs=1e-5)
    generator, step = torch.Generator().manual_seed(0), 1e-4
    with torch.no_grad():
        for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "encoder.down.bias", "mimo_output.weight"):
            weight = model.get_parameter(name)
            way = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            way /= way.norm()
            slope = float((weight.grad * way).sum())
            weight.add_(step * way)
            above = sum(naive_loss(model, batches))
            weight.sub_(2 * step * way)
            below = sum(naive_loss(model, batches))
            weight.add_(step * way)
            assert slope == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-6) and abs(slope) > 1e-5


def recipes(steps: int, batch: int, evaluate_every: int = 2, lr: float = 3e-3) -> tuple[BaseRecipe, SftRecipe]:
    optimised = Train(steps=steps, batch=batch, lr=lr, warmup=1, precision="fp32")
    shape = Shape(hidden_size=32, intermediate_size=48, shared_layers=2, text_layers=1, audio_layers=1, heads=4, kv_heads=2, delay=3)
    lessons = Demonstrations(count=0, tone_deaf=1.0, transcriptions=0.3, readings=0.4)
    base = BaseRecipe(model=shape, demonstrations=lessons, train=optimised)
    few = Demonstrations(count=4, tone_deaf=0.5)
    return base, SftRecipe(base=base, demonstrations=few, train=optimised, evaluate_every=evaluate_every)


def test_a_step_of_the_base_stage(tmp_path: Path) -> None:
    recipe, _ = recipes(1, 8)
    model = tiny_model()
    rows = speaking_lessons(WORLD, recipe.demonstrations, 8, recipe.seed, 0)
    assert Counter(d.task for d in rows) == {"transcription": 2, "reading": 4, "answer": 2}
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003)
    wanted = naive_loss(model, lay_out(rows, model, TOKENIZER, generator))
    train(base_stage(tmp_path, recipe, WORLD, model, TOKENIZER))
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["text_loss"], row["audio_loss"]) == pytest.approx(wanted, abs=2e-5)


def test_the_sft_stage(tmp_path: Path) -> None:
    _, recipe = recipes(5, 3)
    model = tiny_model()
    rows = [d for d in EVERY_KIND if d.task == "answer"] + EVERY_KIND[:1]
    stage, best = sft_stage(tmp_path, recipe, WORLD, model, TOKENIZER, rows)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003)
    wanted = naive_loss(model, lay_out(epochs(rows, 3, recipe.seed, 0), model, TOKENIZER, generator))
    train(stage)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert (lines[0]["text_loss"], lines[0]["audio_loss"]) == pytest.approx(wanted, abs=2e-5)
    evaluated = {r["step"]: r["held_out_text"] + r["held_out_audio"] for r in lines if "held_out_text" in r}
    assert list(evaluated) == [2, 4, 5]
    least = min(evaluated, key=evaluated.__getitem__)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best.restore(model)
    assert all(torch.equal(last[name], tensor) for name, tensor in model.state_dict().items()) == (least == 5)
    again, _ = sft_stage(tmp_path / "again", recipe, WORLD, model, TOKENIZER, rows)
    assert not (tmp_path / "again").exists() and again.settings == recipe.train


def test_a_batch_in_pieces_is_the_whole_batch(tmp_path: Path) -> None:
    """Gradients, the metrics and weights of a step, and what is measured. A reading's text, a transcription's audio are no targets."""
    found = []
    for at_once, pieces in ((0, 2), (1, 9), (2, 5)):
        _, recipe = recipes(1, 9, lr=1e-4)
        recipe = recipe.model_copy(update={"at_once": at_once})
        model, rows = tiny_model(), [*EVERY_KIND, EVERY_KIND[2], *EVERY_KIND[1:4]]
        batches = lay_out(rows, model, TOKENIZER, torch.Generator().manual_seed(6), at_once=at_once)
        assert len(batches) == pieces and max(len(answers.text) for _, answers in batches) <= (at_once or 6)
        told = descend(NativePolicy(model), batches)
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        model.zero_grad()
        stage, _ = sft_stage(tmp_path / str(at_once), recipe, WORLD, model, TOKENIZER, EVERY_KIND, held_out=rows)
        stage.folder.mkdir()
        train(stage)
        (row,) = read_metrics(stage.folder / "metrics.jsonl")
        found.append(({**told, **{k: v for k, v in row.items() if k != "seconds"}}, gradients, model.state_dict()))
    assert len(found[0][1]) > 40 and "held_out_audio" in found[0][0]
    for metrics, *tensors in found[1:]:
        assert metrics == pytest.approx(found[0][0], abs=1e-6)
        for some, others in zip(tensors, found[0][1:], strict=True):
            assert some.keys() == others.keys()
            for name, tensor in some.items():
                torch.testing.assert_close(tensor, others[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_two_ranks_have_every_row_once_in_as_many_pieces(count: int) -> None:
    rows, model = [EVERY_KIND[i % 5] for i in range(count)], tiny_model()
    wanted = sum(int(a.text_free.sum()) + 1000 * int(a.audio_free.sum()) for _, a in lay_out(rows, model, TOKENIZER))
    shares = [lay_out(rows, model, TOKENIZER, ranks=Ranks(rank, 2), at_once=1) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) and all(len(a.text) == len(p.text) > 0 for batches in shares for p, a in batches)
    assert sum(int(a.text_free.sum()) + 1000 * int(a.audio_free.sum()) for batches in shares for _, a in batches) == wanted


def test_sft_learns_its_demonstrations(tmp_path: Path) -> None:
    _, recipe = recipes(60, 4, evaluate_every=30, lr=1e-2)
    stage, _ = sft_stage(tmp_path, recipe, WORLD, tiny_model(), TOKENIZER, [EVERY_KIND[0], EVERY_KIND[3]])
    train(stage)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["text_loss"] < 0.2 < 2 < lines[0]["text_loss"] and lines[-1]["audio_loss"] < 0.5 < 2 < lines[0]["audio_loss"]


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (3, 8), (5, 1)])
def test_an_epoch_is_every_demonstration_once(size: int, batch: int) -> None:
    rows = [Demonstration(spoken(f"q{i}", "what luck !", 8), None) for i in range(size)]
    seen = [d.query.id for step in range(3 * size) for d in epochs(rows, batch, 5, step)]
    assert len(seen) == 3 * size * batch
    shuffles = [tuple(seen[k : k + size]) for k in range(0, len(seen), size)]
    assert all(sorted(shuffle) == sorted(f"q{i}" for i in range(size)) for shuffle in shuffles)
    assert len(set(shuffles)) > 1
    assert [d.query.id for d in epochs(rows, batch, 5, 2)] == seen[2 * batch : 3 * batch]
    assert seen != [d.query.id for step in range(3 * size) for d in epochs(rows, batch, 6, step)]


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    best, model = Best(tmp_path), tiny_model()

    def offer(step: int, loss: float) -> None:
        with torch.no_grad():
            model.lm_head.weight.fill_(step + loss)
        best.offer(step, loss, model)

    def held() -> float:
        fresh = tiny_model()
        best.restore(fresh)
        assert torch.equal(fresh.mimo_output.weight, model.mimo_output.weight)
        return float(fresh.lm_head.weight[0, 0].detach())

    for step, loss, kept in ((10, 3.0, 13.0), (20, 1.0, 21.0), (30, 2.0, 21.0), (40, 1.0, 21.0)):
        offer(step, loss)
        assert held() == pytest.approx(kept)
    best = Best(tmp_path)  # resumed before step 20: it and what follows are done again
    for step, loss, kept in ((20, 1.5, 21.5), (30, 2.0, 21.5), (40, 0.5, 40.5)):
        offer(step, loss)
        assert held() == pytest.approx(kept)
    offer(10, 9.0)
    assert held() == pytest.approx(19.0)
