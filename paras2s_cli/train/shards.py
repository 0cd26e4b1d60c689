"""Weights in parts: each of several processes holds some rows of every matrix and of its optimizer's state (FSDP2), and saves them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.train.ranks import Ranks

_FILE = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors")


class Shards:
    """A speech LM whose weights lie in parts on all ranks. Work on it goes through its `forward`, by all ranks as often.

    What is trained lies in fp32. In bf16 on GPUs it is gathered and multiplied in bf16, and gradients are summed in fp32; a layer's
    weights are whole only while it is at work, embeddings and heads from a forward to its backward.
    """

    def __init__(self, model: SpeechLM, ranks: Ranks, *, bf16: bool) -> None:
        self.model, self.ranks = model, ranks
        self.dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.size,))
        half = bf16 and torch.cuda.is_available()
        # without the cast of inputs: rotary positions do not bear bf16
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
        )
        for part in (*model.blocks(), model):
            for weight in part.parameters():
                if weight.requires_grad and not isinstance(weight, DTensor):
                    weight.data = weight.data.float()
            trained = any(weight.requires_grad for weight in part.parameters())
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=None if trained else True)

    def gather(self) -> None:
        """Makes the weights whole on rank 0, in the host's memory and the dtypes that they came in, and leaves none elsewhere.

        Tensor by tensor: beside rank 0's copy there is never more than the shards and one whole tensor. Nothing is trained afterwards.
        """
        for name, weight in list(self.model.named_parameters()):
            assert isinstance(weight, DTensor)
            whole = weight.full_tensor().detach()
            kept = whole.to("cpu", self.dtypes[name]) if self.ranks.first else torch.empty(0)
            path, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(path), leaf, nn.Parameter(kept))


class Mirror:
    """A whole copy of a speech LM on every rank, made before its weights lie in parts: for the decode engine, whose steps are not as many
    on each rank. It takes the memory of one model in the dtypes of its files; what is trained is gathered tensor by tensor."""

    def __init__(self, model: SpeechLM) -> None:
        kept = {id(part): part for part in (model.hearing, model.layout)}
        self.copy = deepcopy(model, kept).eval().requires_grad_(False)
        if torch.cuda.is_available():
            self.copy.cuda()

    @torch.no_grad()
    def of(self, model: SpeechLM) -> SpeechLM:
        """The copy, brought up to date."""
        for name, weight in model.named_parameters():
            if weight.requires_grad and isinstance(weight, DTensor):
                self.copy.get_parameter(name).copy_(weight.full_tensor())
        return self.copy


def own_part(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """What a rank has to save: its rows of tensors that lie in parts; the others are rank 0's to save."""
    parts = {name: tensor.to_local() for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    return parts | ({name: tensor for name, tensor in tensors.items() if name not in parts} if ranks.first else {})


def file_of(group: str, ranks: Ranks) -> str:
    """The file of a rank's part of a group of tensors."""
    return f"{group}.safetensors" if ranks.size == 1 else f"{group}-{ranks.rank + 1:05d}-of-{ranks.size:05d}.safetensors"


def like(tensors: Mapping[str, Tensor], name: str, target: Tensor) -> Tensor:
    """A saved tensor as `target` lies: whole, or this rank's rows of it, however many ranks have saved it."""
    saved = tensors.shape(name) if isinstance(tensors, Stored) else tensors[name].shape
    if not isinstance(target, DTensor) or saved != target.shape:
        return tensors[name]
    mesh, count = target.device_mesh, len(target)
    size = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * size, count)
    stop = min(start + size, count)
    rows = tensors.rows(name, start, stop) if isinstance(tensors, Stored) else tensors[name][start:stop]
    return DTensor.from_local(rows.to(target.device), mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride())


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module its saved state; where its weights lie in parts, this rank's."""
    targets = module.state_dict()
    module.load_state_dict({name: like(tensors, name, targets[name]) if name in targets else tensors[name] for name in tensors})


class Stored(Mapping[str, Tensor]):
    """A group of tensors on disk, which one file holds or the files of several ranks. Read when they are asked for; copies."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts: dict[str, list[safe_open]] = {}
        for file in files:
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                self._parts.setdefault(name, []).append(opened)

    def __getitem__(self, name: str) -> Tensor:
        parts = [opened.get_tensor(name) for opened in self._parts[name]]
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's."""
        shapes = [opened.get_slice(name).get_shape() for opened in self._parts[name]]
        return tuple(shapes[0]) if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of the whole tensor; no more than these are read."""
        parts = [opened.get_slice(name) for opened in self._parts[name]]
        found, offset = [parts[0][:0]], 0
        for part in parts:
            count = part.get_shape()[0]
            if start < offset + count and offset < stop:
                found.append(part[max(start - offset, 0) : min(stop - offset, count)])
            offset += count
        return torch.cat(found)


def stored_groups(folder: Path) -> dict[str, Stored]:
    """All groups of a folder."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = _FILE.fullmatch(path.name)
        assert match is not None
        files.setdefault(match[1], []).append(path)
    return {group: Stored(parts) for group, parts in files.items()}
