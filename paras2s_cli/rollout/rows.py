"""The rows in flight: what each has been told and what it has said so far, in memory that does not move."""

import torch
from torch import Tensor


class Rows:
    """Tables of `capacity` rows, one answer each; those of the first rows are in use.

    answer, key, start, step [R] int64: which answer a row is, its random key, its prompt's length, the position it draws next.
    audio, text [R] int64: the ids it drew last. writing, speaking, alive [R] bool: its text, its speech, the whole goes on.
    ids [R, 2, limit + 1] int64, free [R, 2, limit + 1] bool, logprobs [R, 2, limit + 1] fp32: text and audio so far; the last
    column is for rows that have reached the limit.
    """

    def __init__(self, capacity: int, limit: int, device: torch.device) -> None:
        def table(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(capacity, *shape, dtype=dtype, device=device)

        self.answer, self.key, self.start, self.step, self.audio, self.text = (table() for _ in range(6))
        self.writing, self.speaking, self.alive = (table(dtype=torch.bool) for _ in range(3))
        self.ids = table(2, limit + 1)
        self.free = table(2, limit + 1, dtype=torch.bool)
        self.logprobs = table(2, limit + 1, dtype=torch.float32)

    def tables(self) -> list[Tensor]:
        """All of them."""
        return list(vars(self).values())

    def open(self, part: slice, answer: Tensor, key: Tensor, start: Tensor, blank: int) -> None:
        """New answers in the rows of `part`."""
        self.answer[part], self.key[part], self.start[part] = answer, key, start
        self.step[part] = 0
        self.ids[part], self.free[part], self.logprobs[part] = blank, False, 0.0
        for table in (self.writing, self.speaking, self.alive):
            table[part] = True

    def say(self, part: slice, stream: int, ids: Tensor, free: Tensor, logprobs: Tensor) -> None:
        """Writes down what the rows of `part` drew on a stream, [N] each; behind the end of an answer that is a blank which is not free."""
        column = self.step[part, None]
        self.ids[part, stream].scatter_(1, column, ids[:, None])
        self.free[part, stream].scatter_(1, column, free[:, None])
        self.logprobs[part, stream].scatter_(1, column, (logprobs * free)[:, None])

    def keep(self, rows: Tensor) -> None:
        """Moves the rows of these numbers [N] int64 to the front."""
        for table in self.tables():
            table[: len(rows)] = table[rows]
