"""Our transcriber beside pocketsphinx on the pocket world: who hears a closed set of sentences better, and who free speech.

    python benchmarks/transcribers.py [QUERIES]

Validation voices and sentences; white noise at 30 dB SNR is added for pocketsphinx, which else often returns nothing. `closed`: one of
the world's query texts must be chosen (ours by CTC likelihood, pocketsphinx by a grammar). `free`: letters by CTC's best path,
pocketsphinx by its own language model. `outside` are sentences that the world does not have, in the same voices.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import soundfile
import torch
from pocketsphinx import Config, Decoder, get_model_path
from rich.console import Console
from rich.table import Table

from paras2s_cli.audio.features import features
from paras2s_cli.bench.words import word_errors
from paras2s_cli.data.worlds import World, load_world
from paras2s_cli.judge.ears import spell
from paras2s_cli.judge.listener import SmallListener
from paras2s_cli.judge.open_speech import OpenTranscriber
from paras2s_cli.pocket import espeak, render
from paras2s_cli.pocket.world import load_world as load_rules
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.train.polytone import load_listener

OUTSIDE = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Please turn off the lights before you leave.",
    "What time does the next train leave for London?",
    "I would like a cup of coffee with milk.",
    "She sells sea shells by the sea shore.",
    "My computer will not start this morning.",
    "We need more bread, eggs and a bottle of water.",
    "The weather tomorrow will be cold and rainy.",
    "Nobody told me that the meeting was moved.",
    "Can you play some quiet music in the kitchen?",
)

Said = tuple[str, np.ndarray]
"""A text and how it was spoken: float32 [T] at 16 kHz."""
Transcribe = Callable[[np.ndarray], str]


def ours(listener: SmallListener, *, closed: bool) -> Transcribe:
    bound = dataclasses.replace(listener.knowledge, worst_fit=np.inf if closed else -np.inf)
    told = SmallListener(listener.transcriber, listener.describer, bound, 1)
    return lambda wave: told.listen_features([features(wave)], [""], "query")[0].heard.text


def sphinx(texts: Sequence[str]) -> Transcribe:
    """pocketsphinx with a grammar of `texts`."""
    model = get_model_path()
    decoder = Decoder(Config(hmm=f"{model}/en-us/en-us", dict=f"{model}/en-us/cmudict-en-us.dict", lm=None, loglevel="FATAL"))
    sentences = " | ".join(spell(text) for text in texts)
    decoder.add_jsgf_string("world", f"#JSGF V1.0; grammar world; public <world> = {sentences};")
    decoder.activate_search("world")
    rng = np.random.default_rng(0)

    def transcribe(wave: np.ndarray) -> str:
        level = float(np.sqrt(np.mean(wave**2))) * 10 ** (-30 / 20)
        noisy = np.clip(wave + rng.normal(size=len(wave)) * level, -1, 1)
        decoder.start_utt()
        decoder.process_raw((noisy * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return transcribe


def inside(world: World, count: int) -> list[Said]:
    queries = world.queries("validation")
    step = max(1, len(queries) // count)
    return [(q.row["text"], soundfile.read(q.path, dtype="float32")[0]) for q in queries[::step][:count]]


def outside() -> list[Said]:
    rules, found = load_rules(), []
    with espeak.Espeak() as speaker:
        for place, text in enumerate(OUTSIDE):
            voices = list(rules.voices["validation"].values())
            voice = voices[place % len(voices)]
            recording = render.analyse(speaker.speak(text, voice.variant), espeak.RATE)
            style = rules.styles[rules.query_tones()[place % len(rules.query_tones())]]
            wave = render.perform(recording, voice, style, rules.variation, np.random.default_rng(place))
            found.append((text, (wave / 32768).astype(np.float32)))
    return found


def measure(table: Table, name: str, suite: str, said: Sequence[Said], transcribe: Transcribe) -> None:
    begun = time.perf_counter()
    heard = [transcribe(wave) for _, wave in said]
    seconds = (time.perf_counter() - begun) / len(said)
    wrong = sum(spell(text) != spell(words) for (text, _), words in zip(said, heard, strict=True)) / len(said)
    errors = [word_errors(spell(text), spell(words)) for (text, _), words in zip(said, heard, strict=True)]
    rate = sum(edits for edits, _ in errors) / sum(words for _, words in errors)
    letters = [word_errors(" ".join(spell(t)), " ".join(spell(h))) for (t, _), h in zip(said, heard, strict=True)]
    spelling = sum(edits for edits, _ in letters) / sum(count for _, count in letters)
    empty = sum(not words for words in heard)
    table.add_row(name, suite, str(len(said)), f"{wrong:.3f}", f"{rate:.3f}", f"{spelling:.3f}", str(empty), f"{seconds * 1000:.0f}")


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    world = load_world("pocket", 1, print)
    listener = load_listener(load_recipe("pocket/polytone", [], PolytoneRecipe), world, print)
    texts = world.known_texts("query")
    table = Table("transcriber", "speech", "n", "sentence error", "word error", "letter error", "empty", "ms each")
    known, unknown = inside(world, count), outside()
    measure(table, "ours, closed", "validation", known, ours(listener, closed=True))
    measure(table, "pocketsphinx, closed", "validation", known, sphinx(texts))
    for suite, said in (("validation", known), ("outside", unknown)):
        measure(table, "ours, free", suite, said, ours(listener, closed=False))
        measure(table, "pocketsphinx, free", suite, said, OpenTranscriber().transcribe)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
