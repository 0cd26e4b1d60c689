"""Which judge is taken, on machines that have this and that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paras2s_cli.judge import auto
from paras2s_cli.recipe.judging import AudioLM, LocalLM, PolytoneRecipe, Whisper
from paras2s_cli.recipe.servers import Endpoint

LARGE, TURBO = "openai/whisper-large-v3", "openai/whisper-large-v3-turbo"
QWEN, LLM = "Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models of a machine that has none, and nothing in the hub's cache."""
    import huggingface_hub.constants

    for variable in (auto.URL, auto.NAME, auto.KEY):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(auto.FOLDER, str(tmp_path / "models"))
    monkeypatch.setattr(auto._Memory, "_gpu", 80 << 30)
    return tmp_path / "models"


def write(folder: Path, shards: int = 1, size: int = 10) -> Path:
    """A model's folder, its weights a hole in the file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model-{i}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    for name in names:
        with open(folder / name, "wb") as file:
            file.truncate(size)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"w{i}": n for i, n in enumerate(names)}}))
    return folder


def write_hub(root: Path, name: str) -> None:
    """A model in the hub's cache, as huggingface_hub lays it out."""
    repository = root / f"models--{name.replace('/', '--')}"
    write(repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")


def test_a_bare_machine_has_the_pocket_judge() -> None:
    choice = auto.choose()
    assert isinstance(choice.recipe.ears, PolytoneRecipe) and choice.recipe.score is None
    line = str(choice)
    assert line.startswith("judge auto: pocket; better: hf download ") and auto.URL in line and "\n" not in line


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "http://me:secret@127.0.0.1/v1"])
def test_an_address_that_is_none_is_told_and_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auto.URL, url)
    monkeypatch.setenv(auto.NAME, "gpt")
    choice, said = auto.choose(), f"better: export {auto.URL}=http://HOST/v1 ({auto.URL} is no address of a server)"
    assert choice.recipe.score is None and str(choice).endswith(said)


def test_an_endpoint_scores_what_the_best_that_is_here_hears(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auto.URL, "http://127.0.0.1:8000/v1")
    monkeypatch.setenv(auto.NAME, "gpt")
    write_hub(machine.parent / "hub", TURBO)
    choice = auto.choose()
    assert isinstance(choice.recipe.score, Endpoint) and choice.recipe.score.key_env == ""
    assert isinstance(choice.recipe.transcribe, Whisper)
    assert (choice.recipe.transcribe.model, choice.recipe.transcribe.revision) == (TURBO, "c0ffee")
    assert choice.recipe.tone is None and choice.recipe.ears is not None
    assert str(choice) == (
        f"judge auto: transcribe by {TURBO}, tone by pocket, score by gpt at http://127.0.0.1:8000/v1;"
        f" better: hf download {LARGE} ({LARGE}: not on this machine)"
    )
    monkeypatch.setenv(auto.KEY, "secret")
    score = auto.choose().recipe.score
    assert isinstance(score, Endpoint) and score.key_env == auto.KEY, "no other service's key is sent"
    monkeypatch.delenv(auto.NAME)
    assert auto.choose().recipe.score is None and f"export {auto.NAME}=MODEL" in str(auto.choose())


def test_all_stages_by_models(machine: Path) -> None:
    for name in (LARGE, QWEN, LLM):
        write(machine / name.rpartition("/")[2], shards=3)
    recipe = auto.choose().recipe
    assert recipe.ears is None
    assert isinstance(recipe.transcribe, Whisper) and isinstance(recipe.tone, AudioLM) and isinstance(recipe.score, LocalLM)
    assert recipe.tone.model == str(machine / "Qwen2-Audio-7B-Instruct")


def test_half_a_model_is_none(machine: Path) -> None:
    folder = write(machine / "whisper-large-v3", shards=2)
    assert auto.find_model(LARGE) == folder
    (folder / "model-1.safetensors").unlink()
    assert auto.find_model(LARGE) is None
    (folder / "model.safetensors.index.json").write_text("{")
    assert auto.find_model(LARGE) is None


def test_what_is_too_large_is_passed_over(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto._Memory, "_gpu", 0)
    write(machine / "whisper-large-v3", size=auto.ON_CPU + 1)
    write(machine / "whisper-large-v3-turbo", size=auto.ON_CPU + 1)
    write(machine / "whisper-small", size=auto.ON_CPU - 100)
    write(machine / "Qwen2.5-3B-Instruct", size=200)
    found = {stage.stage: stage for stage in auto.find_stages()}
    assert found["transcribe"].label == "openai/whisper-small"
    assert found["transcribe"].why == f"{LARGE}: 2.0 GiB of weights, too much for a CPU"
    assert found["transcribe"].way_out == f"a GPU for {LARGE}"
    assert found["score"].section is None, "what the others take is not there twice"


def test_nobody_is_told_to_download_what_could_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(auto.GIB) == {name for names in auto.MODELS.values() for name in names}
    monkeypatch.setattr(auto._Memory, "_gpu", 0)
    transcribe, tone, score = auto.find_stages()
    assert (transcribe.way_out, transcribe.why) == (f"hf download {TURBO}", f"{TURBO}: not on this machine")
    assert (tone.way_out, tone.why) == (f"a GPU for {QWEN}", f"{QWEN}: 15.6 GiB of weights, too much for a CPU")
    assert score.way_out == f"a GPU for {LLM}, or name an endpoint in {auto.URL} and {auto.NAME}"


def test_doctor_tells_the_stages(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paras2s_cli.main import main

    write(machine / "whisper-large-v3")
    assert main(["doctor", "--output", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["judge transcribe"] == {"name": "judge transcribe", "status": "ok", "detail": LARGE, "way_out": ""}
    assert rows["judge tone"] == {
        "name": "judge tone",
        "status": "absent",
        "detail": f"pocket's own ({QWEN}: not on this machine)",
        "way_out": f"hf download {QWEN}",
    }
    assert rows["judge score"]["status"] == "absent" and auto.URL in rows["judge score"]["way_out"]
