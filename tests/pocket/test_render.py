"""What a style does to a recording, measured on the samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import pyworld

from paras2s_cli.pocket import espeak, plan, render
from paras2s_cli.pocket.espeak import Espeak
from paras2s_cli.pocket.render import RATE, Recording
from paras2s_cli.pocket.world import Style, Voice, load_world

RULES = load_world()
PLAIN = Voice(variant="m1", sex="male")


@pytest.fixture(scope="module")
def recording(espeak_helper: Espeak) -> Recording:
    return render.analyse(espeak_helper.speak("I just heard about the party.", "m1"), espeak.RATE)


@pytest.fixture(scope="module")
def measured(recording: Recording) -> Callable[..., dict[str, float]]:
    """measured(style, voice) -> mean and spread of F0 (semitones), seconds, dB, and dB of high over low frequencies."""

    def measure(style: Style, voice: Voice = PLAIN) -> dict[str, float]:
        wave = render.perform(recording, voice, style, None, np.random.default_rng(0)) / 32768
        f0, _ = pyworld.harvest(wave, RATE, f0_floor=60, f0_ceil=600)
        pitch = 12 * np.log2(f0[f0 > 0])
        power = np.abs(np.fft.rfft(wave)) ** 2
        hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
        high, low = power[(hertz > 2000) & (hertz < 4000)].mean(), power[(hertz > 150) & (hertz < 1000)].mean()
        return {
            "pitch": float(np.median(pitch)),
            "spread": float(np.percentile(pitch, 80) - np.percentile(pitch, 20)),
            "seconds": len(wave) / RATE,
            "level": float(10 * np.log10(np.mean(wave**2))),
            "tilt": float(10 * np.log10(high / low)),
        }

    return measure


def test_the_same_id_gives_the_same_samples(espeak_helper: Espeak) -> None:
    utterance = plan.queries(RULES)[0]
    style = plan.spoken_style(RULES, utterance.tone, utterance.child)

    def once(seed: int) -> bytes:
        found = render.analyse(espeak_helper.speak(utterance.text, utterance.voice.variant), espeak.RATE)
        return render.perform(found, utterance.voice, style, RULES.variation, np.random.default_rng(seed)).tobytes()

    assert once(utterance.seed) == once(utterance.seed)
    assert once(utterance.seed) != once(plan.queries(RULES)[2].seed)


def test_a_plain_style_keeps_pace_and_pitch(recording: Recording, measured: Callable[..., dict[str, float]]) -> None:
    found = measured(Style())
    assert found["seconds"] == pytest.approx(len(recording.f0) / 100, abs=0.03)
    assert found["pitch"] == pytest.approx(float(np.median(12 * np.log2(recording.f0[recording.f0 > 0]))), abs=0.5)
    assert found["level"] == pytest.approx(20 * np.log10(0.06), abs=0.2)


@pytest.mark.parametrize(
    ("change", "what", "by", "within"),
    [
        ({"pitch": 4.0}, "pitch", 4.0, 0.5),
        ({"pitch": -3.0}, "pitch", -3.0, 0.6),
        ({"gain": 6.0}, "level", 6.0, 0.2),
        ({"tilt": 3.0}, "tilt", 6.0, 3.5),
        ({"tilt": -3.0}, "tilt", -6.0, 3.5),
    ],
)
def test_an_edit_does_what_its_unit_says(
    measured: Callable[..., dict[str, float]], change: dict[str, float], what: str, by: float, within: float
) -> None:
    plain, edited = measured(Style()), measured(Style(**change))
    assert edited[what] - plain[what] == pytest.approx(by, abs=within)


@pytest.mark.parametrize("rate", [0.75, 1.25])
def test_rate_scales_the_duration(measured: Callable[..., dict[str, float]], rate: float) -> None:
    assert measured(Style(rate=rate))["seconds"] * rate == pytest.approx(measured(Style())["seconds"], rel=0.02)


def test_range_widens_the_melody(measured: Callable[..., dict[str, float]]) -> None:
    assert measured(Style(range=2.0))["spread"] > 1.5 * measured(Style())["spread"] > 2 * measured(Style(range=0.3))["spread"]


def test_sad_is_slower_lower_flatter_softer_and_darker_than_happy(measured: Callable[..., dict[str, float]]) -> None:
    sad, happy = measured(RULES.styles["sad"]), measured(RULES.styles["happy"])
    assert sad["seconds"] > 1.3 * happy["seconds"]
    assert sad["pitch"] < happy["pitch"] - 3.5
    assert sad["spread"] < 0.6 * happy["spread"]
    assert sad["level"] < happy["level"] - 8
    assert sad["tilt"] < happy["tilt"] - 3


@pytest.mark.parametrize("final", [6.0, -4.0])
def test_the_last_third_of_a_second_rises_or_falls(recording: Recording, final: float) -> None:
    ends = []
    for style in (Style(pitch=6, final=final), Style(pitch=6)):  # away from the lowest pitch there is
        wave = render.perform(recording, PLAIN, style, None, np.random.default_rng(0)) / 32768
        f0, _ = pyworld.harvest(wave, RATE, f0_floor=60, f0_ceil=600)
        pitch = 12 * np.log2(f0[f0 > 0])
        ends.append((float(np.median(pitch[-15:])), float(np.median(pitch[: len(pitch) // 2]))))
    assert ends[0][0] - ends[1][0] == pytest.approx(final, abs=1.5)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=0.3)


def test_a_childs_formants_and_pitch_are_higher(measured: Callable[..., dict[str, float]]) -> None:
    child, adult = measured(RULES.styles["child"]), measured(RULES.styles["adult"])
    assert child["pitch"] - adult["pitch"] == pytest.approx(6, abs=1)


def test_variation_makes_takes_differ_about_as_much_as_it_says(recording: Recording) -> None:
    lengths = [len(render.perform(recording, PLAIN, Style(), RULES.variation, np.random.default_rng(seed))) for seed in range(24)]
    spread = float(np.std(np.log(lengths)))
    assert 0.5 * RULES.variation.rate < spread < 1.8 * RULES.variation.rate


def test_a_voiceless_or_silent_recording_stays_finite() -> None:
    for samples in (np.zeros(22050, np.int16), np.random.default_rng(0).integers(-900, 900, 22050).astype(np.int16)):
        for tone in ("fearful", "child"):
            wave = render.perform(render.analyse(samples, 22050), PLAIN, RULES.styles[tone], None, np.random.default_rng(0))
            assert wave.dtype == np.int16 and len(wave) > 8000


def test_samples_that_are_too_loud_are_cut_and_do_not_wrap_around(recording: Recording) -> None:
    loud, soft = (render.perform(recording, PLAIN, Style(gain=gain), None, np.random.default_rng(0)).astype(int) for gain in (20, 0))
    clear = np.abs(soft) > 500
    assert np.abs(loud).max() >= 32767 and (np.sign(loud) == np.sign(soft))[clear].all()
