"""Renders the pocket world into the cache: wave files, a manifest, features, and the codec fitted on the assistant's voice."""

import importlib.metadata
import json
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from paras2s_cli.audio import features
from paras2s_cli.audio.workers import end_with_parent, single_threaded
from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.cache import cache_root, content_key, folder_lock, is_complete, publish_folder
from paras2s_cli.data.worlds import Progress, Spoken
from paras2s_cli.pocket import codec, espeak, plan, render
from paras2s_cli.pocket.codec import Codec
from paras2s_cli.pocket.world import load_world

CODES = 1024


@dataclass(frozen=True)
class Rendering:
    """The whole rendered world: every utterance by id, and the codec."""

    folder: Path
    utterances: dict[str, Spoken]
    codec: Codec

    def queries(self, split: str) -> list[Spoken]:
        """The queries of a split, in a fixed order."""
        return [u for u in self.utterances.values() if u.row["purpose"] == "query" and u.row["split"] == split]

    def polytone(self) -> list[Spoken]:
        """Every training sentence in every tone."""
        return [u for u in self.utterances.values() if u.row["purpose"] == "polytone"]

    def carriers(self) -> list[Spoken]:
        """Training speech on the topics that is no query."""
        return [u for u in self.utterances.values() if u.row["purpose"] == "carrier"]

    def answers(self) -> list[Spoken]:
        """Every answer text in every tone of the assistant."""
        return [u for u in self.utterances.values() if u.row["purpose"] == "answer"]


RENDERER = 4
"""Version of everything that a rendered sample or its features depend on: a test fails when they change and this does not."""


def world_key() -> str:
    """Changes whenever anything changes that a rendered sample depends on; the rules of what fits what do not count."""
    content = load_world().model_dump(exclude={"fits", "overall"})
    versions = [importlib.metadata.version(name) for name in ("espeakng-loader", "pyworld-prebuilt", "soxr")]
    return content_key(RENDERER, content, versions, CODES)


def load_rendering(workers: int, progress: Progress | None = None) -> Rendering:
    """The rendered world, made if the cache lacks it.

    Raises:
        UsageError: espeak-ng is missing, or the cache folder cannot be written.
    """
    folder = cache_root() / f"pocket-world-{world_key()}"
    if not is_complete(folder):
        with folder_lock(folder):
            if not is_complete(folder):
                with publish_folder(folder) as temporary:
                    _render_all(temporary, workers, progress)
    return _read(folder)


def is_rendered() -> bool:
    """Whether the cache holds the world already."""
    return is_complete(cache_root() / f"pocket-world-{world_key()}")


def _render_all(folder: Path, workers: int, progress: Progress | None) -> None:
    here = load_world()
    (folder / "audio").mkdir(parents=True)
    utterances = [*plan.queries(here), *plan.polytone(here), *plan.carriers(here), *plan.answers(here)]
    groups: dict[tuple[str, str], list[plan.Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.text, utterance.voice.variant].append(utterance)
    tables: dict[str, np.ndarray] = {}
    blocks: dict[str, np.ndarray] = {}
    spawn = multiprocessing.get_context("spawn")
    with single_threaded(), ProcessPoolExecutor(workers, spawn, _start_worker) as pool:
        for found in pool.map(_render_group, groups.values(), [folder / "audio"] * len(groups), chunksize=4):
            for name, table, block in found:
                tables[name] = table
                if block is not None:
                    blocks[name] = block
            if progress:
                progress(len(tables), len(utterances))
    names = [u.id for u in utterances if u.id in blocks]
    fitted = Codec.fit(np.concatenate([blocks[n] for n in names]), CODES, seed=0)
    fitted.save(folder / "codec.safetensors")
    save_file({n: tables[n].astype(np.float16) for n in sorted(tables)}, folder / "features.safetensors")
    save_file({n: fitted.encode(blocks[n]) for n in names}, folder / "codes.safetensors")
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as out:
        for utterance in utterances:
            out.write(json.dumps(_row(utterance)) + "\n")


def _row(utterance: plan.Utterance) -> dict:
    here = load_world()
    sentence = {s.name: s for s in here.sentences()}.get(utterance.sentence)
    row: dict[str, str | None] = {
        "id": utterance.id,
        "audio": f"audio/{utterance.id}.wav",
        "text": utterance.text,
        "style": utterance.style,
        "speaker": utterance.speaker,
        "split": utterance.split,
        "purpose": utterance.purpose,
        "sentence": utterance.sentence,
        "tone": utterance.tone,
        "age": "child" if utterance.child else "adult",
        "sex": utterance.voice.sex,
    }
    if utterance.purpose == "query" and sentence:
        row |= {"dimension": sentence.dimension, "contrast": utterance.contrast}
    return row


_speaker: espeak.Espeak


def _start_worker() -> None:
    """Every worker keeps one espeak helper; it ends when the worker's pipes close."""
    global _speaker
    end_with_parent()
    _speaker = espeak.Espeak().__enter__()


def _render_group(group: list[plan.Utterance], folder: Path) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    here = load_world()
    recording = render.analyse(_speaker.speak(group[0].text, group[0].voice.variant), espeak.RATE)
    found = []
    for utterance in group:
        style = plan.spoken_style(here, utterance.tone, utterance.child)
        variation = here.variation if utterance.varies else None
        wave = render.perform(recording, utterance.voice, style, variation, np.random.default_rng(utterance.seed))
        write_wav(folder / f"{utterance.id}.wav", wave, render.RATE)
        heard = wave / 32768
        block = codec.parameters(heard) if utterance.purpose == "answer" else None
        found.append((utterance.id, features.features(heard), block))
    return found


def _read(folder: Path) -> Rendering:
    tables = load_file(folder / "features.safetensors")
    codes = load_file(folder / "codes.safetensors")
    utterances, fits = {}, load_world().fits
    with open(folder / "manifest.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            name = row["id"]
            if row["purpose"] == "query":
                row["requirement"] = fits[row["style"]].requirement
            utterances[name] = Spoken(row, folder / row["audio"], tables[name].astype(np.float32), codes.get(name))
    return Rendering(folder, utterances, Codec.load(folder / "codec.safetensors"))
