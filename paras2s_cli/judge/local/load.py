"""A causal language model and its tokenizer, from a folder or by its name on the hub. No code and no pickle of theirs is run."""

from __future__ import annotations

from typing import Any

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.pretrained import device_of, dtype_of, read_pretrained
from paras2s_cli.recipe.judging import LocalLM


def load_lm(settings: LocalLM) -> tuple[Any, Any]:
    """The model, in eval mode on its device with the packed attention of `paras2s_kernels`, and its tokenizer.

    What the hub's cache has is not asked for again. Raises UsageError for a model that is not there, cannot be read or lacks weights,
    and for a device that is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from paras2s_kernels.transformers_attention import register_with_transformers

    logging.disable_progress_bar()
    device = device_of(settings, "score")
    tokenizer = read_pretrained(settings, "score", AutoTokenizer.from_pretrained)
    model, found = read_pretrained(
        settings,
        "score",
        AutoModelForCausalLM.from_pretrained,
        dtype=dtype_of(settings, device),
        attn_implementation=register_with_transformers(),
        use_safetensors=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise UsageError(f"{settings.model} holds no {min(found['missing_keys'])}; name a whole causal language model in score.model")
    return model.to(device).eval(), tokenizer
