"""Stands in for flash_attn, so that FlashAttention-2's own test file runs unchanged.

The functions are signflash's. Where the tests ask for S_dmask they expect FlashAttention-2's unnormalised one, so the
probabilities are multiplied by what the tests then divide by: exp(lse - the row's largest score).
"""

import functools
import math

import signflash
import torch
from signflash import (  # noqa: F401
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)


def _unnormalised(probs, lse, q, k, causal):
    q, k = (x.detach().float().transpose(1, 2) for x in (q, k))
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) / math.sqrt(q.shape[-1])
    rows, columns = scores.shape[-2:]
    if causal:
        visible = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
        scores = scores.masked_fill(~visible, -math.inf)
    factor = torch.exp(lse - scores.amax(-1))
    # A row that sees nothing has no largest score.
    factor = torch.where(torch.isfinite(factor), factor, torch.ones_like(factor))
    return probs.float() * factor[..., None]


class _OnceUsed:
    """The tensor that `make` makes, when something is asked of it: most tests look at S_dmask in a few cases only."""

    def __init__(self, make):
        self._make = make

    @functools.cached_property
    def _tensor(self):
        return self._make()

    def __getattr__(self, name):
        return getattr(self._tensor, name)

    def __getitem__(self, index):
        return self._tensor[index]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [x._tensor if isinstance(x, cls) else x for x in args]
        return function(*args, **(kwargs or {}))


def _wrap(function, unpack):
    @functools.wraps(function)
    def call(*args, **kwargs):
        results = function(*args, **kwargs)
        if not isinstance(results, tuple):
            return results
        out, lse, probs = results
        q, k = unpack(args)
        causal = kwargs.get("causal", False)
        return out, lse, _OnceUsed(lambda: _unnormalised(probs, lse, q, k, causal))

    return call


flash_attn_func = _wrap(signflash.flash_attn_func, lambda a: (a[0], a[1]))
flash_attn_kvpacked_func = _wrap(signflash.flash_attn_kvpacked_func, lambda a: (a[0], a[1][:, :, 0]))
flash_attn_qkvpacked_func = _wrap(signflash.flash_attn_qkvpacked_func, lambda a: (a[0][:, :, 0], a[0][:, :, 1]))
