from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from planted import with_bug

from paras2s_kernels import transformers_attention
from paras2s_kernels.transformers_attention import NAME, register_with_transformers

transformers = pytest.importorskip("transformers")

LENGTHS = (7, 1, 12, 4)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def _ours(model: torch.nn.Module) -> Iterator[None]:
    register_with_transformers()
    yield
    model.set_attn_implementation("sdpa")


def logits(model: torch.nn.Module, name: str, **inputs: object) -> torch.Tensor:
    model.set_attn_implementation(name)
    return model(**inputs).logits


def both(model: torch.nn.Module, **inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(model, NAME, **inputs), logits(model, "sdpa", **inputs)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


def packed_positions(first: int = 0) -> torch.Tensor:
    return torch.cat([torch.arange(first, first + n) for n in LENGTHS])[None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The cu_seqlens of every call of the kernel."""
    seen: list[list[int]] = []
    real = transformers_attention.varlen_attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(cu_seqlens.tolist())
        return real(q, k, v, cu_seqlens, *rest)

    monkeypatch.setattr(transformers_attention, "varlen_attention", counted)
    return seen


def test_rows_of_one_length(model: torch.nn.Module, calls: list[list[int]]) -> None:
    ours, sdpa = both(model, input_ids=ids(3, 9), use_cache=False)
    torch.testing.assert_close(ours, sdpa, rtol=1e-5, atol=1e-5)
    assert calls == [[0, 9, 18, 27]] * 2


def test_sequences_packed_by_their_positions(model: torch.nn.Module, calls: list[list[int]]) -> None:
    inputs = {"input_ids": ids(1, sum(LENGTHS)), "position_ids": packed_positions(), "use_cache": False}
    ours, sdpa = both(model, **inputs)
    torch.testing.assert_close(ours, sdpa, rtol=1e-5, atol=1e-5)
    assert calls == [[0, 7, 8, 20, 24]] * 2
    alone = logits(model, "sdpa", input_ids=inputs["input_ids"][:, 8:20], use_cache=False)
    torch.testing.assert_close(ours[:, 8:20], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_cache", (False, True))
def test_sequences_packed_by_cu_seq_lens(model: torch.nn.Module, calls: list[list[int]], use_cache: bool) -> None:
    cu = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    flash = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 12, "max_length_k": 12}
    inputs = {"input_ids": ids(1, sum(LENGTHS)), "position_ids": packed_positions()}
    ours = logits(model, NAME, **inputs, **flash, use_cache=use_cache)
    torch.testing.assert_close(ours, logits(model, "sdpa", **inputs, use_cache=False), rtol=1e-5, atol=1e-5)
    assert calls == [[0, 7, 8, 20, 24]] * 2


@pytest.mark.parametrize("side", ("left", "right", "none"))
def test_padded_rows(model: torch.nn.Module, calls: list[list[int]], side: str) -> None:
    mask = torch.ones(3, 9, dtype=torch.long)
    for row, padding in enumerate((0, 3, 8) if side != "none" else ()):
        mask[row, :padding] = 0
    mask = mask.flip(1) if side == "right" else mask
    ours, sdpa = both(model, input_ids=ids(3, 9), attention_mask=mask, use_cache=False)
    torch.testing.assert_close(ours[mask.bool()], sdpa[mask.bool()], rtol=1e-5, atol=1e-5)
    assert calls[0] == {"left": [0, 9, 12, 18, 26, 27], "right": [0, 9, 15, 18, 19, 27], "none": [0, 9, 18, 27]}[side]


def test_a_mask_of_ones_hides_packing_from_both(model: torch.nn.Module) -> None:
    inputs = {"input_ids": ids(1, sum(LENGTHS)), "position_ids": packed_positions(), "attention_mask": torch.ones(1, sum(LENGTHS))}
    ours, sdpa = both(model, **inputs, use_cache=False)
    torch.testing.assert_close(ours, sdpa, rtol=1e-5, atol=1e-5)


def test_holes_in_the_padding_go_to_sdpa(model: torch.nn.Module, calls: list[list[int]]) -> None:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 3:5] = 0
    ours, sdpa = both(model, input_ids=ids(2, 9), attention_mask=mask, use_cache=False)
    torch.testing.assert_close(ours[mask.bool()], sdpa[mask.bool()], rtol=1e-5, atol=1e-5)
    assert not calls


def test_a_mask_of_the_callers_own_goes_to_sdpa(model: torch.nn.Module, calls: list[list[int]]) -> None:
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril().logical_and(torch.ones(9, 9, dtype=torch.bool).triu(-2))
    ours, sdpa = both(model, input_ids=ids(1, 9), attention_mask=mask, use_cache=False)
    torch.testing.assert_close(ours, sdpa, rtol=1e-5, atol=1e-5)
    assert not calls


def test_generation_with_a_cache(model: torch.nn.Module, calls: list[list[int]]) -> None:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, :2] = 0
    texts = []
    for name in (NAME, "sdpa"):
        model.set_attn_implementation(name)
        texts.append(model.generate(ids(2, 5), attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0))
    assert torch.equal(*texts) and calls == [[0, 2, 5, 10]] * 2


def test_gradients(model: torch.nn.Module) -> None:
    grads = []
    for name in (NAME, "sdpa"):
        model.zero_grad()
        inputs = {"input_ids": ids(1, sum(LENGTHS)), "position_ids": packed_positions(), "use_cache": False}
        logits(model, name, **inputs).log_softmax(-1)[..., 3].sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, sdpa in zip(*grads, strict=True):
        torch.testing.assert_close(ours, sdpa, rtol=1e-4, atol=1e-5)


def test_a_shared_prefix_is_computed_once(model: torch.nn.Module) -> None:
    prefix, own = ids(1, 10, seed=1), ids(1, sum(LENGTHS), seed=2)
    with torch.no_grad():
        model.set_attn_implementation(NAME)
        cache = model(input_ids=prefix, use_cache=True).past_key_values
        inputs = {"input_ids": own, "position_ids": packed_positions(10), "use_cache": False}
        got = logits(model, NAME, **inputs, shared_prefix=cache)
        start = 0
        for length in LENGTHS:
            whole = logits(model, "sdpa", input_ids=torch.cat([prefix, own[:, start : start + length]], 1), use_cache=False)
            torch.testing.assert_close(got[:, start : start + length], whole[:, 10:], rtol=1e-5, atol=1e-5)
            start += length


def test_what_it_would_compute_wrongly(model: torch.nn.Module) -> None:
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    model.set_attn_implementation(NAME)
    with pytest.raises(ValueError, match=r"^cu_seq_lens_q: packed"):
        model(input_ids=ids(2, 9), cu_seq_lens_q=cu)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected to rise"):
        model(input_ids=ids(1, 10), cu_seq_lens_q=cu)
    cache = model(input_ids=ids(2, 3), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"^shared_prefix: expected a cache filled by a batch of one"):
        model(input_ids=ids(1, 9), shared_prefix=cache, use_cache=False)
    with pytest.raises(ValueError, match=r"^shared_prefix: needs a causal model"):
        model(input_ids=ids(2, 1), past_key_values=cache, shared_prefix=cache)
    attention = model.model.layers[0].self_attn
    heads = torch.randn(1, 4, 9, 8)
    for options in ({"dropout": 0.1}, {"softcap": 5.0}, {"sliding_window": 4, "cu_seq_lens_q": cu}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: {NAME}"):
            transformers_attention.attention_forward(attention, heads, heads, heads, None, **options)


def test_a_window_counts_the_prefix_and_the_longest_sequence(model: torch.nn.Module) -> None:
    model.set_attn_implementation(NAME)
    attention = model.model.layers[0].self_attn
    cache = model(input_ids=ids(1, 3), use_cache=True).past_key_values
    query, key = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    packed = {"cu_seq_lens_q": torch.tensor([0, 4, 9], dtype=torch.int32), "max_length_q": 5, "shared_prefix": cache}
    within, _ = transformers_attention.attention_forward(attention, query, key, key, None, sliding_window=8, **packed)
    torch.testing.assert_close(within, transformers_attention.attention_forward(attention, query, key, key, None, **packed)[0])
    with pytest.raises(ValueError, match=r"^sliding_window: .* 7 tokens in all"):
        transformers_attention.attention_forward(attention, query, key, key, None, sliding_window=7, **packed)


def test_attention_in_both_directions_goes_to_sdpa(model: torch.nn.Module, calls: list[list[int]]) -> None:
    heads = torch.randn(1, 4, 9, 8)
    out, _ = transformers_attention.attention_forward(torch.nn.Module(), heads, heads, heads, None, scaling=1.0, is_causal=False)
    want = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, scale=1.0).transpose(1, 2)
    torch.testing.assert_close(out, want)
    assert not calls


def _other_masks(module: object) -> None:
    for name, options in (("bidirectional_mask_function", ()), ("sliding_window_causal_mask_function", (4,))):
        function = getattr(transformers.masking_utils, name)
        function = function(*options) if options else function
        mask = module.sequence_mask(2, 9, 9, mask_function=function, allow_is_causal_skip=False)  # type: ignore[attr-defined]
        assert mask.shape == (2, 1, 9, 9), f"{name}: {mask}"


def test_other_masks_are_those_of_sdpa() -> None:
    _other_masks(transformers_attention)
    window = transformers.masking_utils.sliding_window_causal_mask_function(4)
    mask = transformers_attention.sequence_mask(1, 9, 9, mask_function=window, local_size=4)
    assert mask is not None and mask.shape == (1, 1, 9, 9)


BUGS = {
    "rows_run_together": ("starts[:, 1:] = ~sees", "starts[:, 0] = torch.arange(batch) == 0\n    starts[:, 1:] = ~sees"),
    "packing_not_seen": (
        "    first = torch.where(starts, place, 0)",
        "    starts[:, 1:] = False\n    return starts\n    first = torch.where(starts, place, 0)",
    ),
    "window_not_seen": (" | ~sees(place, first).all()", ""),
    "both_directions_not_seen": ("sees(place[:, :-1], place[:, 1:]).any() | ", ""),
    "padding_not_seen": ("starts[:, 1:] |= live[:, 1:] != live[:, :-1]", "pass"),
    "holes_not_seen": ("(begins.sum(1) > 1).any()", "(begins.sum(1) > 9).any()"),
    "heads_not_last": ("out.view(batch, length, heads, dim)", "out.view(batch, heads, length, dim).transpose(1, 2)"),
    "scale_forgotten": ("cu_seqlens, scaling, prefix_k", "cu_seqlens, 1.0, prefix_k"),
    "cu_seq_lens_ignored": ("if causal and cu_seq_lens_q is not None and", "if False and"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug: str, tmp_path: Path, model: torch.nn.Module) -> None:
    module = with_bug(Path(transformers_attention.__file__), tmp_path, bug, *BUGS[bug])
    module.register_with_transformers()
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        _suite(model, module)


def _suite(model: torch.nn.Module, module: object = transformers_attention) -> None:
    cu = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    packed = {"input_ids": ids(1, sum(LENGTHS)), "position_ids": packed_positions()}
    hole = torch.ones(3, 9, dtype=torch.long)
    hole[1, :3], hole[2, 4] = 0, 0
    left = torch.ones(2, 9, dtype=torch.long)
    left[1, :3] = 0
    cases = (
        ({"input_ids": ids(3, 9)}, None),
        (packed, None),
        ({"input_ids": ids(2, 9), "attention_mask": left}, left),
        ({"input_ids": ids(3, 9), "attention_mask": hole}, hole),
    )
    for inputs, live in cases:
        ours, sdpa = both(model, **inputs, use_cache=False)
        seen = slice(None) if live is None else live.bool()
        torch.testing.assert_close(ours[seen], sdpa[seen], rtol=1e-5, atol=1e-5)
    _other_masks(module)
    ours = logits(model, NAME, **packed, cu_seq_lens_q=cu)
    torch.testing.assert_close(ours, logits(model, "sdpa", **packed, use_cache=False), rtol=1e-5, atol=1e-5)


def test_the_planted_bugs_start_from_what_passes(model: torch.nn.Module) -> None:
    _suite(model)
