"""Attention as operators of ``torch.library``: for torch.compile, torch.export, and tensors that are subclasses.

Without a compiler the autograd function is called directly: an operator of torch.library takes longer than the whole
rest of a call. The random state is drawn when the operator runs, never while it is traced, so every run has a dropout
mask of its own.
"""

import torch

from .._settings import OPERATOR_ARGUMENTS, U64, dropout_p_of, from_operator, signed, to_operator
from . import checks, flops, function, native, paths, random, replay, scores, sequences, transforms, vmap

SCHEMAS = {
    "attention_forward": "(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    f"{scores.OPERATOR_ARGUMENTS}, Tensor? rng_state, "
    f"SymInt? seed, SymInt offset, bool deterministic, bool return_probs, {OPERATOR_ARGUMENTS}) -> "
    "(Tensor out, Tensor lse, Tensor probs, Tensor state)",
    "attention_backward": "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? cu_seqlens_q, "
    f"Tensor? cu_seqlens_k, {scores.OPERATOR_ARGUMENTS}, Tensor state, Tensor? dlse, bool wants_dbias, bool wants_dsinks, "
    f"bool deterministic, {OPERATOR_ARGUMENTS}) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)",
    "draw_state": "(Tensor q) -> Tensor",
}
# Two calls with the same arguments have different dropout masks: the compiler must not make them one.
DRAWS = (torch.Tag.nondeterministic_seeded,)
TAGS = {"attention_forward": DRAWS, "attention_backward": (), "draw_state": DRAWS}


def attention(q, k, v, settings, *, cu_seqlens, seed, offset, generator, rng_state, deterministic, return_probs, joined):
    """As ``attention.attention``; the state is always a tensor."""
    checks.check_kinds(q, k, v, cu_seqlens)
    joined = scores.judged(joined, q, k, cu_seqlens) or scores.NONE
    tensors = (q, k, v, *scores.present(joined))
    paths.refuse_tangents(tensors)
    if rng_state is not None:
        random.check_rng_state(q, rng_state)
    drops = settings.dropout_p > 0.0
    draws = drops and seed is None and rng_state is None
    if draws and paths.is_compiling():
        vmap.check_compiled_randomness(tensors)
    elif draws and paths.transformed():
        vmap.check_randomness(tensors)
    if draws and generator is not None:
        _refuse_to_record(q, generator)
        seed, offset, rng_state = random.draw_now(q, generator, settings.dropout_p, cu_seqlens)
    elif (seed is not None or not drops) and not paths.is_recorded((q,)) and replay.may_be_checkpointed():
        replay.watch(seed or 0, offset, settings.dropout_p)
    seed = None if seed is None else signed(seed)
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    transformed = not paths.is_compiling() and paths.transformed()
    run = transforms.Forward.apply if transformed else torch.ops.signflash.attention_forward
    given = (q, k, v, *(cu_seqlens or (None, None)), *joined, rng_state)
    out, lse, probs, state = run(
        *given, seed, signed(offset), deterministic, return_probs, *to_operator(settings)
    )
    if not return_probs:
        return out, lse, None, state
    # The operator's have no derivative and do not say so; transforms refuse it.
    return out, lse, probs if transformed else probs.detach(), state


def _refuse_to_record(q, generator):
    if paths.is_recorded((q,)):
        raise NotImplementedError(
            "generator cannot be recorded by torch.compile and other tracers; use the default generator or rng_state"
        )
    if paths.mapped() or (paths.transformed() and type(generator) is not torch.Generator):
        raise NotImplementedError("generator cannot be used under torch.func's transforms; use a seed, or the default one")


def backward(dout, q, k, v, out, lse, dlse, call, cu_seqlens, joined):
    """(dq, dk, dv, dbias, dsinks) by the operator, None for what is not wanted."""
    state = _fill(q, *call.state) if type(call.state) is tuple else call.state.to(q.device)
    dout = torch.zeros_like(out) if dout is None else dout
    run = transforms.Backward.apply if paths.transformed() else torch.ops.signflash.attention_backward
    given = (dout, q, k, v, out, lse, *(cu_seqlens or (None, None)), *joined, state, dlse)
    found = run(*given, *call.wanted, call.deterministic, *to_operator(call.settings))
    return (*found[:3], *scores.only_wanted(found[3:], call.wanted))


def _fill(q, seed, offset):
    """The state as a tensor, without waiting for the GPU."""
    state = torch.empty(2, dtype=torch.int64, device=q.device)
    state[0].fill_(signed(seed & U64))
    state[1].fill_(signed(offset & U64))
    return state


def _state(q, cu_seqlens, rng_state, seed, offset, dropout_p):
    if rng_state is not None:
        return native.dense_rows(rng_state).clone()  # an operator returns nothing that it was given
    if dropout_p == 0.0 or seed is not None:
        return _fill(q, seed or 0, offset)
    replay.refuse_compiled_repetition()
    seed, offset, state = random.draw_now(q, None, dropout_p, cu_seqlens)
    return _fill(q, seed, offset) if state is None else state


def _draw_state(q):
    """The state of a call on q (batch, seqlen, num_heads, head_dim), for calls that are to share one."""
    return _state(q, None, None, None, 0, 1.0)


def _draw_state_fake(q):
    return q.new_empty((2,), dtype=torch.int64)


def _pair(cu_seqlens_q, cu_seqlens_k):
    return None if cu_seqlens_q is None else (cu_seqlens_q, cu_seqlens_k)


def _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, *rest):
    joined, (rng_state, seed, offset, _, return_probs, *settings) = rest[: scores.COUNT], rest[scores.COUNT :]
    settings, cu_seqlens = from_operator(settings), _pair(cu_seqlens_q, cu_seqlens_k)
    state = _state(q, cu_seqlens, rng_state, seed, offset, settings.dropout_p)
    settings, of_call = _recognised(settings, scores.of_operator(joined), q, k, cu_seqlens)
    given = dict(cu_seqlens=cu_seqlens, scores=of_call)
    out, lse, probs = native.forward(q, k, v, settings, state, return_probs, **given)
    return out, lse, q.new_empty(0) if probs is None else probs, state


def _recognised(settings, of_call, q, k, cu_seqlens):
    """The same where a bias is a mask in numbers, which compiled code makes of every mask, as eager code has it."""
    if of_call is None or of_call.bias is None or cu_seqlens is not None:
        return settings, of_call
    from .._sdpa import masks

    return masks.of_scores(settings, of_call, q, k)


def _forward_fake(q, k, v, cu_seqlens_q, cu_seqlens_k, *rest):
    checks.check_shapes(q, k, v)
    return_probs = rest[scores.COUNT + 4]
    cu_seqlens = _pair(cu_seqlens_q, cu_seqlens_k)
    rows = sequences.rows(q, cu_seqlens)
    if return_probs and cu_seqlens is not None:
        raise NotImplementedError(
            "return_probs with cu_seqlens cannot be recorded by torch.compile and other tracers: the shape of probs depends "
            "on what the numbers say; call it outside of what is compiled"
        )
    probs = q.new_empty((*rows, k.shape[1]) if return_probs else (0,))
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    return out, q.new_empty(rows, dtype=torch.float32), probs, q.new_empty((2,), dtype=torch.int64)


def _backward(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, *rest):
    joined, (state, dlse, *wanted, deterministic) = rest[: scores.COUNT], rest[scores.COUNT : scores.COUNT + 5]
    settings, cu_seqlens = from_operator(rest[scores.COUNT + 5 :]), _pair(cu_seqlens_q, cu_seqlens_k)
    of_call = scores.of_operator(joined)
    if not wanted[0]:
        settings, of_call = _recognised(settings, of_call, q, k, cu_seqlens)
    given = dict(cu_seqlens=cu_seqlens, scores=of_call, wanted=wanted)
    found = native.backward(dout, q, k, v, out, lse, dlse, settings, state, deterministic, **given)
    return tuple([q.new_empty(0) if x is None else x for x in found])


def _backward_fake(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, bias, mask, sinks, state, dlse, *rest):
    joined = [x.new_empty(x.shape) if wants else q.new_empty(0) for x, wants in zip((bias, sinks), rest)]
    return (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *joined)


def _setup_context(ctx, inputs, output):
    read, (_, _, _, deterministic, _, *settings) = inputs[: scores.READ], inputs[scores.READ :]
    out, lse, _, state = output
    ctx.drawn = None
    drops = dropout_p_of(settings) > 0.0
    if drops and paths.hooks_on_saved_tensors() and not paths.transformed() and not paths.is_recorded((state,)):
        ctx.drawn = state.clone()
    ctx.save_for_backward(*read[:3], out, lse, *read[3:], state)
    ctx.rest, ctx.inputs = (deterministic, *settings), len(inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dout, dlse, _dprobs, _dstate):
    *read, state = ctx.saved_tensors
    paths.refuse_tangents((dout, dlse, *read))
    if ctx.drawn is not None:
        replay.check(ctx.drawn, state)
    if dout is None:
        dout = torch.zeros_like(read[3])
    wanted = scores.wanted_by(ctx.needs_input_grad)
    found = torch.ops.signflash.attention_backward(dout, *read, state, dlse, *wanted, *ctx.rest)
    return scores.gradients_of_inputs(found, wanted, ctx.inputs)


def _refuse_to_differentiate(ctx, *_):
    raise function.no_second_derivative()


def _define():
    functions = {
        "attention_forward": (_forward, _forward_fake),
        "attention_backward": (_backward, _backward_fake),
        "draw_state": (_draw_state, _draw_state_fake),
    }
    for name, (run, fake) in functions.items():
        qualified = f"signflash::{name}"
        torch.library.define(qualified, SCHEMAS[name], tags=TAGS[name])
        torch.library.impl(qualified, ("cpu", "cuda"))(run)
        torch.library.register_fake(qualified)(fake)
        if hasattr(torch.library, "register_vmap"):  # PyTorch 2.5
            torch.library.register_vmap(qualified, vmap.RULES[name])
    torch.library.register_autograd("signflash::attention_forward", _differentiate, setup_context=_setup_context)
    torch.library.register_autograd("signflash::attention_backward", _refuse_to_differentiate)
    flops.register()


_define()
