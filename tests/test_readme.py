"""Every command of the README runs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.audio.write import write_wav
from paras2s_cli.main import main
from tests.commands import ROOT, TINY

OUTSIDE = re.compile("cmd:|openai:|files:")
"""Of systems that are not our own: tests/verbs/test_bench.py runs these lines."""
README = re.sub("```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
"""Without what is printed."""
BLOCKS = [line.strip() for line in README.splitlines() if line.startswith("    ")]
COMMANDS = [line for line in BLOCKS if line.startswith("paras2s ") and not OUTSIDE.search(line)]
OTHERS = [line for line in BLOCKS if not line.startswith("paras2s ")]


def test_the_readme_has_every_verb() -> None:
    assert {line.split()[1] for line in COMMANDS} == {"judge", "bench", "sft", "align", "recipes", "doctor"}


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands_are_what_the_makefile_and_the_package_offer(line: str) -> None:
    if line.startswith("torchrun "):
        assert f'LINE = "{line}"' in (ROOT / "tests/train/test_torchrun.py").read_text(), "that file runs it"
    elif line.startswith("make "):
        planned = subprocess.run(["make", "-n", line.split()[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert planned.returncode == 0, planned.stderr
    else:
        assert line == "pip install -c constraints.txt -e '.[pocket]'" and (ROOT / "constraints.txt").exists()


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path, pocket_judge: object, pocket_world: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: `test_end_to_end.py` starts some in their own."""
    monkeypatch.chdir(tmp_path)
    query, answer = pocket_world.queries("test")[0], pocket_world.answers()[0]  # type: ignore[attr-defined]
    shutil.copy(query.path, tmp_path / "query.wav")
    shutil.copy(answer.path, tmp_path / "answer.wav")
    shutil.copy(query.path, tmp_path / "q1.wav")
    write_wav(tmp_path / "a1.wav", np.zeros(16000, dtype=np.float32))
    (tmp_path / "pairs.jsonl").write_text('{"id": "1", "query": "q1.wav", "answer": "a1.wav"}\n')
    smaller = {"align": [*TINY, "grpo.train.steps=1", "grpo.refit_below=-1", "--no-bench"], "bench": ["limit=4", "draws=100", "players=2"]}
    said = {}
    for line in COMMANDS:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "sft" and words[1:] == ["pocket"]:
            words += ["base.train.steps=3", "train.steps=2"]
        words += smaller.get(words[0], [])
        words += ["--dry-run"] if "seed=2" in words else []  # the first `align` does the same
        code, told = main(words), capsys.readouterr()
        assert code == 0, f"{line}: {told.err[-3000:]}"
        said[line] = told.out
    assert "held_out_text" in said["paras2s sft pocket"] and (tmp_path / "runs" / "pocket-sft" / "model" / "config.json").exists()
    figures = dict(told.split("\t") for told in said["paras2s sft pocket/polytone"].splitlines())
    assert float(figures["style"]) > 0.85 and float(figures["word_error"]) < 0.05 and float(figures["answer_tone_coded"]) > 0.9
