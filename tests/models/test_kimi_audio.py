"""A small Kimi-Audio checkpoint, loaded, beside a slow float64 model that reads the files itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM, legal, log_softmax
from tiny_lm import double

from paras2s_cli.models.folder import load_model
from paras2s_cli.models.prompt import Turn, answer_hidden, spoken_answers, spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.sampling import KIMI_AUDIO, Sampling
from tests.checkpoints import write_kimi_audio

DELAY = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kimi_audio(tmp_path_factory.mktemp("kimi"))


@pytest.fixture
def loaded(folder: Path) -> tuple[SpeechLM, TextTokenizer]:
    return load_model(folder)


def queries(model: SpeechLM, tokenizer: TextTokenizer, counts: list[int]) -> Streams:
    """Queries of these many codes; the first comes after a turn."""
    rng = np.random.default_rng(4)

    def heard(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.standard_normal((4 * count, 20)).astype(np.float32), rng.integers(24, size=count)

    frames, codes = zip(*(heard(count) for count in counts), strict=True)
    turn = Turn(*heard(2), tokenizer.encode(" the rain"), rng.integers(24, size=3))
    return spoken_queries(frames, model.config, model.specials, codes=codes, history=[[turn], *[[]] * (len(counts) - 1)])


@torch.no_grad()
def test_logits_of_both_streams_are_those_of_the_naive_model(folder: Path, loaded: tuple[SpeechLM, TextTokenizer]) -> None:
    model, tokenizer = loaded[0].double(), loaded[1]
    naive, streams = NaiveLM.read(folder), double(queries(*loaded, [3, 5, 1]))
    answers = spoken_answers([tokenizer.encode(" it is late"), [70], [71, 72]], [[3, 1, 23], [0], [5, 6]], model.config, model.specials)
    more = Streams(
        torch.cat([streams.audio, answers.audio], 1),
        torch.cat([streams.text, answers.text], 1),
        torch.cat([streams.valid, answers.valid], 1),
        torch.cat([streams.continuous, torch.zeros_like(answers.valid)], 1),
        streams.features,
    )
    text, audio = model.hidden(model.embed(more), *causal(more.valid))
    for i in range(3):
        keep = more.valid[i]
        for found, wanted in zip((model.text_logits(text), model.audio_logits(audio)), legal(model, *naive.row(more, i)), strict=True):
            np.testing.assert_allclose(found[i, keep].numpy(), wanted, atol=2e-5, rtol=0)  # the rotary tables are fp32
            assert np.abs(wanted).max() > 3


@torch.no_grad()
def test_the_adaptor_has_the_norm_of_the_published_one(folder: Path, loaded: tuple[SpeechLM, TextTokenizer]) -> None:
    x = 1e-2 * torch.randn(5, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = loaded[0].double().model.vq_adaptor(x).numpy()
    naive = NaiveLM.read(folder)
    np.testing.assert_allclose(found, [naive.adapt(row) for row in x.numpy()], atol=1e-12, rtol=0)


def test_greedy_rollouts_are_those_of_the_naive_model(folder: Path, loaded: tuple[SpeechLM, TextTokenizer]) -> None:
    model, steps = loaded[0].float(), 12
    naive, prompts = NaiveLM.read(folder), queries(*loaded, [3, 1])
    rolled = rollout(model, prompts, group=1, sampling=Sampling(0.0), seed=1, row_ids=torch.arange(2), limit=steps)
    blank, eos, offset = model.specials.blank, model.specials.text_eos, model.config.kimia_token_offset
    for i in range(2):
        keep = prompts.valid[i]
        audio, text = prompts.audio[i][keep].tolist(), prompts.text[i][keep].tolist()
        heard = prompts.continuous[i][keep].tolist()
        assert prompts.features is not None
        frames = prompts.features[i].double().flatten(0, 1).numpy()[: 4 * sum(heard)]
        for step in range(steps):
            more = heard + [False] * (len(audio) - len(heard))
            words, sounds = (log_softmax(x[-1]) for x in legal(model, *naive.logits(audio, text, more, frames)))
            said = eos in text[len(heard) :]
            text.append(blank if said else int(words.argmax()))
            audio.append(blank if step < DELAY else int(model.audio_ids[sounds.argmax()]))
            assert int(rolled.answers.text[i, step]) == text[-1] and int(rolled.answers.audio[i, step]) == audio[-1]
            assert abs(float(rolled.text_logprobs[i, step]) - (0.0 if said else words.max())) < 1e-4
            assert abs(float(rolled.audio_logprobs[i, step]) - (0.0 if step < DELAY else sounds.max())) < 1e-4
            if step >= DELAY and audio[-1] < offset:
                break
        assert bool(rolled.ended[i]) == (audio[-1] < offset and audio[-1] != blank)


@pytest.mark.parametrize("end", ["media_end", "msg_end"])
def test_an_answer_ends_at_either_end_token_and_its_text_at_text_eos(loaded: tuple[SpeechLM, TextTokenizer], end: str) -> None:
    model, tokenizer = loaded[0].float(), loaded[1]
    s = model.specials
    with torch.no_grad():  # every position is the same, so that one token of each stream always wins
        for layer in (*model.model.layers, *model.model.mimo_layers):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        tops = ((model.lm_head, model.model.norm, s.text_eos), (model.mimo_output, model.model.mimo_norm, getattr(s, end)))
        for head, norm, token in tops:
            norm.weight.fill_(1.0)
            head.weight.zero_()
            head.weight[token] = 1.0
    prompts = queries(model, tokenizer, [2, 3])
    rolled = rollout(model, prompts, group=1, sampling=Sampling(0.0), seed=1, row_ids=torch.arange(2), limit=20)
    answers = rolled.answers
    assert answers.audio.tolist() == 2 * [[s.blank] * DELAY + [getattr(s, end)]] and rolled.ended.all()
    assert answers.text.tolist() == 2 * [[s.text_eos] + [s.blank] * DELAY]
    assert answers.audio_free.sum(1).tolist() == answers.text_free.sum(1).tolist() == [1, 1]


def test_the_recommended_sampling_draws_sound_from_the_ten_likeliest_and_text_greedily(loaded: tuple[SpeechLM, TextTokenizer]) -> None:
    model, tokenizer = loaded[0].float(), loaded[1]
    prompts = queries(model, tokenizer, [3, 2])
    rolled = rollout(model, prompts, group=8, sampling=KIMI_AUDIO, seed=1, row_ids=torch.arange(16), limit=10)
    with torch.no_grad():
        text, audio = (
            head(x) for head, x in zip((model.text_logits, model.audio_logits), answer_hidden(model, prompts, rolled.answers), strict=True)
        )
    given, free = rolled.answers, rolled.answers.audio_free
    assert torch.equal(text.argmax(-1)[given.text_free], given.text[given.text_free])
    rank = (audio > audio.gather(-1, model.audio_column(given.audio)[..., None])).sum(-1)[free]
    assert rank.max() < 10 and rank.max() > 2
    scaled = audio / 0.8
    kept = scaled.topk(10).values.logsumexp(-1)
    wanted = scaled.gather(-1, model.audio_column(given.audio)[..., None])[..., 0] - kept
    torch.testing.assert_close(rolled.audio_logprobs[free], wanted[free], atol=1e-4, rtol=0)


def test_the_checkpoint_runs_in_the_dtype_it_has(loaded: tuple[SpeechLM, TextTokenizer]) -> None:
    model, tokenizer = loaded
    prompts = queries(model, tokenizer, [3, 2, 4])
    rolled = rollout(model, prompts, group=8, sampling=Sampling(1.0), seed=1, row_ids=torch.arange(24), limit=12)
    assert model.lm_head.weight.dtype == torch.bfloat16 and rolled.text_logprobs.dtype == torch.float32
    with torch.no_grad():
        text, _ = answer_hidden(model.float(), prompts, rolled.answers)
        wanted = model.text_logits(text).log_softmax(-1).gather(-1, rolled.answers.text[..., None])[..., 0]
    assert (rolled.text_logprobs - wanted)[rolled.answers.text_free].abs().mean() < 0.05
