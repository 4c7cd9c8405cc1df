"""Attention of PyTorch tensors."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from . import checks, function, native, partial, quick, random, replay, scores, sequences
from .paths import HAS_OPERATORS, is_compiling, needs_operator, refuse_tangents, refuse_without_operators

if HAS_OPERATORS:
    from . import ops
else:
    ops = None

_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", None)


def attention(
    tensors,
    settings,
    packing=function.PLAIN,
    *,
    cu_seqlens=None,
    seed=None,
    offset=0,
    generator=None,
    rng_state=None,
    deterministic=False,
    return_probs=False,
    joined=None,
    wide=False,
    room=None,
    wants_lse=True,
):
    """(out, lse, probs or None, state), everything but tensors judged before; state is (seed, offset) or a tensor.

    A wide out is float32, whatever q is. ``room`` is (out, lse) of other keys, on a GPU, to which this is added. joined are alibi_slopes, bias, mask and sinks as they were given, or None for none of them.
    lse may be None if nobody wants it.
    """
    is_plain = (
        quick.IS_THERE and not is_compiling() and packing == function.PLAIN and cu_seqlens is None and joined is None
    )
    is_plain = is_plain and rng_state is None and not (return_probs or wide) and forward_ad._current_level < 0
    is_known = is_plain and (seed is not None or settings.dropout_p == 0.0)
    # What was given is what is computed, and nothing has to be noted of it.
    if is_known and not _any_autocast() and not replay.may_be_checkpointed():
        state = (seed or 0, offset)
        found = quick.attend(*tensors, settings, state, deterministic, wants_lse)
        if found is not None:
            return (*found, None, state)
        is_plain = False  # it would be answered so again
    q, k, v = function.unpack(packing, tensors)
    given = tensors if cu_seqlens is None else (*tensors, *cu_seqlens)
    if joined is not None:
        given = (*given, *scores.present(joined))
    if forward_ad._current_level >= 0:
        refuse_tangents(given)
    if needs_operator(given if rng_state is None else (*given, rng_state)):
        refuse_tangents(given)
        if wide:
            raise partial.not_recorded("out_dtype")
        if ops is None:
            checks.check_kinds(q, k, v, cu_seqlens)
            refuse_without_operators((("q", q), ("k", k), ("v", v)))
        else:
            return ops.attention(
                *checks.autocast(q, k, v),
                settings,
                cu_seqlens=cu_seqlens,
                seed=seed,
                offset=offset,
                generator=generator,
                rng_state=rng_state,
                deterministic=deterministic,
                return_probs=return_probs,
                joined=joined,
            )
    if checks.autocast_dtype("cuda" if q.is_cuda else q.device.type) is not None:
        q, k, v = tensors = checks.autocast(q, k, v)
        packing = function.PLAIN
    checks.check_qkv(q, k, v, cu_seqlens)
    if joined is not None:
        joined = scores.judged(joined, q, k, cu_seqlens)
    room, of_others = room if room is not None else (partial.room_for_out(q, v) if wide else None, None)
    state = _state(q, cu_seqlens, settings, seed, offset, generator, rng_state)
    if is_plain and type(state) is tuple:
        found = quick.attend(q, k, v, settings, state, deterministic, wants_lse)
        if found is not None:
            return (*found, None, state)
    watched = tensors if joined is None else (*tensors, *scores.present(joined))
    if torch.is_grad_enabled() and _any_requires_grad(watched):
        if wide:
            raise partial.no_gradient()
        deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
        out, lse, probs = function.Attention.apply(
            settings, state, return_probs, deterministic, packing, cu_seqlens, *(joined or scores.NONE), *tensors
        )
    else:
        out, lse, probs = native.forward(
            q, k, v, settings, state, return_probs, out=room, cu_seqlens=cu_seqlens, scores=joined, lse=of_others
        )
    return out, lse, probs, state


def _state(q, cu_seqlens, settings, seed, offset, generator, rng_state):
    """What the mask is drawn from: (seed, offset), or a tensor of both."""
    if settings.dropout_p == 0.0 or seed is not None:
        if replay.may_be_checkpointed():
            replay.watch(seed or 0, offset, settings.dropout_p)
        return (seed or 0, offset) if rng_state is None else rng_state
    if rng_state is not None:
        random.check_rng_state(q, rng_state)
        return rng_state
    seed, offset, drawn = random.draw_now(q, generator, settings.dropout_p, cu_seqlens)
    return (seed, offset) if drawn is None else drawn


def _any_requires_grad(tensors):
    for x in tensors:
        if x.requires_grad:
            return True
    return False


def backward(
    dout,
    q,
    k,
    v,
    out,
    lse,
    dlse,
    settings,
    state,
    deterministic,
    cu_seqlens=None,
    joined=None,
    wanted=(False, False),
    wide=False,
    into=None,
    adds=(False, False),
):
    """(dq, dk, dv, dbias, dsinks), for who keeps the forward's results without autograd; the last two are None unless
    they are wanted. Wide ones of q, k and v are float32, whatever these are; written to ``into`` if that is given, and added to
    it where ``adds`` says so (native.py)."""
    checks.check_kinds(q, k, v, cu_seqlens)
    for name, x in (("dout", dout), ("out", out)):
        checks.check_operand(name, x, cu_seqlens)
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(f"{name} must be {q.dtype} on {q.device} as q, got {x.dtype} on {x.device}")
    _check_rows("lse", lse, q, cu_seqlens)
    if dlse is not None:
        _check_rows("dlse", dlse, q, cu_seqlens)
    given, joined = joined or scores.NONE, scores.judged(joined, q, k, cu_seqlens) or scores.NONE
    rows = (lse,) if dlse is None else (lse, dlse)
    tensors = (dout, q, k, v, out, *rows, *scores.present(joined))
    refuse_tangents(tensors)
    if wide:
        if needs_operator(tensors):
            raise partial.not_recorded("grad_dtype")
        into = into or [partial.room(x, x.shape) for x in (q, k, v)]
        rest = dict(adds=adds, cu_seqlens=cu_seqlens, scores=scores.of_operator(joined), wanted=wanted)
        *found, dbias, dsinks = native.backward(
            dout, q, k, v, out, lse, dlse, settings, state, deterministic, into, **rest
        )
        return _shaped(found, dbias, dsinks, given)
    call = function.Call(settings, deterministic, function.PLAIN, 3, state, wanted)
    run = function.gradients
    if torch.is_grad_enabled() and _any_requires_grad(tensors):
        run = function.FinalGradients.apply  # what differentiates these gradients is refused, and not lost
    *found, dbias, dsinks = run(call, dout, dlse, cu_seqlens, *joined, q, k, v, out, lse)
    return _shaped(found, dbias, dsinks, given)


def _shaped(found, dbias, dsinks, given):
    """dbias in the shape in which the bias was given: of one column for all keys it is the sum."""
    return (*found, None if dbias is None else dbias.sum_to_size(given[scores.BIAS].shape), dsinks)


def _check_rows(name, x, q, cu_seqlens) -> None:
    expected = sequences.rows(q, cu_seqlens)
    meaning = "(batch, num_heads, seqlen_q)" if cu_seqlens is None else "(num_heads, total_q)"
    checks.check_tensor(name, x, len(expected), meaning)
    if x.dtype is not torch.float32 or tuple(x.shape) != expected or x.device != q.device:
        raise ValueError(
            f"{name} must be float32 of shape {expected} on {q.device}, got {x.dtype} of shape {tuple(x.shape)} on "
            f"{x.device}; lse is what the forward returned, dlse the gradient of it"
        )
