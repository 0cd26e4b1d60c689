"""Keys and values of positions already seen."""

from typing import Protocol

import torch
from torch import Tensor

from paras2s_cli.models.attention import attend


class KeyValues(Protocol):
    """One layer's keys and values of what came before."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Takes the keys and values of these positions in and lets their queries look at them and at all before.

        Args:
            q: [B, H, T, head_dim]. k, v: [B, kv_heads, T, head_dim]. mask: [B, 1, T, S] bool, S counting all that is seen.
        """
        ...


class Prefix:
    """One layer's keys and values of a prompt, with gradient: nothing is overwritten. What follows it is not kept."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Keeps the first that it gets; what comes later looks at that, then at itself."""
        if self.keys is None or self.values is None:
            self.keys, self.values = k, v
            return attend(q, k, v, mask)
        return attend(q, torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2), mask)

    def spread(self, group: int) -> "Prefix":
        """The same for `group` answers to each prompt, side by side."""
        assert self.keys is not None and self.values is not None
        return Prefix(self.keys.repeat_interleave(group, 0), self.values.repeat_interleave(group, 0))
