"""The decode engine: prompts wait in a queue, each is prefilled once for its group, and every step feeds one position of both streams of
all rows in flight. Rows that have ended make room for the next prompts."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from paras2s_cli.errors import UsageError
from paras2s_cli.models.cache import Prefix
from paras2s_cli.models.prompt import Answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.cache import SharedCache
from paras2s_cli.rollout.decode import decode
from paras2s_cli.rollout.graphs import Graphs, bucket
from paras2s_cli.rollout.products import Products, products, reusable
from paras2s_cli.rollout.rows import FORCED, Rows
from paras2s_cli.rollout.sampling import AUDIO, TEXT, Sampling, draw, row_keys
from paras2s_kernels import dispatch

BATCH = 256
"""Rows in flight at most, unless a group is larger."""


@dataclass
class Rollouts:
    """Sampled answers: rows of one prompt stand side by side. Log-probabilities are [B, L] fp32, 0 where a token was forced.

    ended: [B] bool, False where the answer was cut off at the limit.

    UsageError for log-probabilities that are no numbers.
    """

    answers: Answers
    text_logprobs: Tensor
    audio_logprobs: Tensor
    ended: Tensor

    def __post_init__(self) -> None:
        if not all(bool(logprobs.isfinite().all()) for logprobs in (self.text_logprobs, self.audio_logprobs)):
            raise UsageError(
                "the model's logits are not finite: it has diverged; go on from an earlier checkpoint, at a lower learning rate"
            )


@torch.inference_mode(False)  # memory that is kept must serve outside of a caller's inference mode too
@torch.no_grad()
def rollout(
    model: SpeechLM,
    prompts: Streams,
    *,
    group: int,
    sampling: Sampling,
    seed: int,
    row_ids: Tensor,
    limit: int,
    batch: int = BATCH,
) -> Rollouts:
    """Samples `group` answers to each of P prompts. Memory and graphs stay with the model for the next call.

    Args:
        row_ids: [P * group] int64, the identity of each answer: the draw depends on (seed, row id, step, stream) only.
        limit: positions an answer may have at most.
        batch: rows in flight at most; a whole group is.

    Raises:
        UsageError: the model's logits are no numbers.
    """
    count, width = prompts.audio.shape
    groups = min(max(1, batch // group), count)
    wanted = Shape(rows=groups * group, prompts=min(2 * groups, count), width=width, limit=limit)
    engine = _engines.get(model)
    if engine is None or not engine.fits(model, wanted):
        wanted = wanted if engine is None else wanted.union(engine.shape)
        _engines.pop(model, None)
        engine = None  # its memory is free before the next takes more
        engine = _engines[model] = Engine(model, wanted)
    return engine.run(model, prompts, group, sampling, seed, row_ids.to(prompts.audio.device), limit, groups * group)


@dataclass(frozen=True)
class Shape:
    """What an engine has room for: rows in flight, their prompts, positions of a prompt and of an answer."""

    rows: int
    prompts: int
    width: int
    limit: int

    def union(self, other: "Shape") -> "Shape":
        return Shape(*(max(a, b) for a, b in zip(self.sizes(), other.sizes(), strict=True)))

    def sizes(self) -> tuple[int, int, int, int]:
        return self.rows, self.prompts, self.width, self.limit


def records(device: torch.device) -> bool:
    """Whether steps are recorded: on a GPU, but for the plain-torch kernels, which wait for it."""
    return device.type == "cuda" and dispatch.choose(device) == "triton"


class Engine:
    """Memory for a model's rollouts, and its weights as `products` has them: not the model itself, which may go."""

    def __init__(self, model: SpeechLM, shape: Shape) -> None:
        weight = model.lm_head.weight
        self.shape, self.device = shape, weight.device
        self.cache = SharedCache(model.config, shape.prompts, shape.width, shape.rows, shape.limit, weight.dtype, weight.device)
        self.rows = Rows(shape.rows, shape.limit, weight.device)
        self.limit = torch.tensor(shape.limit, device=weight.device)
        self.kind = _kind(model)
        self.products: Products | None = None
        self.graphs = Graphs([*self.rows.tables(), self.cache.filled]) if records(self.device) else None

    def fits(self, model: SpeechLM, wanted: Shape) -> bool:
        """Whether there is room, of the model's kind."""
        return _kind(model) == self.kind and wanted.union(self.shape) == self.shape

    def take_weights(self, model: SpeechLM) -> None:
        """Those that the model has now; what it had is forgotten."""
        known, self.products = reusable(self.products), None
        # one place more: a row that has reached the limit rides along until its place is needed
        self.products = products(model, self.shape.rows, self.shape.width + self.shape.limit + 1, known)

    def run(
        self, model: SpeechLM, prompts: Streams, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int, batch: int
    ) -> Rollouts:
        """`rollout`, in this engine's memory."""
        self.take_weights(model)
        self.limit.fill_(limit)
        self.rows.alive.zero_()
        if self.graphs:
            self.graphs.check(model.parameters())
        self.cache.clear(self.shape.width if self.graphs else prompts.audio.shape[1], group)
        keys, results = row_keys(seed, row_ids), _Results(len(row_ids), limit, model.specials.blank, self.device)
        waiting, count = 0, 0  # the next prompt; rows in flight
        while True:
            alive = self.rows.alive[:count]
            living = int(alive.sum())
            if living < count and 4 * (count - living) >= count:  # moving rows costs about as much as a step
                results.take(self.rows, (~alive).nonzero()[:, 0])
                self._keep(alive.nonzero()[:, 0], count)
                count = living
            room = min((batch - count) // group, len(prompts.audio) - waiting)
            if room and len(slots := self._free_slots(count)[:room]):
                some = torch.arange(waiting, waiting + len(slots), device=self.device)
                self._admit(model, prompts.select(some), slots, group, count, some, keys, sampling)
                waiting, count = waiting + len(slots), count + len(slots) * group
                continue
            if not count:
                return results.rollouts()
            self._step(model, count, sampling)

    def _free_slots(self, count: int) -> Tensor:
        """Prompts' places that no row in flight looks at."""
        used = torch.zeros(self.shape.prompts, dtype=torch.bool, device=self.device)
        used[self.cache.prompt_of[:count]] = True
        return (~used).nonzero()[:, 0]

    def _keep(self, rows: Tensor, count: int) -> None:
        if len(rows):
            self.cache.keep(rows)
            self.rows.keep(rows)
        self.rows.alive[len(rows) : count] = False

    @torch.inference_mode()
    def _admit(
        self, model: SpeechLM, prompts: Streams, slots: Tensor, group: int, first: int, numbers: Tensor, keys: Tensor, sampling: Sampling
    ) -> None:
        """Prefills prompts and draws the first position of their rows, which stand from row `first` on."""
        positions, mask = causal(prompts.valid)
        assert self.products is not None
        layers = [Prefix() for _ in range(self.cache.layers)]
        text, audio = model.hidden(model.embed(prompts), positions, mask, layers, last=True)
        lengths = positions[:, -1] + 1
        self.cache.store_prompts(slots, layers, lengths, self.products.order)
        part = slice(first, first + len(slots) * group)
        answers = (numbers[:, None] * group + torch.arange(group, device=self.device)).flatten()
        self.rows.open(part, answers, keys[answers], lengths.repeat_interleave(group), model.specials.blank)
        self.cache.open(part, slots.repeat_interleave(group))
        words, codes = (x.repeat_interleave(group, 0) for x in (model.text_logits(text[:, 0]), model.audio_logits(audio[:, 0])))
        self._draw(model, part, words, codes, sampling)

    @torch.inference_mode()
    def _step(self, model: SpeechLM, count: int, sampling: Sampling) -> None:
        if self.graphs is None:
            self._forward(model, count, int(self.cache.prompt_of[:count].max()) + 1, sampling)
            return
        size = bucket(count, self.shape.rows)
        key = size, self.cache.group, sampling
        self.graphs.run(key, lambda: self._forward(model, size, self.shape.prompts, sampling))

    def _forward(self, model: SpeechLM, count: int, prompts: int, sampling: Sampling) -> None:
        """Feeds what the first `count` rows drew last, and draws their next position."""
        assert self.products is not None
        rows, part = self.rows, slice(0, count)
        x = model.model.embed_tokens(rows.audio[part]) + model.model.embed_tokens(rows.text[part])
        turns = self.products.turns(rows.start[part] + self.cache.filled[part])
        layers = self.cache.step(count, prompts)
        # no text is left to write in the second half of most answers; a graph cannot ask
        writing = self.graphs is not None or bool((rows.alive[part] & rows.writing[part]).any())
        text, audio = decode(model.config, self.products, x, turns, layers, writing)
        self._draw(model, part, text, audio, sampling)

    def _draw(self, model: SpeechLM, part: slice, text: Tensor | None, audio: Tensor, sampling: Sampling) -> None:
        """Draws one position of both streams from their logits [N, V]; no text is blanks. What is forced is drawn too, and thrown away."""
        rows, blank = self.rows, model.specials.blank
        alive, key, step = rows.alive[part], rows.key[part], rows.step[part]
        numbers = rows.numbers(part)
        if text is None:
            words, word_logprobs = torch.full_like(step, blank), torch.full_like(step, FORCED, dtype=torch.float32)
        else:
            columns, logprobs = draw(text, key, step, TEXT, sampling.text, numbers[TEXT])
            free = alive & rows.writing[part]
            words, word_logprobs = torch.where(free, columns, blank), torch.where(free, logprobs, FORCED)
            rows.writing[part].logical_and_(columns != model.specials.text_eos)
        columns, logprobs = draw(audio, key, step, AUDIO, sampling.audio, numbers[AUDIO])
        free = alive & (step >= model.config.kimia_mimo_audiodelaytokens)
        codes, code_logprobs = torch.where(free, model.audio_ids[columns], blank), torch.where(free, logprobs, FORCED)
        rows.say(part, words, codes, word_logprobs, code_logprobs)
        rows.speaking[part].logical_and_(~free | (columns < model.config.codes))
        step += alive
        alive &= rows.speaking[part] & (step < self.limit)


class _Results:
    """Answers that are finished, by their number."""

    def __init__(self, count: int, limit: int, blank: int, device: torch.device) -> None:
        self.limit = limit
        self.ids = torch.full((count, 2, limit), blank, device=device)
        self.logprobs = torch.full((count, 2, limit), FORCED, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.longest = torch.zeros((), dtype=torch.int64, device=device)

    def take(self, rows: Rows, ended: Tensor) -> None:
        """Answers of the rows of these numbers [N] int64."""
        answer = rows.answer[ended]
        for mine, theirs in ((self.ids, rows.ids), (self.logprobs, rows.logprobs)):
            mine[answer] = theirs[ended, :, : self.limit]
        self.ended[answer] = ~rows.speaking[ended]
        self.longest = torch.maximum(self.longest, rows.step[ended].max())

    def rollouts(self) -> Rollouts:
        """All of them, cut to the longest."""
        width = int(self.longest)
        text, audio = self.ids[:, :, :width].unbind(1)
        free = self.logprobs[:, :, :width] != FORCED
        text_free, audio_free = free.unbind(1)
        text_logprobs, audio_logprobs = (self.logprobs[:, :, :width] * free).unbind(1)
        return Rollouts(Answers(audio, text, audio_free, text_free), text_logprobs, audio_logprobs, self.ended)


def _kind(model: SpeechLM) -> tuple[object, ...]:
    head = model.mimo_output.weight
    return head.dtype, head.device, len(model.audio_ids)


_engines: "WeakKeyDictionary[SpeechLM, Engine]" = WeakKeyDictionary()
