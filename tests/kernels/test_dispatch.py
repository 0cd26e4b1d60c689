from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import paras2s_kernels
from paras2s_kernels import backends, dispatch, force

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.ENV, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_cpu_tensors_run_the_reference() -> None:
    assert dispatch.choose(CPU) == "reference"
    assert dispatch.implementation("token_logprob", CPU).__name__ == "paras2s_kernels.reference.token_logprob"


def test_kernels_run_on_the_gpu_that_their_tensors_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton itself launches on the current one, whatever the tensors are on."""
    current: list[object] = [None]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device)

        def __exit__(self, *raised: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    kernel = SimpleNamespace(forward=lambda value: (value, current[-1]))
    monkeypatch.setattr(dispatch, "implementation", lambda name, device: kernel)
    second = torch.device("cuda", 1)
    assert dispatch.run("token_logprob", "forward", second, 7) == (7, second)
    assert dispatch.run("token_logprob", "forward", CPU, 7) == (7, None) and current == [None]


def test_block_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENV, "triton")
    with pytest.raises(ValueError, match=r"PARAS2S_KERNELS=triton: triton needs CUDA tensors"):
        dispatch.choose(CPU)
    with force("reference"):
        assert dispatch.choose(CPU) == "reference"
    with force("triton"), pytest.raises(ValueError, match=r"force\(\): triton"):
        dispatch.choose(CPU)


def test_interpreter_takes_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose(CPU) == "reference"
    monkeypatch.setenv(dispatch.ENV, "triton")
    assert dispatch.choose(CPU) == "triton"


def test_cuda_tensors_run_triton_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert dispatch.choose(torch.device("cuda", 0)) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert dispatch.choose(torch.device("cuda", 0)) == "reference"


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cutlass"), force("cutlass"):
        pass
    monkeypatch.setenv(dispatch.ENV, "cutlass")
    with pytest.raises(ValueError, match="PARAS2S_KERNELS: unknown backend 'cutlass'"):
        dispatch.choose(CPU)


def test_backends_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row, *rest = backends()
    assert [row["kernel"], *(other["kernel"] for other in rest)] == list(dispatch.KERNELS)
    assert row["chosen"] == "reference" and row["available"] == ["reference"]
    assert row["why"] == "triton needs CUDA tensors (these are on cpu)"
    monkeypatch.setenv(dispatch.ENV, "triton")
    assert all(row["chosen"] == "none" and "PARAS2S_KERNELS=triton" in str(row["why"]) for row in backends())


def test_every_kernel_has_its_two_forms_and_its_tests() -> None:
    package, tests = Path(paras2s_kernels.__file__).parent, Path(__file__).parent
    for kernel in dispatch.KERNELS:
        for folder in (package, package / "gpu", package / "reference"):
            assert (folder / f"{kernel}.py").is_file()
        assert callable(getattr(paras2s_kernels, kernel))
        assert (tests / f"test_{kernel}.py").is_file()
        assert (tests / "interpreter" / f"case_{kernel}.py").is_file() and (tests / "aot" / f"case_{kernel}.py").is_file()


def test_kernels_folder_is_no_package() -> None:
    # transformers imports a package called `kernels`; one of ours would break every model load
    assert not (Path(__file__).parents[2] / "kernels" / "__init__.py").exists()


def test_import_leaves_triton_alone() -> None:
    seen = "print('triton.language' in sys.modules)"  # torch may load it on its own
    code = f"import sys, torch; {seen}; import paras2s_kernels; {seen}"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after
