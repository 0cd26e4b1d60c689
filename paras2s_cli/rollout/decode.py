"""One position of every row through the layers, in as few operations as it takes: of a small model their number is much of the cost."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.rollout.cache import SharedLayer
from paras2s_cli.rollout.products import BlockProducts, Products


def decode(
    config: SpeechLMConfig, products: Products, x: Tensor, turns: Any, layers: Sequence[SharedLayer], writing: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Logits of what `SpeechLM.hidden` computes, of one position a row.

    Args:
        x: [N, D] embeddings. turns: `Products.turns` of their positions. layers: what they look at and where they are stored, one a
            block.
        writing: False skips the text branch.

    Returns:
        text [N, V], None if it is skipped; audio [N, codes + 2].
    """
    blocks = list(zip(products.blocks, layers, strict=True))
    fork, depth = config.shared_layers, config.num_hidden_layers
    for block in blocks[:fork]:
        x = _through(*block, x, turns)
    text = audio = x
    for block in blocks[fork:depth] if writing else ():
        text = _through(*block, text, turns)
    for block in blocks[depth:]:
        audio = _through(*block, audio, turns)
    return products.text_logits(text) if writing else None, products.audio_logits(audio)


def _through(block: BlockProducts, layer: SharedLayer, x: Tensor, turns: Any) -> Tensor:
    return block.fed(block.attended(layer.attend(*block.heads(x, turns)), x))
