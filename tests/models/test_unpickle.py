"""What is taken from a pickle, what is refused, and the command that does it in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paras2s_cli.main import main
from paras2s_cli.models import unpickle

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "c": torch.ones(2, dtype=torch.bfloat16)}


class Command:
    """A pickle that runs something when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def converted(tmp_path: Path, found: Any, key: str = "", **how: Any) -> dict[str, torch.Tensor]:
    torch.save(found, tmp_path / "in.bin", **how)
    assert unpickle.main(str(tmp_path / "in.bin"), str(tmp_path / "out.safetensors"), key) == 0
    return load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_through_as_they_were(tmp_path: Path, zipped: bool) -> None:
    given = OrderedDict(TENSORS, p=torch.nn.Parameter(torch.zeros(3)), view=torch.arange(12.0).view(3, 4).T[1:3], empty=torch.zeros(0))
    found = converted(tmp_path, given, _use_new_zipfile_serialization=zipped)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_a_mapping_within_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nested = {"epoch": 3, "model": TENSORS}
    assert converted(tmp_path, nested, "model").keys() == TENSORS.keys()
    for key, said in (("", "epoch, model"), ("generator", "has no 'generator': it has epoch, model"), ("epoch", "no mapping")):
        assert unpickle.main(str(tmp_path / "in.bin"), str(tmp_path / "no"), key) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"a": TENSORS["a.weight"], "b": TENSORS["a.weight"]}, "one memory for a and b"),
        ({"a": TENSORS["a.weight"][0], "b": TENSORS["a.weight"][1:]}, "one memory for a and b"),
        ({"a": torch.eye(2).to_sparse()}, "torch.sparse_coo"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "a as a Tensor, quantized"),
        ({"a": torch.zeros(2, device="meta")}, "a as a Tensor, without values"),
        ({3: torch.zeros(2)}, "under 3"),
        ({"a": 1.0}, "holds float under 'a'"),
        ([torch.zeros(2)], "no mapping of names to tensors"),
        ({}, "no mapping of names to tensors"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], found: Any, said: str) -> None:
    torch.save(found, tmp_path / "in.pt")
    assert unpickle.main(str(tmp_path / "in.pt"), str(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"nothing of the kind", pickle.dumps({"a": 1})[:-3]])
def test_what_is_damaged_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "in.pt").write_bytes(content)
    assert unpickle.main(str(tmp_path / "in.pt"), str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {"pytorch_model-00001-of-00002.bin": ["a.weight"], "pytorch_model-00002-of-00002.bin": ["b", "c"]}
    for file, names in shards.items():
        torch.save({name: TENSORS[name] for name in names}, tmp_path / file)
    index = {"metadata": {"total_size": 44}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert main(["convert", str(tmp_path / "pytorch_model.bin.index.json")]) == 0
    assert "3 tensors\t44 bytes" in capsys.readouterr().out
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: load_file(tmp_path / file)[name] for name, file in places.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items()) and found.keys() == TENSORS.keys()
    assert places["c"] == "model-00002-of-00002.safetensors"
    assert main(["convert", str(tmp_path / "pytorch_model-00001-of-00002.bin"), str(tmp_path / places["c"])]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_nothing_in_a_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Command(tmp_path / "ran")}, tmp_path / "bad.bin")
    assert main(["convert", str(tmp_path / "bad.bin")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'bad.bin'} asks for posix.mkdir, which is no tensor" in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.bin"]
