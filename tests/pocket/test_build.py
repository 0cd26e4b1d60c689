"""Rendering into the cache: once, whole, and again when the renderer changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.data.cache import MARKER
from paras2s_cli.pocket import build, plan
from paras2s_cli.pocket.world import load_world

FEW = """
import sys
from pathlib import Path
from paras2s_cli.pocket import build, plan
queries, polytone, answers = plan.queries, plan.polytone, plan.answers
plan.queries = lambda world: queries(world)[:{count}:4]
plan.polytone = lambda world: polytone(world)[:2]
plan.carriers = lambda world: []
plan.answers = lambda world: answers(world)[:3]
build.CODES = 16
render_all = build._render_all
def counted(folder, workers, progress):
    with open(sys.argv[1], "a") as log:
        log.write("rendering\\n")
    render_all(folder, workers, progress)
build._render_all = counted
if __name__ == "__main__":
    found = build.load_rendering({workers})
    print(len(found.utterances), build.is_rendered())
"""


class Runs:
    """Processes that render a small part of the world into a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.log, self.script = folder / "cache", folder / "log", folder / "few.py"
        self.env = os.environ | {"PARAS2S_CACHE": str(self.cache), "PYTHONPATH": os.getcwd()}

    def start(self, count: int = 12, workers: int = 1) -> subprocess.Popen[str]:
        self.script.write_text(FEW.format(count=count, workers=workers))
        return subprocess.Popen(
            [sys.executable, self.script, self.log], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def renderings(self) -> int:
        return len(self.log.read_text().splitlines())

    def complete(self) -> list[Path]:
        return list(self.cache.glob(f"pocket-world-*/{MARKER}"))


def test_a_second_run_renders_nothing_and_two_at_once_render_once(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    both = [runs.start(), runs.start()]
    said = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in said] == ["8 True\n"] * 2, said
    assert runs.renderings() == 1
    stamps = {path: path.stat().st_mtime_ns for path in runs.cache.rglob("*") if path.is_file()}
    out, _ = runs.start().communicate(timeout=120)
    assert out == "8 True\n" and runs.renderings() == 1
    assert stamps == {path: path.stat().st_mtime_ns for path in runs.cache.rglob("*") if path.is_file()}

    (folder,) = (marker.parent for marker in runs.complete())
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        wave, rate = soundfile.read(folder / row["audio"])
        assert rate == 16000 and 0.3 < len(wave) / rate < 6 and np.abs(wave).max() > 0.01


def test_a_killed_rendering_leaves_no_half_world_and_no_process(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    process = runs.start(count=500)
    deadline = time.monotonic() + 90
    while not list(runs.cache.glob(".paras2s-*/audio/*.wav")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    children = descendants(process.pid)
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not runs.complete()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() and not zombie(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [child for child in children if Path(f"/proc/{child}").exists() and not zombie(child)]
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert not left, "workers outlive the run that started them"

    out, error = runs.start().communicate(timeout=120)
    assert out == "8 True\n", error
    assert len(runs.complete()) == 1 and not list(runs.cache.glob(".paras2s-*"))


def descendants(pid: int) -> list[int]:
    children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return children + [grand for child in children for grand in descendants(child)]


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_change_of_the_renderer_raises_its_version() -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("renderer_probe.py")],
        env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    now, kept = json.loads(done.stdout), json.loads(Path(__file__).with_name("renderer.json").read_text())
    advice = "what is rendered has changed: raise build.RENDERER and run tests/pocket/renderer_probe.py again"
    for name in ("codes", "planned", "spoken", "samples"):
        assert now[name] == kept[name], f"{name}: {advice}"
    for name in ("level", "features", "blocks", "decoded"):
        assert np.array(now[name]) == pytest.approx(np.array(kept[name]), abs=0.02), f"{name}: {advice}"
    assert now["renderer"] == kept["renderer"], "run tests/pocket/renderer_probe.py for the new version"


def test_the_key_goes_by_what_is_rendered_and_not_by_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, key = load_world(), build.world_key()
    fairer = rules.model_copy(update={"overall": rules.overall.model_copy(update={"slack": 1})})
    other = rules.model_copy(update={"assistant": rules.assistant.model_copy(update={"pitch": 1.0})})
    monkeypatch.setattr(build, "load_world", lambda: fairer)
    assert build.world_key() == key
    monkeypatch.setattr(build, "load_world", lambda: other)
    assert build.world_key() != key
    monkeypatch.setattr(build, "load_world", lambda: rules)
    monkeypatch.setattr(build, "RENDERER", build.RENDERER + 1)
    assert build.world_key() != key


def test_a_row_says_who_speaks_and_how() -> None:
    rules = load_world()
    for utterance in (*plan.queries(rules)[::50], *plan.polytone(rules)[::50], *plan.carriers(rules)[::50], plan.answers(rules)[0]):
        row = build._row(utterance)
        assert row["audio"] == f"audio/{utterance.id}.wav" and row["sex"] == utterance.voice.sex
        assert row["age"] == ("child" if utterance.child else "adult")
        assert ("dimension" in row) == (utterance.purpose == "query")
        if "dimension" in row and row["dimension"] in ("age", "gender"):
            assert row["style"] in (row["age"], row["sex"])
