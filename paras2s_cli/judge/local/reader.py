"""The probabilities of five labels as the next token of packed prompts, whose shared beginning is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paras2s_cli.judge.local.prompt import common
from paras2s_kernels import linear_logprob


class LabelReader:
    """`model` is a causal LM of transformers whose attention is `paras2s_varlen`.

    shared  tokens that prompts begin with: their keys and values are computed here, once
    labels  the tokens whose probabilities are wanted, at least two
    """

    def __init__(self, model: Any, shared: Sequence[int], labels: Sequence[int]) -> None:
        self._model, self._shared = model, list(shared)
        self._labels = torch.tensor(labels, device=model.device)
        self._head = model.get_output_embeddings().weight  # [V, D]
        self._prefix = self._keys_and_values(self._shared)

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prompts -> (probabilities among the labels [N, K], the probability of all of them together [N]), float32 on the CPU."""
        hidden = self._last_hidden(prompts)
        logits = hidden.float() @ self._head[self._labels].float().T  # [N, K]
        best, at = logits.max(1)
        # the softmax over the whole vocabulary, at the likeliest label; the logits of the others are never held together
        logprob, _, _ = linear_logprob(hidden, self._head, self._labels[at])
        mass = (logprob + (logits - best[:, None]).logsumexp(1)).exp()
        return logits.softmax(1).cpu(), mass.cpu()

    @torch.no_grad()
    def read_plainly(self, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `read` returns, by the model's own forward on the whole prompt."""
        ours = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")
        try:
            logits = self._model(torch.tensor([prompt], device=self._model.device), use_cache=False, logits_to_keep=1).logits[:, -1]
        finally:
            self._model.set_attn_implementation(ours)
        chosen = logits.float().log_softmax(1)[:, self._labels]
        return chosen.softmax(1).cpu(), chosen.exp().sum(1).cpu()

    def _last_hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The last position's hidden state of each prompt [N, D], from one row in which their own tokens lie one after the other."""
        shared = min(min(common(prompt, self._shared), len(prompt) - 1) for prompt in prompts)
        own = [torch.tensor(prompt[shared:]) for prompt in prompts]
        lengths = torch.tensor([len(tokens) for tokens in own])
        ends = lengths.cumsum(0)
        device = self._model.device
        cu_seqlens = torch.cat([ends.new_zeros(1), ends]).int().to(device)
        out = self._model.base_model(
            input_ids=torch.cat(own)[None].to(device),
            position_ids=torch.cat([torch.arange(shared, shared + len(tokens)) for tokens in own])[None].to(device),
            use_cache=False,
            shared_prefix=self._prefix if shared == len(self._shared) else self._keys_and_values(self._shared[:shared]),
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=int(lengths.max()),
            max_length_k=int(lengths.max()),
        )
        hidden: Tensor = out.last_hidden_state[0, (ends - 1).to(device)]
        return hidden

    @torch.no_grad()
    def _keys_and_values(self, tokens: Sequence[int]) -> Any:
        """A cache filled with these tokens; None without any."""
        if not tokens:
            return None
        ids = torch.tensor([list(tokens)], device=self._model.device)
        return self._model.base_model(input_ids=ids, use_cache=True).past_key_values
