"""Layers that are computed again in the backward: the same losses and gradients, and less that is kept for it."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import random_frames, tiny_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from paras2s_cli.models.lora import add_lora
from paras2s_cli.models.prompt import Answers, answer_hidden, spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams

GROUP = 3


def exchange(model: SpeechLM) -> tuple[Streams, Answers]:
    """Four prompts and three answers to each, of random tokens."""
    prompts = spoken_queries(random_frames([22, 9, 41, 30]), model.config, model.specials)
    generator = torch.Generator().manual_seed(1)
    text, audio = (torch.randint(0, model.config.kimia_token_offset, (4 * GROUP, 17), generator=generator) for _ in range(2))
    free = torch.ones_like(text, dtype=torch.bool)
    return prompts, Answers(audio, text, free, free)


def gradients(model: SpeechLM, on: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """A loss of both streams, its gradients, and the bytes that are kept between forward and backward: each storage once, and what
    goes into layers."""
    model.zero_grad()
    model.checkpoint_blocks(on)
    kept: dict[int, int] = {}

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(block: nn.Module, given: tuple) -> None:
        keep(given[0])

    hooks = [block.register_forward_pre_hook(enter) for block in model.blocks()]
    torch.manual_seed(4)  # of dropout
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        text, audio = answer_hidden(model, *exchange(model))
        loss = text.square().mean() + audio.sin().mean()
    for hook in hooks:
        hook.remove()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("lora", [False, True])
def test_the_same_gradients_from_less_memory(lora: bool) -> None:
    model = tiny_model()
    if lora:
        add_lora(model, r=4, alpha=8.0, dropout=0.3, targets=("q_proj", "k_proj", "down_proj"), seed=1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.1)
        model.train()
    loss, wanted, whole = gradients(model, False)
    again, found, less = gradients(model, True)
    assert torch.equal(loss, again) and found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)
    assert less < 0.4 * whole, (less, whole)


def test_a_prefix_is_not_changed_by_the_second_time() -> None:
    """Without gradient nothing is computed again; with it a backward twice over the same graph is the same."""
    model = tiny_model()
    model.checkpoint_blocks(True)
    with torch.no_grad():
        plain = answer_hidden(model, *exchange(model))
    text, audio = answer_hidden(model, *exchange(model))
    assert torch.equal(plain[0], text) and torch.equal(plain[1], audio)
    weight = model.get_parameter("model.layers.0.self_attn.k_proj.weight")
    first, second = (torch.autograd.grad(text.sum() + audio.sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0
