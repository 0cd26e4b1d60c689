"""The speech LM against its naive twin, and what batches must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_lm import NaiveLM, legal
from tiny_lm import CODES, double, random_frames, tiny_model

from paras2s_cli.models.attention import attend
from paras2s_cli.models.cache import Prefix
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal


def answered(model: SpeechLM, lengths: list[int], steps: int = 7, seed: int = 3) -> Streams:
    """Spoken queries with random words and codes after them, so that no stream is blank throughout."""
    prompts = spoken_queries(random_frames(lengths), model.config, model.specials)
    generator = torch.Generator().manual_seed(seed)
    rows, offset = len(lengths), model.config.kimia_token_offset
    audio = torch.randint(offset, offset + CODES, (rows, steps), generator=generator)
    text = torch.randint(0, 25, (rows, steps), generator=generator)
    yes = torch.ones(rows, steps, dtype=torch.bool)
    return Streams(
        torch.cat([prompts.audio, audio], 1),
        torch.cat([prompts.text, text], 1),
        torch.cat([prompts.valid, yes], 1),
        torch.cat([prompts.continuous, ~yes], 1),
        prompts.features,
    )


def logits(model: SpeechLM, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
    text, audio = model.hidden(model.embed(streams), *causal(streams.valid))
    return model.text_logits(text), model.audio_logits(audio)


@torch.no_grad()
def test_logits_are_those_of_the_naive_model_padded_or_not() -> None:
    model = tiny_model().double()
    naive = NaiveLM.of(model)
    streams = double(answered(model, [22, 9, 40, 4]))
    text, audio = logits(model, streams)
    for i in range(4):
        wanted_text, wanted_audio = legal(model, *naive.row(streams, i))
        keep = streams.valid[i]
        np.testing.assert_allclose(text[i, keep].numpy(), wanted_text, atol=1e-5, rtol=0)  # the rotary tables are fp32
        np.testing.assert_allclose(audio[i, keep].numpy(), wanted_audio, atol=1e-5, rtol=0)
        assert np.abs(wanted_text).max() > 0.5 and np.abs(wanted_audio).max() > 0.5


@pytest.mark.parametrize("branch", [1, 2])
@torch.no_grad()
def test_the_last_position_alone_is_that_of_all(branch: int) -> None:
    model = tiny_model(branch=branch)
    streams = answered(model, [22, 9, 40])
    given = model.embed(streams), *causal(streams.valid)
    caches = [[Prefix() for _ in model.blocks()] for _ in range(2)]
    alone, whole = model.hidden(*given, caches[0], last=True), model.hidden(*given, caches[1])
    for some, everything in zip(alone, whole, strict=True):
        torch.testing.assert_close(some, everything[:, -1:])
    for some_seen, seen in zip(*caches, strict=True):
        assert some_seen.keys is not None and seen.keys is not None
        torch.testing.assert_close(some_seen.keys, seen.keys)


@torch.no_grad()
def test_a_row_alone_and_in_a_padded_batch() -> None:
    model = tiny_model()
    lengths = [22, 9, 41, 4]
    text, audio = logits(model, answered(model, lengths))
    whole = answered(model, lengths)
    for i, length in enumerate(lengths):
        one = answered(model, [length])
        one.audio[:, -7:], one.text[:, -7:] = whole.audio[i : i + 1, -7:], whole.text[i : i + 1, -7:]
        alone = logits(model, one)
        width = one.audio.shape[1]
        torch.testing.assert_close(alone[0][0], text[i, -width:], atol=2e-5, rtol=0)
        torch.testing.assert_close(alone[1][0], audio[i, -width:], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_attention_on_the_cpu_is_torchs(heads: int, kv: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(heads)
    q, k, v = (torch.randn(3, h, t, 8, generator=generator).to(dtype).requires_grad_() for h, t in ((heads, 5), (kv, 9), (kv, 9)))
    mask = torch.rand(3, 1, 5, 9, generator=generator) < 0.6
    mask[..., 0] = True
    given = torch.randn(3, heads, 5, 8, generator=generator).to(dtype)
    ours = attend(q, k, v, mask)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    if dtype is not torch.bfloat16:
        for a, b in zip(torch.autograd.grad(ours, (q, k, v), given), torch.autograd.grad(theirs, (q, k, v), given), strict=True):
            torch.testing.assert_close(a, b, atol=10 * tolerance, rtol=10 * tolerance)


def test_attention_elsewhere_is_torchs_of_as_many_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask its fused kernels take no grouped heads. A tensor that claims to be elsewhere stands in for the GPU's."""
    elsewhere = type("Elsewhere", (torch.Tensor,), {"device": torch.device("meta")})
    asked = []
    fused = F.scaled_dot_product_attention

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        asked.append((k.shape[1], v.shape[1], options.get("enable_gqa", False)))
        return fused(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k, v = (torch.randn(2, heads, 5, 8) for heads in (6, 2, 2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None].expand(2, 1, 5, 5)
    found = attend(q.as_subclass(elsewhere), k, v, mask)
    assert asked == [(6, 6, False)]
    torch.testing.assert_close(found.as_subclass(torch.Tensor), attend(q, k, v, mask))


def test_the_names_of_the_published_checkpoint() -> None:
    config = SpeechLMConfig(
        vocab_size=84,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        kimia_token_offset=64,
        kimia_mimo_layers=2,
        kimia_mimo_transformer_from_layer_index=1,
        kimia_mimo_audiodelaytokens=6,
        kimia_adaptor_input_dim=20,
    )
    wanted = {"model.embed_tokens.weight": (84, 16), "lm_head.weight": (84, 16), "mimo_output.weight": (84, 16)}
    wanted |= {"model.norm.weight": (16,), "model.mimo_norm.weight": (16,)}
    for layer in ("layers.0", "layers.1", "layers.2", "mimo_layers.0", "mimo_layers.1"):
        for part, shape in {
            "self_attn.q_proj.weight": (16, 16),
            "self_attn.q_proj.bias": (16,),
            "self_attn.k_proj.weight": (8, 16),
            "self_attn.k_proj.bias": (8,),
            "self_attn.v_proj.weight": (8, 16),
            "self_attn.v_proj.bias": (8,),
            "self_attn.o_proj.weight": (16, 16),
            "mlp.gate_proj.weight": (24, 16),
            "mlp.up_proj.weight": (24, 16),
            "mlp.down_proj.weight": (16, 24),
            "input_layernorm.weight": (16,),
            "post_attention_layernorm.weight": (16,),
        }.items():
            wanted[f"model.{layer}.{part}"] = shape
    for i, shape in ((0, (16, 20)), (3, (16, 16))):
        wanted |= {f"model.vq_adaptor.layers.{i}.weight": shape, f"model.vq_adaptor.layers.{i}.bias": (16,)}
    wanted |= {"model.vq_adaptor.layers.4.weight": (16,), "model.vq_adaptor.layers.4.bias": (16,)}
    found = SpeechLM(config, tiny_model().specials).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted


def test_audio_columns_and_their_ids_undo_each_other() -> None:
    model = tiny_model()
    columns = torch.arange(CODES + 2)
    assert torch.equal(model.audio_column(model.audio_ids), columns)
    assert model.audio_ids.tolist() == [*range(64, 64 + CODES), model.specials.media_end, model.specials.msg_end]


def test_padding_sees_itself_only_and_rows_start_at_position_0() -> None:
    positions, mask = causal(torch.tensor([[False, False, True, True], [True, True, True, False]]))
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    a, b, c = tiny_model(1).state_dict(), tiny_model(1).state_dict(), tiny_model(2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)
