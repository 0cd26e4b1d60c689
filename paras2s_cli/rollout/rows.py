"""The rows in flight: what each has been told and what it has said so far, in memory that does not move."""

import torch
from torch import Tensor

from paras2s_cli.rollout.sampling import AUDIO, TEXT, uniforms
from paras2s_kernels import dispatch

FORCED = 1.0
"""What stands for the log-probability of a token that was not drawn; those of others are at most 0."""


class Rows:
    """Tables of `capacity` rows, one answer each; those of the first rows are in use.

    answer, key, start, step [R] int64: which answer a row is, its random key, its prompt's length, the position it draws next.
    audio, text [R] int64: the ids it drew last. writing, speaking, alive [R] bool: its text, its speech, the whole goes on.
    ids [R, 2, limit + 1] int64 and logprobs [R, 2, limit + 1] fp32, `FORCED` of what was not drawn: text and audio so far; the last
    column is for rows that have reached the limit. uniform [R, limit + 1, 2] float64: the numbers that all of it is drawn by, where plain
    torch draws.
    """

    def __init__(self, capacity: int, limit: int, device: torch.device) -> None:
        def table(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(capacity, *shape, dtype=dtype, device=device)

        self.answer, self.key, self.start, self.step, self.audio, self.text = (table() for _ in range(6))
        self.writing, self.speaking, self.alive = (table(dtype=torch.bool) for _ in range(3))
        self.ids = table(2, limit + 1)
        self.logprobs = table(2, limit + 1, dtype=torch.float32)
        self.uniform = table(0 if dispatch.choose(device) == "triton" else limit + 1, 2, dtype=torch.float64)

    def tables(self) -> list[Tensor]:
        """All of them."""
        return list(vars(self).values())

    def open(self, part: slice, answer: Tensor, key: Tensor, start: Tensor, blank: int) -> None:
        """New answers in the rows of `part`."""
        self.answer[part], self.key[part], self.start[part] = answer, key, start
        self.step[part] = 0
        self.ids[part], self.logprobs[part] = blank, FORCED
        for stream in (TEXT, AUDIO):  # all steps at once: a step's own would be two dozen small operations
            steps = torch.arange(self.uniform.shape[1], device=key.device)
            self.uniform[part, :, stream] = uniforms(key[:, None], steps, stream)
        for table in (self.writing, self.speaking, self.alive):
            table[part] = True

    def numbers(self, part: slice) -> tuple[Tensor | None, Tensor | None]:
        """What the rows of `part` draw their next position by, [N] float64 for each stream; None where keys are enough."""
        if not self.uniform.shape[1]:
            return None, None
        text, audio = self.uniform[part].gather(1, self.step[part, None, None].expand(-1, 1, 2)).unbind(2)
        return text[:, 0], audio[:, 0]

    def say(self, part: slice, text: Tensor, audio: Tensor, text_logprobs: Tensor, audio_logprobs: Tensor) -> None:
        """Writes down what the rows of `part` drew on both streams, [N] each; behind the end of an answer that is a forced blank."""
        self.text[part], self.audio[part] = text, audio
        column = self.step[part, None, None].expand(-1, 2, 1)
        self.ids[part].scatter_(2, column, torch.stack([text, audio], 1)[..., None])
        self.logprobs[part].scatter_(2, column, torch.stack([text_logprobs, audio_logprobs], 1)[..., None])

    def keep(self, rows: Tensor) -> None:
        """Moves the rows of these numbers [N] int64 to the front."""
        for table in self.tables():
            table[: len(rows)] = table[rows]
