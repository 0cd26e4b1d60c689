"""The reward model of ParaS2S (arXiv 2511.08723): an audio language model with a low-rank adapter that hears a query and an answer, and
tells the Likert digit as one token. All five digits' probabilities are read at that one position."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.audio_lm import AudioLanguageModel
from paras2s_cli.judge.hearing.pair import PAIR
from paras2s_cli.judge.pair_digits import expected_digit
from paras2s_cli.models.lora import add_lora
from paras2s_cli.recipe.aligning import RewardLM
from paras2s_cli.recipe.judging import EndToEnd


class DigitRows(nn.Module):
    """The rows of a language model's head that belong to the digits, in the head's place: of all positions the last is read."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1, digits] fp32: in bf16 neighbouring rewards would be one."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden[:, -1:].float() @ self.weight.float().T


class PairHearer(AudioLanguageModel):
    """An audio language model that hears a query and an answer, up to where its grade is the next token.

    Args:
        key: the recipe's section, for messages.
    """

    def __init__(self, settings: RewardLM | EndToEnd, key: str) -> None:
        """Raises UsageError for a model or an adapter that cannot be loaded, or one without a token for each digit."""
        super().__init__(settings, key)
        self.batch = settings.batch
        asked, digits = self._tokens(PAIR)
        if any(len(digit) > 1 for digit in digits):
            raise UsageError(f"{key}.model: {settings.model} has no token for each of the digits 1 to 5; choose another model")
        self._asked_ids = torch.tensor(asked, device=self._device)
        self._digits = [digit[0] for digit in digits]

    def logits(self, asked: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> Tensor:
        """What the model's head says [B, rows] of the token that comes after B pairs, with gradient. Waves: mono float32 [T] at 16 kHz."""
        with torch.autocast("cpu", enabled=False):  # the extractor multiplies in torch, and its sums need all their digits
            inputs = self._inputs(list(zip(asked, said, strict=True)))
        # Padding is on the left, so that the question is the end of every row.
        inputs["input_ids"] = torch.cat([inputs["input_ids"], self._asked_ids.expand(len(asked), -1)], 1)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = mask = torch.cat([mask, mask.new_ones(len(mask), len(self._asked_ids))], 1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits: Tensor = self._model(**inputs, position_ids=positions, use_cache=False).logits
        return logits[:, 0]

    def batches(self, asked: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> list[list[int]]:
        """The pairs' places, `batch` at a time, those of like length together."""
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]) + len(said[i]))
        return [order[start : start + self.batch] for start in range(0, len(order), self.batch)]


class PairLM(PairHearer):
    """An audio language model that grades pairs: its head tells the five digits alone, in fp32. `adapter` is what of it is trained.

    Args:
        key: the recipe's section, for messages. seed: of the fresh adapter, which changes nothing yet.
    """

    def __init__(self, settings: RewardLM, key: str, seed: int) -> None:
        """Raises UsageError as `PairHearer`."""
        super().__init__(settings, key)
        head = self._model.get_output_embeddings().weight
        self._model.set_output_embeddings(DigitRows(head.detach()[self._digits]))
        self.adapter = add_lora(self._model, **settings.lora.model_dump(), seed=seed, within=text_layers(self._model)).eval()

    @torch.no_grad()
    def grade(self, asked: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> Tensor:
        """The expected digits [B] fp32 of B pairs, on the CPU."""
        found = torch.empty(len(asked))
        for rows in self.batches(asked, said):
            found[rows] = expected_digit(self.logits([asked[i] for i in rows], [said[i] for i in rows])).cpu()
        return found


def text_layers(model: nn.Module) -> str:
    """The name of the part of an audio language model that reads tokens, which is where the tokens are embedded: the library has moved it
    between its versions."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[0]
