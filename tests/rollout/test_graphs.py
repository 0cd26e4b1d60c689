"""What a graph of the decode step may not do, told without a GPU: tensors without memory have no numbers that could be asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_lm import tiny_model

from paras2s_cli.rollout.cache import SharedCache
from paras2s_cli.rollout.engine import Engine, Shape, records
from paras2s_cli.rollout.graphs import Graphs
from paras2s_cli.rollout.sampling import Sampling
from paras2s_kernels import dispatch

SAMPLINGS = [
    Sampling(0.8, 10),
    Sampling(0.0),
    Sampling(1.3, 12, 0.8, text_temperature=0.7, text_top_k=20, text_top_p=0.95),
]


def engine_without_memory(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """As on a GPU: the kernels' operators, and a step that does not look what is left to write."""
    monkeypatch.setattr(dispatch, "choose", lambda device: "triton")
    model = tiny_model().to("meta")
    engine = Engine(model, Shape(rows=16, prompts=4, width=20, limit=14))
    with torch.no_grad():
        engine.take_weights(model)
    monkeypatch.setattr(engine, "graphs", object())
    return engine


@pytest.mark.parametrize("sampling", SAMPLINGS)
@torch.inference_mode()
def test_a_step_waits_for_nothing_and_stays_on_its_device(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_without_memory(monkeypatch)._forward(tiny_model().to("meta"), 16, 4, sampling)


def test_plain_torch_kernels_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(dispatch, "_triton_missing", lambda device: None)
    assert records(gpu) and not records(torch.device("cpu"))
    with dispatch.force("reference"):
        assert not records(gpu)


def test_a_record_is_made_once_and_again_where_weights_were_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    graphs = Graphs([])
    monkeypatch.setattr(graphs, "_record", lambda step: made.append("recorded") or SimpleNamespace(replay=lambda: made.append("replayed")))
    weights = [torch.zeros(2), torch.zeros(3)]
    for _ in range(2):
        graphs.check(weights)
        graphs.run("key", lambda: None)
        weights[0].add_(1)
    graphs.check([weights[0], torch.zeros(3)])
    graphs.run("key", lambda: None)
    assert made == ["recorded", "replayed", "replayed", "recorded", "replayed"]


@torch.inference_mode()
def test_a_step_that_asks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, step = engine_without_memory(monkeypatch), SharedCache.step

    def asks(cache: SharedCache, rows: int, prompts: int) -> object:
        int(cache.filled.max())
        return step(cache, rows, prompts)

    monkeypatch.setattr(SharedCache, "step", asks)
    with pytest.raises(RuntimeError, match="meta"):
        engine._forward(tiny_model().to("meta"), 16, 4, SAMPLINGS[0])
