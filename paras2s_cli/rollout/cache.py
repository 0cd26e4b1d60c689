"""Keys and values of a rollout: each prompt's stand there once for all its answers, each answer's own behind them."""

import torch
from torch import Tensor

from paras2s_cli.models.cache import Prefix
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_kernels import dispatch, shared_prefix_attention
from paras2s_kernels.reference import shared_prefix_attention as reference


class SharedCache:
    """All layers' keys and values, in memory that does not move.

    prefix: [layers, 2, P, kv_heads, S, head_dim], prompts end at S. suffix: [layers, 2, rows, kv_heads, limit, head_dim].
    lengths [P] int64 of prompts; width: what of S they use; prompt_of and filled [rows] int64: a row's prompt, and how many of its
    positions are stored.
    """

    def __init__(
        self, config: SpeechLMConfig, prompts: int, width: int, rows: int, limit: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = config.num_hidden_layers + config.kimia_mimo_layers
        heads, dim = config.num_key_value_heads, config.head_dim
        # zeros: what is not seen has weight 0, and must be a number for that
        self.prefix = torch.zeros(self.layers, 2, prompts, heads, width, dim, dtype=dtype, device=device)
        self.suffix = torch.zeros(self.layers, 2, rows, heads, limit, dim, dtype=dtype, device=device)
        self.width = width
        self.lengths = torch.full((prompts,), width, device=device)
        self.prompt_of = torch.zeros(rows, dtype=torch.int64, device=device)
        self.filled = torch.zeros(rows, dtype=torch.int64, device=device)

    def store_prompts(self, slots: Tensor, layers: list[Prefix], lengths: Tensor) -> None:
        """Keeps prefilled prompts in `slots` [N] int64; their own length is at most S."""
        for i, layer in enumerate(layers):
            assert layer.keys is not None and layer.values is not None
            start = self.prefix.shape[4] - layer.keys.shape[2]
            self.prefix[i, 0, slots, :, start:] = layer.keys.to(self.prefix.dtype)
            self.prefix[i, 1, slots, :, start:] = layer.values.to(self.prefix.dtype)
        self.lengths[slots] = lengths

    def keep(self, rows: Tensor) -> None:
        """Moves the rows of these numbers [N] int64, ascending, to the front, with the positions that any of them has."""
        count = len(rows)
        # rows before the first that goes stay where they are
        still = int((rows == torch.arange(count, device=rows.device)).int().cumprod(0).sum())
        used = int(self.filled[rows].max())
        for layer in self.suffix:
            layer[:, still:count, :, :used] = layer[:, rows[still:], :, :used]
        for table in (self.prompt_of, self.filled):
            table[:count] = table[rows]

    def step(self, rows: int, prompts: int) -> "list[SharedLayer]":
        """The layers' view of the first `rows` rows, which have one position more from now on, and of the first `prompts` prompts."""
        room = self.suffix.shape[4]
        places = self.filled[:rows].clamp(max=room - 1)  # a row that has ended is no row soon; until then it writes over its end
        self.filled[:rows] = places + 1
        if dispatch.choose(self.suffix.device) == "triton":
            return [SharedLayer(self, i, rows, prompts, places, None) for i in range(self.layers)]
        lengths, filled = self.lengths[:prompts], self.filled[:rows]
        planned = reference.plan(lengths, self.width - lengths, self.width, filled, room, self.prompt_of[:rows], finite=True)
        first, last = (int(x) for x in places.aminmax())
        at = first if first == last else places
        return [SharedLayer(self, i, rows, prompts, at, planned) for i in range(self.layers)]


class SharedLayer:
    """One layer of a `SharedCache` in a step of one position a row."""

    def __init__(self, cache: SharedCache, layer: int, rows: int, prompts: int, at: int | Tensor, planned: reference.Plan | None) -> None:
        self.cache, self.at, self.planned = cache, at, planned
        self.prefix = cache.prefix[layer, :, :prompts, :, cache.prefix.shape[4] - cache.width :]
        self.suffix = cache.suffix[layer, :, :rows]
        self.rows, self.prompts = rows, prompts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Stores k, v [rows, kv_heads, 1, head_dim] and lets q [rows, H, 1, head_dim] look at its prompt and its row."""
        (prefix_k, prefix_v), (suffix_k, suffix_v) = self.prefix, self.suffix
        if isinstance(self.at, int):
            suffix_k[:, :, self.at], suffix_v[:, :, self.at] = k[:, :, 0], v[:, :, 0]
        else:
            row = torch.arange(self.rows, device=q.device)
            suffix_k[row, :, self.at], suffix_v[row, :, self.at] = k[:, :, 0].to(suffix_k.dtype), v[:, :, 0].to(suffix_v.dtype)
        scale, dtype = q.shape[-1] ** -0.5, q.dtype
        q = q[:, :, 0].to(suffix_k.dtype)
        if self.planned is not None:
            out = reference.attend(q, prefix_k, prefix_v, suffix_k, suffix_v, scale, self.planned)
        else:
            lengths, filled, prompt_of = self.cache.lengths[: self.prompts], self.cache.filled[: self.rows], self.cache.prompt_of
            starts = self.cache.width - lengths
            out = shared_prefix_attention(q, prefix_k, prefix_v, lengths, suffix_k, suffix_v, filled, prompt_of[: self.rows], scale, starts)
        return out[:, :, None].to(dtype)
