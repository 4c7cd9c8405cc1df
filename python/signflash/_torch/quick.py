"""The short way of a plain call: one call of the native half, which finds PyTorch's stable C functions in memory.

It takes dense calls of plain tensors whose random state is known, with autograd or without, where nobody looks at
operators; it answers None, and has computed nothing, for everything else and for everything that is wrong. So all errors
are the long way's.
"""

from __future__ import annotations

import os

import torch
from torch.autograd import forward_ad

from .. import _native
from . import function, paths, scores
from .checks import DESCRIBED, IS_AMD
from .native import _stream


class Attention(function.Final):
    """out, or (out, lse), of (what the native half keeps of a call, q, k, v)."""

    forward = staticmethod(_native.record)

    @staticmethod
    def backward(ctx, *given):
        found = _native.gradients(ctx, given) if forward_ad._current_level < 0 else None
        return _long_way(ctx, *given) if found is None else found


def _long_way(ctx, dout, dlse=None):
    if dout is None and dlse is None:
        return (None,) * 4
    call = function.Call(ctx.call.settings, ctx.call.deterministic, function.PLAIN, 3, ctx.call.state)
    run = function.Gradients.apply if torch.is_grad_enabled() else function.gradients
    found = run(call, dout, dlse, None, *scores.NONE, *ctx.saved_tensors)
    return (None, *[x if wants else None for x, wants in zip(found, ctx.call.wanted)])


#: Tensors on GPUs go this way only where this is 1: it has not been run on any yet.
ON_GPUS = "SIGNFLASH_SHORT_WAY_ON_GPUS"


def _prepare() -> bool:
    """Whether this PyTorch has what it takes: 2.14 has."""
    if not DESCRIBED or IS_AMD:
        return False
    return _native.have_short_way(
        path=torch._C.__file__,
        plain=[torch.Tensor, torch.nn.Parameter],
        watchers=paths.WATCHERS,
        hooks=torch._C._autograd._top_saved_tensors_default_hooks,
        deterministic=torch._C._get_deterministic_algorithms,
        stream=_stream if os.environ.get(ON_GPUS) == "1" else None,
        # PyTorch's own begins with what the native half has asked already: whether a transform is at work.
        apply=super(torch.autograd.Function, Attention).apply,
    )


IS_THERE = _prepare()
attend = _native.attend
