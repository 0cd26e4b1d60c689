"""What training asks of a speech-to-speech model: of the speech LM that is implemented here, or of Qwen2.5-Omni through transformers."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.audio.read import read_audio
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.omni import HEARD_RATE, RATE, OmniPrompts, Part, QwenOmni
from paras2s_cli.models.omni_streams import answer_logits
from paras2s_cli.models.prompt import Answers, answer_hidden, codes_of, positions_left
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.models.voice.folder import load_voice
from paras2s_cli.models.voice.voice import Voice
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.omni import QWEN_OMNI, rollout_omni
from paras2s_cli.rollout.sampling import KIMI_AUDIO, Sampling
from paras2s_cli.train.prompts import prompts_of
from paras2s_cli.train.ranks import Ranks
from paras2s_cli.train.scoring import Scores, cross_entropy, score, score_logits
from paras2s_cli.train.shards import Mirror


class Policy(Protocol):
    """A model that answers speech in two streams. Prompts are its own; a prompt of P queries serves P x group answers, side by side."""

    @property
    def module(self) -> nn.Module:
        """What is trained and kept in checkpoints."""
        ...

    def prompt(self, queries: Sequence[Spoken], generator: torch.Generator | None = None, rows: Sequence[int] | None = None) -> Any:
        """Prompts of recorded queries. generator: varies what is heard, where the model has a way to. rows: of these queries only, each
        varied as it is among all."""
        ...

    def rollout(self, prompts: Any, *, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int) -> Rollouts:
        """Samples `group` answers to each prompt, with the log-probabilities of the distribution that was sampled from."""
        ...

    def scores(self, prompts: Any, answers: Answers, sampling: Sampling) -> tuple[Scores, Scores]:
        """Text and audio of the free positions, in their order, with gradient. Prompts may be a G-th of the answers, G to each."""
        ...

    def losses(self, prompts: Any, answers: Answers) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the free positions of text and audio, summed over all of them, with gradient."""
        ...

    def codes(self, answers: Answers) -> list[np.ndarray]:
        """The audio codes of each answer, int64, without what only ends them."""
        ...

    def gather(self, rolled: Rollouts, rows: Tensor, count: int, ranks: Ranks) -> Rollouts:
        """All ranks' answers, `count` of them; those that were rolled out here are of these numbers [n] int64."""
        ...


class Speaker(Policy, Protocol):
    """A policy with a voice of its own, which needs no world to be heard."""

    usual: Sampling
    """How it is sampled where nothing else is asked for."""

    def speak(self, codes: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """Audio codes to sound, float32 [T] each at 16 kHz; none give no samples."""
        ...

    def written(self, ids: Tensor) -> str:
        """A row of the text stream as text."""
        ...


class NativePolicy:
    """The speech LM. What it hears is varied by its generator as another speaker might say it.

    Args:
        mirror: of a model whose weights lie in parts; it rolls out.
    """

    def __init__(self, model: SpeechLM, mirror: Mirror | None = None) -> None:
        self.module, self.mirror = model, mirror

    def prompt(self, queries: Sequence[Spoken], generator: torch.Generator | None = None, rows: Sequence[int] | None = None) -> Streams:
        return prompts_of(self.module, queries, generator, rows=rows).to(self.module.audio_ids.device)

    def rollout(self, prompts: Streams, *, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int) -> Rollouts:
        model = self.mirror.of(self.module) if self.mirror else self.module
        return rollout(model, prompts, group=group, sampling=sampling, seed=seed, row_ids=row_ids, limit=limit)

    def scores(self, prompts: Streams, answers: Answers, sampling: Sampling) -> tuple[Scores, Scores]:
        found: tuple[Scores, Scores] = self.module(_scores, prompts, answers, sampling)
        return found

    def losses(self, prompts: Streams, answers: Answers) -> tuple[Tensor, Tensor]:
        device = self.module.audio_ids.device
        found: tuple[Tensor, Tensor] = self.module(_losses, prompts.to(device), answers.to(device))
        return found

    def codes(self, answers: Answers) -> list[np.ndarray]:
        return codes_of(answers, self.module.config)

    def gather(self, rolled: Rollouts, rows: Tensor, count: int, ranks: Ranks) -> Rollouts:
        answers, blank = rolled.answers, self.module.specials.blank
        return Rollouts(
            Answers(
                ranks.join(answers.audio, rows, count, blank),
                ranks.join(answers.text, rows, count, blank),
                ranks.join(answers.audio_free, rows, count),
                ranks.join(answers.text_free, rows, count),
            ),
            ranks.join(rolled.text_logprobs, rows, count),
            ranks.join(rolled.audio_logprobs, rows, count),
            ranks.join(rolled.ended, rows, count),
        )


def _scores(model: SpeechLM, prompts: Streams, answers: Answers, sampling: Sampling) -> tuple[Scores, Scores]:
    words, codes = answers.text_free, answers.audio_free
    text, audio = answer_hidden(model, prompts, answers)
    columns = model.audio_column(answers.audio[codes])
    return (
        score(text[words], model.text_head, answers.text[words], sampling.text),
        score(audio[codes], model.audio_head, columns, sampling.audio),
    )


def _losses(model: SpeechLM, prompts: Streams, answers: Answers) -> tuple[Tensor, Tensor]:
    words, codes = answers.text_free, answers.audio_free
    text, audio = answer_hidden(model, prompts, answers)
    return (
        cross_entropy(text[words], model.text_head, answers.text[words]),
        cross_entropy(audio[codes], model.audio_head, model.audio_column(answers.audio[codes])),
    )


class KimiPolicy(NativePolicy):
    """Kimi-Audio, with the voice of the checkpoint that it came from."""

    usual = KIMI_AUDIO

    def __init__(self, model: SpeechLM, tokenizer: TextTokenizer, mirror: Mirror | None = None) -> None:
        super().__init__(model, mirror)
        self.tokenizer = tokenizer

    @cached_property
    def voice(self) -> Voice:
        """Read when it is first needed. Raises UsageError for a folder without one."""
        assert self.module.hearing is not None, "load_model gives it to every model without an encoder of its own"
        return load_voice(self.module.hearing.voice, self.module.lm_head.weight.device)

    def rollout(self, prompts: Streams, *, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int) -> Rollouts:
        room = max(1, positions_left(prompts))  # as its authors have it; a query of two minutes leaves none
        return super().rollout(prompts, group=group, sampling=sampling, seed=seed, row_ids=row_ids, limit=min(limit, room))

    def speak(self, codes: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        return self.voice.decode(codes, seed)

    def written(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids.tolist())


class OmniPolicy:
    """Qwen2.5-Omni, of which one part learns. It hears the recordings as they are.

    Args:
        part: what learns; None is nothing, for the model that the KL penalty is measured from.
    """

    usual = QWEN_OMNI

    def __init__(self, omni: QwenOmni, part: Part | None) -> None:
        self.omni = omni
        self.module = nn.ModuleList(omni.learn(part))

    def prompt(self, queries: Sequence[Spoken], generator: torch.Generator | None = None, rows: Sequence[int] | None = None) -> OmniPrompts:
        return self.omni.prompt([read_audio(queries[i].path) for i in (range(len(queries)) if rows is None else rows)])

    def rollout(self, prompts: OmniPrompts, *, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int) -> Rollouts:
        return rollout_omni(self.omni, prompts, group=group, sampling=sampling, seed=seed, row_ids=row_ids, limit=limit)

    def scores(self, prompts: OmniPrompts, answers: Answers, sampling: Sampling) -> tuple[Scores, Scores]:
        text, audio = answer_logits(self.omni, prompts, answers)
        return (
            score_logits(text, answers.text[answers.text_free], sampling.text),
            score_logits(audio, answers.audio[answers.audio_free], sampling.audio),
        )

    def losses(self, prompts: OmniPrompts, answers: Answers) -> tuple[Tensor, Tensor]:
        text, audio = answer_logits(self.omni, prompts, answers)
        words, codes = answers.text[answers.text_free], answers.audio[answers.audio_free]
        return F.cross_entropy(text.float(), words, reduction="sum"), F.cross_entropy(audio.float(), codes, reduction="sum")

    def codes(self, answers: Answers) -> list[np.ndarray]:
        return self.omni.codes_of(answers)

    def gather(self, rolled: Rollouts, rows: Tensor, count: int, ranks: Ranks) -> Rollouts:
        assert ranks.size == 1, "its weights are not laid in parts"
        return rolled

    def speak(self, codes: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        waves = self.omni.speak(codes, [seed * 1_000_003 + row for row in range(len(codes))])
        return [soxr.resample(wave, RATE, HEARD_RATE, quality="HQ") for wave in waves]

    def written(self, ids: Tensor) -> str:
        return self.omni.written(ids)
