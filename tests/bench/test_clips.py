"""Which sentences are heard, and how their sound is packed."""

import io
from collections import Counter

import numpy as np
import pytest
import soundfile

from paras2s_cli.bench.clips import Clips, choose_pairs, encode_mp3


def test_the_choice_covers_every_dimension_and_style_evenly(bench_rows):
    pairs = choose_pairs(bench_rows, 12)
    assert Counter(pair.dimension for pair in pairs) == dict.fromkeys(("emotion", "sarcasm", "age", "gender"), 3)
    styles = Counter((pair.dimension, side.style) for pair in pairs for side in pair.sides)
    assert {n for (dimension, _), n in styles.items() if dimension == "emotion"} == {1} and len(styles) == 12
    assert all(set(side.answers) >= {"sft", "aligned"} for pair in pairs for side in pair.sides)


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows(bench_rows):
    def texts(rows, seed):
        return [pair.text for pair in choose_pairs(rows, 8, seed=seed)]

    greedy = [row for row in bench_rows if row.mode == "greedy"]
    later_seeds_first = sorted(greedy, key=lambda row: -row.seed)
    assert texts(greedy, 0) == texts(later_seeds_first, 0)
    assert texts(greedy, 0) != texts(greedy, 1)
    heard = choose_pairs(later_seeds_first, 8)
    assert {row.seed for pair in heard for side in pair.sides for row in side.answers.values()} == {0}


def test_a_sentence_without_its_contrast_is_not_shown(scored):
    assert choose_pairs([scored(style="child")], 5) == []
    assert len(choose_pairs([scored(style="child"), scored(style="adult", query="p")], 5)) == 1


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (24000, 1), (44100, 2), (8000, 1)])
def test_a_clip_keeps_its_sound_and_its_length(tmp_path, rate, channels):
    time = np.arange(2 * rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone] * channels, axis=1), rate)
    data = encode_mp3(tmp_path / "a.wav")
    heard, heard_rate = soundfile.read(io.BytesIO(data))
    assert len(data) < 2 * 4000 and heard.ndim == 1
    assert len(heard) / heard_rate == pytest.approx(2.0, abs=0.1)
    peak = np.argmax(np.abs(np.fft.rfft(heard))) * heard_rate / len(heard)
    assert peak == pytest.approx(440, abs=2)


def test_long_clips_are_cut_and_each_sound_is_kept_once(tmp_path):
    long = np.random.default_rng(0).normal(0, 0.05, 16000 * 25)
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, long, 16000)
    clips = Clips()
    assert clips.add(tmp_path / "a.wav") == clips.add(tmp_path / "b.wav") is not None
    assert len(clips.base64) == 1 and clips.size < 20 * 3000 * 4 / 3 * 1.1


def test_what_is_no_sound_has_no_player(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    clips = Clips()
    for path in (None, tmp_path / "absent.wav", tmp_path / "text.wav", tmp_path / "empty.wav"):
        assert clips.add(path) is None
    assert clips.base64 == {}
