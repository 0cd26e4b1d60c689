"""A rendering of two sentences as a few numbers, to see whether the renderer has changed.

python tests/pocket/renderer_probe.py > tests/pocket/renderer.json     after a change, with `build.RENDERER` raised
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from paras2s_cli.audio.features import features
from paras2s_cli.pocket import build, codec, espeak, plan, render
from paras2s_cli.pocket.world import Style, Variation, Voice, World

VOICE = Voice(variant="m1", sex="male", formants=1.03, pitch=1.0)  # not a breathy one, whose noise is drawn
STYLE = Style(rate=0.9, pitch=2, range=1.3, gain=2, tilt=1, breath=0.2, final=-2, jitter=0.2, tremor=0.4, formants=1.1)
VARIATION = Variation(rate=0.05, pitch=0.8, range=0.1, gain=1.5, tilt=0.4, formants=0.025, noise=(25, 40))
EVERYTHING = {"otherwise": (1, "it does")}
WORLD = World.model_validate(
    {
        "topics": ["lake", "party", "market"],
        "frames": {
            "one": {"dimension": "emotion", "contrast": ["happy", "sad"], "text": "I see the {topic}."},
            "two": {"dimension": "gender", "contrast": ["male", "female"], "text": "I know the {topic}."},
        },
        "splits": {"test": [0], "validation": [1]},
        "answers": {"note": "Noted, the {topic}."},
        "tones": ["calm", "gentle"],
        "fits": {
            style: {"requirement": "None.", "content": EVERYTHING, "tone": {"calm": (1, "it is"), "gentle": (1, "it is")}}
            for style in ("happy", "sad", "male", "female")
        },
        "carriers": ["Tell us of the {topic}."],
        "overall": {"content": 0.5, "tone": 0.5, "slack": 2, "other_topic": 2},
        "voices": {
            split: {f"{split}-{variant}": {"variant": variant, "sex": sex} for variant, sex in (("m1", "male"), ("f1", "female"))}
            for split in ("train", "validation", "test")
        },
        "assistant": {"variant": "steph", "sex": "female"},
        "styles": {name: {"pitch": 1.0} for name in ("happy", "sad", "male", "female", "child", "neutral", "calm", "gentle")},
        "variation": VARIATION.model_dump(),
    }
)


def planned() -> str:
    """A digest of what a small world's plan is, seeds included."""
    utterances = [*plan.queries(WORLD), *plan.carriers(WORLD), *plan.answers(WORLD)]
    rows = [[u.id, u.text, u.speaker, u.style, u.tone, u.child, u.varies, u.split, u.purpose, u.seed, u.contrast] for u in utterances]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def probe() -> dict[str, Any]:
    """Numbers that move when espeak's driver, the plan, the renderer, the features or the codec's parameters do."""
    with espeak.Espeak() as speaker:
        spoken = speaker.speak("I just heard about the party.", VOICE.variant)
    wave = render.perform(render.analyse(spoken, espeak.RATE), VOICE, STYLE, VARIATION, np.random.default_rng(7))
    heard = wave / 32768
    table = features(heard)
    blocks = codec.parameters(heard)
    fitted = codec.Codec.fit(blocks, 8, seed=0)
    again = fitted.decode(fitted.encode(blocks))
    return {
        "renderer": build.RENDERER,
        "codes": build.CODES,
        "planned": planned(),
        "spoken": len(spoken),
        "samples": len(wave),
        "level": [round(float(np.log(np.mean(part**2.0) + 1)), 4) for part in np.array_split(wave.astype(float), 8)],
        "features": [[round(float(v), 4) for v in part.mean(0)[::3]] for part in np.array_split(table, 4)],
        "blocks": [round(float(v), 4) for v in blocks.mean((0, 1))[::3]],
        "decoded": [round(float(np.log(np.mean(part**2.0) + 1e-9)), 3) for part in np.array_split(again.astype(float), 4)],
    }


if __name__ == "__main__":
    print(json.dumps(probe(), indent=1))
