"""Attention as a function that autograd knows."""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple

import torch
from torch.autograd import forward_ad

from . import native, replay
from . import scores as of_scores
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
    #: Whether dbias is asked for, and dsinks.
    wanted: Tuple[bool, bool] = (False, False)


#: Arguments of :class:`Attention` before the scores' own tensors, how many these are, and two of them.
BEFORE, SCORES, BIAS, SINKS = 6, of_scores.COUNT, of_scores.BIAS, of_scores.SINKS


class Attention(torch.autograd.Function):
    """(out, lse, probs) of (settings, state, return_probs, deterministic, packing, cu_seqlens, the four of Scores,
    *tensors)."""

    @staticmethod
    def forward(ctx, settings, state, return_probs, deterministic, packing, cu_seqlens, *tensors):
        joined, tensors = tensors[:SCORES], tensors[SCORES:]
        q, k, v = unpack(packing, tensors)
        scores = of_scores.of_operator(joined)
        out, lse, probs = native.forward(q, k, v, settings, state, return_probs, cu_seqlens=cu_seqlens, scores=scores)
        ctx.drawn, saved = None, ()
        if hooks_on_saved_tensors():
            drawn, ctx.drawn = replay.states_to_save(state, settings.dropout_p)
            saved = (drawn,)
        elif type(state) is not tuple:
            saved = (state,)
        ctx.call = Call(settings, deterministic, packing, len(tensors), state if type(state) is tuple else None)
        # The tensors as they were given, not copies: a second derivative must find its way to them.
        ctx.is_packed, ctx.has_scores = cu_seqlens is not None, scores is not None
        ctx.save_for_backward(*(cu_seqlens or ()), *(scores or ()), *tensors, out, lse, *saved)
        if probs is not None:
            ctx.mark_non_differentiable(probs)
        ctx.set_materialize_grads(False)
        return out, lse, probs

    @staticmethod
    def backward(ctx, dout, dlse, _dprobs):
        call = ctx.call
        if dout is None and dlse is None:
            return (None,) * (BEFORE + SCORES + call.inputs)
        cu_seqlens, joined, saved = None, of_scores.NONE, ctx.saved_tensors
        if ctx.is_packed:
            cu_seqlens, saved = saved[:2], saved[2:]
        if ctx.has_scores:
            joined, saved = saved[:SCORES], saved[SCORES:]
        if len(saved) > call.inputs + 2:
            *saved, state = saved
            if ctx.drawn is not None:
                replay.check(ctx.drawn, state)
            if call.state is None:
                call = call._replace(state=state[:2])
        # Where a second derivative can be asked for, the gradients are results of a function that has one.
        run = Gradients.apply if torch.is_grad_enabled() else gradients
        needed = ctx.needs_input_grad[BEFORE:]
        call = call._replace(wanted=(needed[BIAS], needed[SINKS]))
        *found, dbias, dsinks = run(call, dout, dlse, cu_seqlens, *joined, *saved)
        found = tuple([x if want else None for x, want in zip(found, needed[SCORES:])])
        return (*(None,) * BEFORE, None, dbias, None, dsinks, *found)

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()


def gradients(call, dout, dlse, cu_seqlens, *saved):
    """The gradients of the tensors that were given, packed as they were; then dbias and dsinks, or None.

    saved are the four of Scores, the tensors, out and lse.
    """
    given = [x for x in (dout, dlse, *saved[SCORES:], *saved[:SCORES], *(cu_seqlens or ())) if x is not None]
    watched = needs_operator(given)
    if watched or forward_ad._current_level >= 0:
        refuse_tangents(given)
    refuse_batches((dout, dlse), watched)
    if watched:
        return _through_operator(call, dout, dlse, cu_seqlens, *saved)
    scores, (*tensors, out, lse) = of_scores.of_operator(saved[:SCORES]), saved[SCORES:]
    rest = dict(cu_seqlens=cu_seqlens, scores=scores, wanted=call.wanted)
    settings = (call.settings, call.state, call.deterministic)
    if call.packing == PLAIN:
        return native.backward(dout, *tensors, out, lse, dlse, *settings, **rest)
    # A packed gradient is written in place, piece by piece: no copy puts it together.
    results = [native.empty(x) for x in tensors]
    into = unpack(call.packing, results)
    found = native.backward(dout, *unpack(call.packing, tensors), out, lse, dlse, *settings, into, **rest)
    return (*results, *found[3:])


def _through_operator(call, dout, dlse, cu_seqlens, *saved):
    """The same where somebody looks at operators: a mode around the backward, or gradients of another kind."""
    if not HAS_OPERATORS:
        raise NotImplementedError("a backward under a tracer, a mode or a transform needs PyTorch 2.4 or newer")
    from . import ops

    joined, (*tensors, out, lse) = saved[:SCORES], saved[SCORES:]
    q, k, v = unpack(call.packing, tensors)
    *found, dbias, dsinks = ops.backward(dout, q, k, v, out, lse, dlse, call, cu_seqlens, joined)
    if call.packing != PLAIN:
        pieces = torch.stack(found[call.packing == KV_PACKED :], -3)
        found = (found[0], pieces) if call.packing == KV_PACKED else (pieces,)
    return (*found, dbias, dsinks)


class Final(torch.autograd.Function):
    """What has no derivative of its own, and refuses one."""

    @staticmethod
    def backward(ctx, *_):
        raise no_second_derivative()

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()


class Gradients(torch.autograd.Function):
    """:func:`gradients`, of inputs of which out and lse are functions, with derivatives of its own."""

    @staticmethod
    def forward(ctx, call, dout, dlse, cu_seqlens, *saved):
        ctx.call, ctx.is_packed = call, cu_seqlens is not None
        ctx.save_for_backward(dout, dlse, *saved[:-2])
        ctx.set_materialize_grads(False)
        return gradients(call, dout, dlse, cu_seqlens, *saved)

    @staticmethod
    def backward(ctx, *given):
        if ctx.is_packed:
            raise no_second_derivative()
        from . import second

        dout, dlse, dbias, dsinks, *found = second.derivatives(ctx.call, unpack, ctx.saved_tensors, given)
        return (None, dout, dlse, None, None, dbias, None, dsinks, *found, None, None)

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()


class FinalGradients(Final):
    """:func:`gradients` of what somebody else kept: nothing is known of where out and lse come from."""

    @staticmethod
    def forward(ctx, call, dout, dlse, cu_seqlens, *saved):
        return gradients(call, dout, dlse, cu_seqlens, *saved)


def no_second_derivative() -> NotImplementedError:
    return NotImplementedError(
        "signflash's attention has no second derivative (hessian, a penalty on gradients with create_graph=True) of packed "
        "sequences, of attention_backward and where operators are recorded; use dense calls without a tracer, or PyTorch's "
        "scaled_dot_product_attention with SDPBackend.MATH"
    )


def no_derivative_of_probs() -> NotImplementedError:
    return NotImplementedError(
        "probs have no derivative; within a function that torch.func differentiates use probs.detach(), or return them with "
        "has_aux=True"
    )
