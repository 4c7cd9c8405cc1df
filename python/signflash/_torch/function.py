"""Attention as a function that autograd knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from . import native, replay
from .paths import HAS_OPERATORS, hooks_on_saved_tensors, needs_operator, no_forward_mode, refuse_batches, refuse_tangents

PLAIN, KV_PACKED, QKV_PACKED = 0, 1, 2


def unpack(packing, tensors):
    """q, k, v as views of what was given: (q, k, v), (q, kv) or (qkv,)."""
    if packing == PLAIN:
        return tensors
    # The third dimension from the end, with and without a batch.
    if packing == KV_PACKED:
        q, kv = tensors
        return q, kv.select(-3, 0), kv.select(-3, 1)
    (qkv,) = tensors
    return qkv.select(-3, 0), qkv.select(-3, 1), qkv.select(-3, 2)


class Call(NamedTuple):
    """What a backward has to know beside tensors."""

    settings: Any
    deterministic: bool
    packing: int
    inputs: int
    #: (seed, offset), or the tensor of both that the forward read.
    state: Any


class Attention(torch.autograd.Function):
    """(out, lse, probs) of (settings, state, return_probs, deterministic, packing, cu_seqlens, *tensors)."""

    @staticmethod
    def forward(ctx, settings, state, return_probs, deterministic, packing, cu_seqlens, *tensors):
        q, k, v = unpack(packing, tensors)
        out, lse, probs = native.forward(q, k, v, settings, state, return_probs, cu_seqlens=cu_seqlens)
        ctx.drawn, saved = None, ()
        if hooks_on_saved_tensors():
            drawn, ctx.drawn = replay.states_to_save(state, settings.dropout_p)
            saved = (drawn,)
        elif type(state) is not tuple:
            saved = (state,)
        ctx.call = Call(settings, deterministic, packing, len(tensors), state if type(state) is tuple else None)
        # The tensors as they were given, not copies: a second derivative must find its way to them, to be refused.
        ctx.is_packed = cu_seqlens is not None
        ctx.save_for_backward(*(cu_seqlens or ()), *tensors, out, lse, *saved)
        if probs is not None:
            ctx.mark_non_differentiable(probs)
        ctx.set_materialize_grads(False)
        return out, lse, probs

    @staticmethod
    def backward(ctx, dout, dlse, _dprobs):
        call = ctx.call
        if dout is None and dlse is None:
            return (None,) * (6 + call.inputs)
        cu_seqlens, saved = None, ctx.saved_tensors
        if ctx.is_packed:
            cu_seqlens, saved = saved[:2], saved[2:]
        if len(saved) > call.inputs + 2:
            *saved, state = saved
            if ctx.drawn is not None:
                replay.check(ctx.drawn, state)
            if call.state is None:
                call = call._replace(state=state[:2])
        # Where a second derivative can be asked for, the gradients are results of a function that refuses it.
        run = Gradients.apply if torch.is_grad_enabled() else gradients
        found = run(call, dout, dlse, cu_seqlens, *saved)
        return (None,) * 6 + tuple([x if want else None for x, want in zip(found, ctx.needs_input_grad[6:])])

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()


def gradients(call, dout, dlse, cu_seqlens, *saved):
    """The gradients of the tensors that were given, packed as they were."""
    given = [x for x in (dout, dlse, *saved, *(cu_seqlens or ())) if x is not None]
    watched = needs_operator(given)
    if watched or forward_ad._current_level >= 0:
        refuse_tangents(given)
    refuse_batches((dout, dlse), watched)
    if watched:
        return _through_operator(call, dout, dlse, cu_seqlens, *saved)
    if call.packing == PLAIN:
        return native.backward(
            dout, *saved, dlse, call.settings, call.state, call.deterministic, cu_seqlens=cu_seqlens
        )
    *tensors, out, lse = saved
    # A packed gradient is written in place, piece by piece: no copy puts it together.
    results = [native.empty(x) for x in tensors]
    into = unpack(call.packing, results)
    native.backward(
        dout,
        *unpack(call.packing, tensors),
        out,
        lse,
        dlse,
        call.settings,
        call.state,
        call.deterministic,
        into,
        cu_seqlens,
    )
    return tuple(results)


def _through_operator(call, dout, dlse, cu_seqlens, *saved):
    """The same where somebody looks at operators: a mode around the backward, or gradients of another kind."""
    if not HAS_OPERATORS:
        raise NotImplementedError("a backward under a tracer, a mode or a transform needs PyTorch 2.4 or newer")
    from . import ops

    *tensors, out, lse = saved
    q, k, v = unpack(call.packing, tensors)
    found = ops.backward(dout, q, k, v, out, lse, dlse, call.settings, call.state, call.deterministic, cu_seqlens)
    if call.packing == PLAIN:
        return found
    pieces = torch.stack(found[call.packing == KV_PACKED :], -3)
    return (found[0], pieces) if call.packing == KV_PACKED else (pieces,)


class Final(torch.autograd.Function):
    """What has no derivative of its own, and refuses one."""

    @staticmethod
    def backward(ctx, *_):
        raise no_second_derivative()

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()


class Gradients(Final):
    """:func:`gradients`, whose own derivative is refused."""

    @staticmethod
    def forward(ctx, call, dout, dlse, cu_seqlens, *saved):
        return gradients(call, dout, dlse, cu_seqlens, *saved)


def no_second_derivative() -> NotImplementedError:
    return NotImplementedError(
        "signflash's attention has no second derivative (hessian, a penalty on gradients with create_graph=True); use "
        "PyTorch's scaled_dot_product_attention with SDPBackend.MATH where one is needed"
    )


def no_derivative_of_probs() -> NotImplementedError:
    return NotImplementedError(
        "probs have no derivative; within a function that torch.func differentiates use probs.detach(), or return them with "
        "has_aux=True"
    )
