"""Weights as they are trained: in fp32, and in parts where there are several processes, each of which holds some rows of every matrix and
of its optimizer's state (FSDP2), and saves them."""

from copy import deepcopy

import torch
from torch import nn

from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.train.ranks import Ranks
from paras2s_cli.train.stored import in_parts


class Shards:
    """A speech LM whose weights lie in parts on all ranks. Work on it goes through its `forward`, by all ranks as often.

    What is trained lies in fp32, for one process too: a step of 1e-5 is less than half the distance between two numbers of bf16, and
    would be rounded away. In bf16 on GPUs parts are gathered and multiplied in bf16, and gradients are summed in fp32; a layer's
    weights are whole only while it is at work, embeddings and heads from a forward to its backward.
    """

    def __init__(self, model: SpeechLM, ranks: Ranks, *, bf16: bool) -> None:
        # not needed by a process alone, and a second to import
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.model, self.ranks = model, ranks
        self.dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
        if ranks.size == 1:
            _widen(model)
            return
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.size,))
        if model.hearing is not None:
            model.hearing.device = torch.device(mesh.device_type)  # where the weights go
        half = bf16 and torch.cuda.is_available()
        # without the cast of inputs: rotary positions do not bear bf16
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
        )
        for part in (*model.blocks(), model):
            _widen(part)
            trained = any(weight.requires_grad for weight in part.parameters())
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=None if trained else True)

    def gather(self) -> None:
        """Makes the weights whole on rank 0, in the host's memory and the dtypes that they came in, and leaves none elsewhere. One process
        has them where they are.

        Tensor by tensor: beside rank 0's copy there is never more than the shards and one whole tensor. Nothing is trained afterwards.
        """
        for name, weight in list(self.model.named_parameters()):
            if self.ranks.size == 1:
                weight.data = weight.data.to(self.dtypes[name])
                continue
            assert in_parts(weight)
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
            if weight.requires_grad and in_parts(weight):
                self.copy.get_parameter(name).copy_(weight.full_tensor())
        return self.copy


def _widen(part: nn.Module) -> None:
    """Makes what is trained fp32, where it lies whole."""
    for weight in part.parameters():
        if weight.requires_grad and not in_parts(weight):
            weight.data = weight.data.float()
