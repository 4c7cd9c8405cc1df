"""The call of a rank as a function that autograd knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .._torch import function as of_one
from .._torch import paths, replay
from .compute import Call, Operands, Wanted


class Job(NamedTuple):
    """How it is computed: a method knows who has what, and the call what."""

    method: Any
    call: Call
    #: (seed, offset) and dropout_p, which a repeated forward must have, too.
    state: tuple
    dropout_p: float


class Distributed(torch.autograd.Function):
    """(out, lse) of (job, bias, sinks, q, k, v)."""

    @staticmethod
    def forward(ctx, job, bias, sinks, q, k, v):
        out, lse, saved = job.method.forward(job.call, Operands(q, bias, sinks), k, v)
        ctx.drawn, states = None, ()
        if paths.hooks_on_saved_tensors():
            drawn, ctx.drawn = replay.states_to_save(job.state, job.dropout_p)
            states = (drawn,)
        ctx.job, ctx.out_shape = job._replace(call=job.call._replace(mask=None)), out.shape
        ctx.save_for_backward(bias, sinks, job.call.mask, *saved, *states)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        if dout is None and dlse is None:
            return (None,) * 6
        bias, sinks, mask, *saved = ctx.saved_tensors
        if ctx.drawn is not None:
            *saved, state = saved
            replay.check(ctx.drawn, state)
        if torch.is_grad_enabled():
            raise of_one.no_second_derivative()
        job = ctx.job
        if dout is None:
            dout = saved[0].new_zeros(ctx.out_shape)
        _, needs_bias, needs_sinks, *needs = ctx.needs_input_grad
        wanted = Wanted(dbias=needs_bias and bias is not None, dsinks=needs_sinks and sinks is not None)
        call = job.call._replace(mask=mask)
        dout = dout.contiguous() if dout.stride(-1) != 1 else dout
        found = job.method.backward(call, Operands(saved[0], bias, sinks), saved, dout, dlse, wanted)
        *of_tensors, dbias, dsinks = found
        if dbias is not None:
            dbias = dbias.to(bias.dtype)
        if dsinks is not None:
            dsinks = dsinks.to(sinks.dtype)
        return (None, dbias, dsinks, *(x if need else None for x, need in zip(of_tensors, needs)))
