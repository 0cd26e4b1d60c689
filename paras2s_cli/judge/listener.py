"""Stages one and two on small networks: texts from a closed set by CTC likelihood, tones by the describer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from safetensors.torch import load_file, save_file
from torch import Tensor

from paras2s_cli.audio.features import HOP, SIZE, features
from paras2s_cli.audio.workers import map_in_workers
from paras2s_cli.judge.ears import LETTERS, Describer, Transcriber, best_path, pad, spell
from paras2s_cli.judge.edges import between_pauses
from paras2s_cli.judge.open_speech import OpenTranscriber
from paras2s_cli.judge.stages import Heard, Toned, Utterance, is_silent

_VERSION = 2
"""Of what is done to a wave before the networks hear it: what was heard in another way is not taken from a cache."""
_CANDIDATES = 8
"""Known texts whose likelihoods are compared."""
_LONGEST = 30 * 50
"""Frames that the networks listen to: what is longer than 30 s is heard by its first 30 s."""


@dataclass(frozen=True)
class Knowledge:
    """What the listener was told: texts by role, tones by role, and how badly a known text may fit."""

    name: str
    query_texts: list[str]
    answer_texts: list[str]
    query_tones: list[str]
    answer_tones: list[str]
    worst_fit: float


class SmallListener:
    """A transcriber and a describer, batched.

    Attributes:
        open_speech: writes down what is none of the known texts; without it, that is spelled by ear.
    """

    def __init__(self, transcriber: Transcriber, describer: Describer, knowledge: Knowledge, workers: int = 2) -> None:
        self.open_speech: OpenTranscriber | None = None
        self.transcriber, self.describer, self.knowledge, self.workers = transcriber.eval(), describer.eval(), knowledge, workers
        self.name = f"{knowledge.name}.{_VERSION}"
        self._targets = {role: _targets(texts) for role, texts in self._texts().items()}
        self._spelled = {role: [spell(text) for text in texts] for role, texts in self._texts().items()}

    def _texts(self) -> dict[str, list[str]]:
        return {"query": self.knowledge.query_texts, "answer": self.knowledge.answer_texts}

    def save(self, folder: Path) -> None:
        """Writes the networks and what they were told."""
        save_file(self.transcriber.state_dict(), folder / "transcriber.safetensors")
        save_file(self.describer.state_dict(), folder / "describer.safetensors")
        (folder / "knowledge.json").write_text(json.dumps(asdict(self.knowledge), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, workers: int = 2) -> "SmallListener":
        """Reads what `save` wrote."""
        knowledge = Knowledge(**json.loads((folder / "knowledge.json").read_text(encoding="utf-8")))
        transcriber, describer = Transcriber(), Describer(len(knowledge.query_tones) + len(knowledge.answer_tones))
        transcriber.load_state_dict(load_file(folder / "transcriber.safetensors"))
        describer.load_state_dict(load_file(folder / "describer.safetensors"))
        return cls(transcriber, describer, knowledge, workers)

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        """See `judge.stages.Listener`."""
        waves = [between_pauses(wave) for wave in waves]
        tables = [t[:_LONGEST] for t in map_in_workers(features, [w[: _LONGEST * HOP] for w in waves], self.workers)]
        found = self.listen_features(tables, [nothing_in(w, t) for w, t in zip(waves, tables, strict=True)], role)
        return found if self.open_speech is None else [self._by_words(u, w, self.open_speech) for u, w in zip(found, waves, strict=True)]

    @staticmethod
    def _by_words(utterance: Utterance, wave: np.ndarray, open_speech: OpenTranscriber) -> Utterance:
        if utterance.heard.known or not utterance.heard.speech:
            return utterance
        return replace(utterance, heard=replace(utterance.heard, text=open_speech.transcribe(wave[: _LONGEST * HOP])))

    @torch.no_grad()
    def listen_features(self, tables: Sequence[np.ndarray], nothings: Sequence[str], role: str) -> list[Utterance]:
        """The same from features [F, SIZE] each; `nothings` says why an utterance holds no speech, or nothing."""
        x, lengths = pad(tables)
        logprobs = self.transcriber(x, lengths)
        toned = self._describe(x, lengths, role)
        heard = [
            Heard("", False, False, nothing) if nothing else self._transcribe(row[:length], role)
            for row, length, nothing in zip(logprobs, lengths.tolist(), nothings, strict=True)
        ]
        return [Utterance(h, t, t.in_words(role)) for h, t in zip(heard, toned, strict=True)]

    def _transcribe(self, logprobs: Tensor, role: str) -> Heard:
        # Likelihoods of all texts take longer than the networks; the right one is spelled much like the best path.
        path = best_path(logprobs)
        found = process.extract(path, self._spelled[role], scorer=Levenshtein.distance, limit=_CANDIDATES)
        near = sorted(index for _, _, index in found)
        targets, lengths = (part[near] for part in self._targets[role])
        count = len(lengths)
        frames = torch.full((count,), len(logprobs))
        costs = F.ctc_loss(logprobs[:, None].expand(-1, count, -1), targets, frames, lengths, reduction="none")
        best = int(costs.argmin())
        free = -float(logprobs.max(-1).values.sum())
        fit = (float(costs[best]) - free) / int(lengths[best])
        if fit <= self.knowledge.worst_fit:
            return Heard(self._texts()[role][near[best]], True, fit=fit)
        return Heard(path, False, fit=min(fit, 1e3))

    def _describe(self, x: Tensor, lengths: Tensor, role: str) -> list[Toned]:
        tones, ages, sexes = self.describer(x, lengths)
        cut = len(self.knowledge.query_tones)
        # A role's tones compete among themselves: nobody asks whether a query sounds like an assistant.
        names, tones = (self.knowledge.query_tones, tones[:, :cut]) if role == "query" else (self.knowledge.answer_tones, tones[:, cut:])
        return [
            Toned(
                dict(zip(names, tone.tolist(), strict=True)),
                dict(zip(("adult", "child"), age.tolist(), strict=True)),
                dict(zip(("male", "female"), sex.tolist(), strict=True)),
            )
            for tone, age, sex in zip(tones.softmax(-1), ages.softmax(-1), sexes.softmax(-1), strict=True)
        ]


def nothing_in(wave: np.ndarray, table: np.ndarray) -> str:
    """`silence` or `noise` when a waveform holds no voice, else an empty string."""
    if is_silent(wave):
        return "silence"
    voiced = table[:, SIZE - 2] > 0.5
    return "noise" if voiced.sum() < 10 or voiced.mean() < 0.12 else ""


def _targets(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = [torch.tensor([LETTERS.index(c) + 1 for c in spell(text)]) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True), torch.tensor([len(e) for e in encoded])
