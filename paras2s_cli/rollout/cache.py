"""Keys and values of a rollout: each prompt's stand there once for all its answers, each answer's own behind them."""

from collections.abc import Sequence

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
    positions are stored. seen [rows, S + limit]: what a row's scores of its prompt and of itself are raised by, 0 where there is
    something and -inf elsewhere.
    """

    def __init__(
        self, config: SpeechLMConfig, prompts: int, width: int, rows: int, limit: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = config.num_hidden_layers + config.kimia_mimo_layers
        heads, dim = config.num_key_value_heads, config.head_dim
        # zeros: what is not seen has weight 0, and must be a number for that
        self.prefix = torch.zeros(self.layers, 2, prompts, heads, width, dim, dtype=dtype, device=device)
        self.suffix = torch.zeros(self.layers, 2, rows, heads, limit, dim, dtype=dtype, device=device)
        self.width, self.group = width, 0
        self.lengths = torch.full((prompts,), width, device=device)
        self.prompt_of = torch.zeros(rows, dtype=torch.int64, device=device)
        self.filled = torch.zeros(rows, dtype=torch.int64, device=device)
        self.seen = torch.zeros(rows, width + limit, dtype=dtype, device=device)
        self._every_row = torch.arange(rows, device=device)
        self._views: tuple[int, int, list[SharedLayer]] | None = None
        self._grouping: tuple[int, Tensor | None] | None = None
        self._padded = True

    def clear(self, width: int, group: int = 0) -> None:
        """Forgets all rows; prompts of at most `width` positions are stored from now on, with `group` rows each, 0 if that is not known."""
        self.filled.zero_()
        self.width, self.group, self._views, self._grouping = width, group, None, None

    def store_prompts(self, slots: Tensor, layers: list[Prefix], lengths: Tensor, order: Tensor | None = None) -> None:
        """Keeps prefilled prompts in `slots` [N] int64; their own length is at most S. order: that of a key's numbers from now on,
        [head_dim] int64, if it is another."""
        for i, layer in enumerate(layers):
            assert layer.keys is not None and layer.values is not None
            start = self.prefix.shape[4] - layer.keys.shape[2]
            keys = layer.keys if order is None else layer.keys[..., order]
            self.prefix[i, 0, slots, :, start:] = keys.to(self.prefix.dtype)
            self.prefix[i, 1, slots, :, start:] = layer.values.to(self.prefix.dtype)
        self.lengths[slots] = lengths

    def open(self, part: slice, slots: Tensor) -> None:
        """New rows, which have no position of their own yet, to the prompts in `slots` [N] int64."""
        self.prompt_of[part], self.filled[part] = slots, 0
        capacity = self.prefix.shape[4]
        place = torch.arange(self.seen.shape[1], device=slots.device)
        there = (place >= capacity - self.lengths[slots, None]) & (place < capacity)
        self.seen[part] = torch.where(there, 0.0, -torch.inf).to(self.seen.dtype)
        self._grouping = None

    def keep(self, rows: Tensor) -> None:
        """Moves the rows of these numbers [N] int64, ascending, to the front, with the positions that any of them has."""
        count = len(rows)
        # rows before the first that goes stay where they are
        still = int((rows == torch.arange(count, device=rows.device)).int().cumprod(0).sum())
        used = int(self.filled[rows].max())
        for layer in self.suffix:
            layer[:, still:count, :, :used] = layer[:, rows[still:], :, :used]
        for table in (self.prompt_of, self.filled, self.seen):
            table[:count] = table[rows]

    def step(self, rows: int, prompts: int) -> "list[SharedLayer]":
        """The layers' view of the first `rows` rows, which have one position more from now on, and of the first `prompts` prompts."""
        room = self.suffix.shape[4]
        places = self.filled[:rows].clamp(max=room - 1)  # a row that has ended is no row soon; until then it writes over its end
        self.filled[:rows] = places + 1
        if self._views is None or self._views[:2] != (rows, prompts):
            self._views, self._grouping = (rows, prompts, [SharedLayer(self, i, rows, prompts) for i in range(self.layers)]), None
        layers = self._views[2]
        if dispatch.choose(self.suffix.device) == "triton":
            for layer in layers:
                layer.at, layer.planned, layer.here = places, None, (None, None)
            return layers
        first, last = (int(x) for x in places.aminmax())
        planned = self._plan(rows, prompts, first if first == last else places, last + 1)
        # all layers' views at once: one by one they would be a tenth of a small model's step
        own = self.suffix[:, :, :rows, :, : last + 1].flatten(2, 3).flatten(0, 1).unbind()
        here = self.suffix[:, :, :rows, :, first].flatten(0, 1).unbind() if first == last else [None] * len(own)
        for i, layer in enumerate(layers):
            layer.at, layer.planned, layer.own, layer.here = places, planned, own[2 * i : 2 * i + 2], here[2 * i : 2 * i + 2]
        return layers

    def _plan(self, rows: int, prompts: int, at: int | Tensor, longest: int) -> reference.Plan:
        capacity = self.prefix.shape[4]
        if self._grouping is None:
            self._grouping = reference.grouping(self.prompt_of[:rows], prompts)
            self._padded = bool((self.lengths[self.prompt_of[:rows]] < self.width).any())
        if isinstance(at, int):
            self.seen[:rows, capacity + at] = 0
            if not self._padded:
                return reference.Plan(prompts, *self._grouping)
        else:
            self.seen[self._every_row[:rows], capacity + at] = 0
        seen = self.seen[:rows, capacity - self.width : capacity + longest]
        return reference.Plan(prompts, *self._grouping, reference.spread(seen, prompts, *self._grouping)[:, :, None, None])


class SharedLayer:
    """One layer of a `SharedCache` in a step of one position a row. at [rows] int64: where each row's keys and values go.

    Of keys and of values: here [rows, kv_heads, head_dim], the place that they go to, where it is known to be one for all; for the
    reference alone, own [rows * kv_heads, L, head_dim], L positions as the row with the most has then.
    """

    at: Tensor
    planned: reference.Plan | None
    own: Sequence[Tensor]
    here: Sequence[Tensor | None]

    def __init__(self, cache: SharedCache, layer: int, rows: int, prompts: int) -> None:
        prefix = cache.prefix[layer, :, :prompts, :, cache.prefix.shape[4] - cache.width :]
        (self.prefix_k, self.prefix_v), (self.suffix_k, self.suffix_v) = prefix, cache.suffix[layer, :, :rows]
        self.prefixes = prefix.flatten(1, 2).unbind()
        self.row, self.filled, self.prompt_of = cache._every_row[:rows], cache.filled[:rows], cache.prompt_of[:rows]
        self.lengths, self.width, self.group = cache.lengths[:prompts], cache.width, cache.group

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stores k, v [rows, kv_heads, head_dim] and lets q [rows, H, head_dim] look at its prompt and its row."""
        suffix_k, suffix_v = self.suffix_k, self.suffix_v
        dtype, stored, scale = q.dtype, suffix_k.dtype, q.shape[-1] ** -0.5
        here_k, here_v = self.here
        if here_k is None or here_v is None:
            suffix_k[self.row, :, self.at], suffix_v[self.row, :, self.at] = k.to(stored), v.to(stored)
        else:
            here_k.copy_(k)
            here_v.copy_(v)
        if self.planned is not None:
            q = (q.to(stored) * scale).contiguous()
            return reference.attend(q, self.prefixes[0], self.prefixes[1], self.own[0], self.own[1], self.planned).to(dtype)
        starts = self.width - self.lengths
        prefix, suffix = (self.prefix_k, self.prefix_v, self.lengths), (suffix_k, suffix_v, self.filled)
        out = shared_prefix_attention(q.to(stored), *prefix, *suffix, self.prompt_of, scale, starts, self.group)
        return out.to(dtype)
