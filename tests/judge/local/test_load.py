"""What cannot be loaded is said in a sentence that names the model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.local.load import load_lm
from paras2s_cli.recipe.judging import LocalLM


def settings(model: object, **keys: object) -> LocalLM:
    return LocalLM.model_validate({"backend": "local", "model": str(model)} | keys)


@pytest.fixture
def copy(judge_lm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(judge_lm, tmp_path / "copy"))


@pytest.mark.parametrize(("dtype", "wanted"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_what_is_asked_for(judge_lm: Path, dtype: str, wanted: torch.dtype) -> None:
    model, _ = load_lm(settings(judge_lm, dtype=dtype, device="cpu"))
    assert model.dtype == wanted and not model.training and model.config._attn_implementation == "paras2s_varlen"


def test_a_folder_is_found_from_where_the_command_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert load_lm(settings("copy"))[0].config.model_type == "qwen2"


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (tmp_path / "gone", "./gone", "a/b/c"):
        with pytest.raises(UsageError, match=r"gone is no folder|a/b/c is no folder"):
            load_lm(settings(name))
    with pytest.raises(UsageError, match=r"^nobody/no-such-judge cannot be loaded; name another"):
        load_lm(settings("nobody/no-such-judge"))


def test_a_folder_without_weights_and_one_with_a_pickle(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_lm(settings(copy))
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model.bin is a pickle, .*`paras2s convert .*pytorch_model.bin`"):
        load_lm(settings(copy))


def test_weights_that_lack_something_or_are_torn(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"copy holds no lm_head\.weight"):
        load_lm(settings(copy))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="copy cannot be loaded"):
        load_lm(settings(copy))


def test_code_of_a_model_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'was_run')!r}, 'w')\n")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_lm(settings(copy))
    assert not (copy / "was_run").exists()


def test_code_of_a_pinned_model_is_run_if_that_is_asked_for(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class Config(Qwen2Config):\n    model_type = 'strange'\n"
        "class Model(Qwen2ForCausalLM):\n    config_class = Config\n"
    )
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_lm(settings(copy))
    model, _ = load_lm(settings(copy, remote_code=True, revision="0" * 40))
    assert type(model).__name__ == "Model" and type(model).__module__.startswith("transformers_modules")
    with pytest.raises(ValueError, match="the whole commit, 40 hexadecimal digits"):
        settings(copy, remote_code=True, revision="main")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(judge_lm: Path) -> None:
    with pytest.raises(UsageError, match=r"score\.device: cuda:1 is not there"):
        load_lm(settings(judge_lm, device="cuda:1"))
