"""Kernels of paras2s: each has a Triton form (`gpu/`), a plain-torch twin (`reference/`), a function.

Importing this package imports torch, never triton: the Triton form is loaded on the first call that needs it.
"""

from paras2s_kernels.dispatch import backends, force
from paras2s_kernels.grpo_loss import grpo_loss
from paras2s_kernels.linear_logprob import linear_logprob
from paras2s_kernels.sample_logprob import sample_logprob
from paras2s_kernels.shared_prefix_attention import shared_prefix_attention
from paras2s_kernels.token_logprob import token_logprob
from paras2s_kernels.varlen_attention import varlen_attention

__all__ = [
    "backends",
    "force",
    "grpo_loss",
    "linear_logprob",
    "sample_logprob",
    "shared_prefix_attention",
    "token_logprob",
    "varlen_attention",
]
