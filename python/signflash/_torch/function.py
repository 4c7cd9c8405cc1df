"""Attention as a function that autograd knows."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from . import native

PLAIN, KV_PACKED, QKV_PACKED = 0, 1, 2


def unpack(packing, tensors):
    """q, k, v as views of what was given: (q, k, v), (q, kv) or (qkv,)."""
    if packing == PLAIN:
        return tensors
    if packing == KV_PACKED:
        q, kv = tensors
        return q, kv[:, :, 0], kv[:, :, 1]
    (qkv,) = tensors
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


class Attention(torch.autograd.Function):
    """(out, lse, probs) of (settings, rng_state, return_probs, deterministic, packing, *tensors)."""

    @staticmethod
    def forward(ctx, settings, rng_state, return_probs, deterministic, packing, *tensors):
        saved = [native.dense(x) for x in tensors]
        q, k, v = unpack(packing, saved)
        out, lse, probs = native.forward(q, k, v, settings, rng_state, return_probs)
        state = () if rng_state is None else (rng_state,)
        ctx.save_for_backward(*saved, out, lse, *state)
        ctx.settings, ctx.deterministic, ctx.packing, ctx.inputs = settings, deterministic, packing, len(saved)
        if probs is not None:
            ctx.mark_non_differentiable(probs)
        ctx.set_materialize_grads(False)
        return out, lse, probs

    @staticmethod
    def backward(ctx, *gradients):
        # The wrapper refuses a second derivative, and takes 3 us: where none can be asked for it is left out.
        return (_differentiate_once if torch.is_grad_enabled() else _differentiate)(ctx, *gradients)


def _differentiate(ctx, dout, dlse, _dprobs):
    if dout is None and dlse is None:
        return (None,) * (5 + ctx.inputs)
    saved = ctx.saved_tensors
    tensors, (out, lse, *state) = saved[: ctx.inputs], saved[ctx.inputs :]
    q, k, v = unpack(ctx.packing, tensors)
    # A packed gradient is written in place, piece by piece: no copy puts it together.
    gradients = [native.empty(x) for x in tensors]
    into = unpack(ctx.packing, gradients)
    rng_state = state[0] if state else None
    native.backward(dout, q, k, v, out, lse, ctx.settings, rng_state, ctx.deterministic, into, dlse)
    wanted = ctx.needs_input_grad[5:]
    return (None,) * 5 + tuple([x if want else None for x, want in zip(gradients, wanted)])


_differentiate_once = once_differentiable(_differentiate)
