"""Keys and values of positions already seen."""

from typing import Protocol

import torch
from torch import Tensor


class KeyValues(Protocol):
    """What attention asks for the keys and values of positions before its own."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes [B, kv_heads, T, head_dim] in and returns them after all that came before."""
        ...


class Prefix:
    """One layer's keys and values of a prompt, with gradient: nothing is overwritten. What follows it is not kept."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the first that it gets; returns what comes later behind that."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def spread(self, group: int) -> "Prefix":
        """The same for `group` answers to each prompt, side by side."""
        assert self.keys is not None and self.values is not None
        return Prefix(self.keys.repeat_interleave(group, 0), self.values.repeat_interleave(group, 0))


class LayerCache:
    """One layer's keys and values, [B, kv_heads, capacity, head_dim], filled from the left."""

    def __init__(self, rows: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.empty(rows, heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores [B, kv_heads, T, head_dim] and returns all that is stored so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def spread(self, group: int, capacity: int) -> "LayerCache":
        """A cache in which every row stands `group` times, with room for `capacity` positions."""
        rows, heads, _, head_dim = self.keys.shape
        wide = LayerCache(rows * group, heads, capacity, head_dim, self.keys.dtype, self.keys.device)
        wide.append(
            self.keys[:, :, : self.length].repeat_interleave(group, dim=0),
            self.values[:, :, : self.length].repeat_interleave(group, dim=0),
        )
        return wide
