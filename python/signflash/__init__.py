"""Exact attention, whose dropout mask lives in the sign bit: on CPUs and NVIDIA GPUs.

>>> import numpy, signflash
>>> q = k = v = numpy.ones((1, 5, 2, 8), "float32")  # (batch, seqlen, num_heads, head_dim)
>>> signflash.attention(q, k, v, dropout_p=0.1, causal=True, seed=42).shape
(1, 5, 2, 8)

PyTorch tensors are differentiable, and ``from signflash import flash_attn_func`` takes the place of FlashAttention-2's.
:func:`enable` makes PyTorch and Transformers use it.
"""

from ._attention import attention, attention_backward
from ._dropout import decode, dropout_mask, keep_scale
from ._enable import disable, enable, enabled, explain
from ._info import info
from ._native import __version__
from ._random import Generator, manual_seed, random_state
from ._settings import Shard
from .flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__all__ = [
    "Generator",
    "Shard",
    "__version__",
    "attention",
    "attention_backward",
    "decode",
    "disable",
    "dropout_mask",
    "enable",
    "enabled",
    "explain",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "info",
    "keep_scale",
    "manual_seed",
    "random_state",
]
