"""espeak-ng in its helper: the same bytes whatever came before, and never in our own process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.pocket import espeak
from paras2s_cli.pocket.espeak import Espeak
from paras2s_cli.pocket.world import load_world

TEXTS = ["I just heard about the party.", "Which bus goes to the museum?", "Really?"]


def test_the_same_text_gives_the_same_samples_in_any_order_and_any_helper(espeak_helper: Espeak) -> None:
    pairs = [(text, variant) for text in TEXTS for variant in ("m1", "f2")]
    first = {pair: espeak_helper.speak(*pair) for pair in pairs}
    time.sleep(1.1)  # a seed from the clock would be another one
    with Espeak() as other:
        second = {pair: other.speak(*pair) for pair in [*reversed(pairs), *reversed(pairs)]}
    for pair in pairs:
        assert first[pair].dtype == np.int16 and len(first[pair]) > espeak.RATE // 4
        assert first[pair].tobytes() == second[pair].tobytes()


def test_text_and_voice_matter(espeak_helper: Espeak) -> None:
    said = [espeak_helper.speak(TEXTS[0], "m1"), espeak_helper.speak(TEXTS[0], "f2"), espeak_helper.speak(TEXTS[1], "m1")]
    assert len({wave.tobytes() for wave in said}) == 3


def test_every_variant_of_the_world_is_there_and_is_a_voice_of_its_own(espeak_helper: Espeak) -> None:
    rules = load_world()
    variants = [v.variant for split in rules.voices.values() for v in split.values()] + [rules.assistant.variant]
    said = {variant: espeak_helper.speak(TEXTS[2], variant).tobytes() for variant in variants}
    assert len(set(said.values())) == len(variants)


def test_an_unknown_voice_is_a_usage_error_and_the_helper_goes_on(espeak_helper: Espeak) -> None:
    with pytest.raises(UsageError, match="'nobody'"):
        espeak_helper.speak(TEXTS[0], "nobody")
    assert len(espeak_helper.speak(TEXTS[2], "m1")) > 0


def test_the_library_is_in_the_helper_only(espeak_helper: Espeak) -> None:
    espeak_helper.speak(TEXTS[2], "m1")
    assert espeak_helper._process.pid != os.getpid()
    assert "espeak-ng" in Path(f"/proc/{espeak_helper._process.pid}/maps").read_text()
    assert "libespeak" not in Path("/proc/self/maps").read_text()


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    with pytest.raises(UsageError, match="pip install"), Espeak() as speaker:
        speaker.speak(TEXTS[0], "m1")
    assert "Traceback" not in capfd.readouterr().err


def test_the_helper_ends_with_its_context() -> None:
    with Espeak() as speaker:
        speaker.speak(TEXTS[2], "m1")
    assert speaker._process.returncode == 0
