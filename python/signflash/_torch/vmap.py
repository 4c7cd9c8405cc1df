"""Attention under torch.vmap: the mapped dimension joins the batch, or each piece is computed alone.

``vmap(f)(x)[i]`` is ``f(x[i])``. So with a given seed each piece has the same dropout mask; without, ``randomness``
decides as for PyTorch's own random functions: "same", "different", or (its default) an error.
"""

from __future__ import annotations

import torch

from .._settings import dropout_p_of
from .paths import levels_of


def _functions():
    from . import transforms

    return transforms


def check_randomness(tensors) -> None:
    """A call on tensors that are not mapped draws once, which is only right where that was asked for."""
    functorch = torch._C._functorch
    for level in functorch.get_interpreter_stack() or ():
        if _wants_more_than_one(level) and not any(level.level() in levels_of(x) for x in tensors):
            raise _draws_once()


def check_compiled_randomness(tensors) -> None:
    """The same where a call is compiled under maps alone: of tensors under other transforms it tells no more."""
    if _is_wanted_by_maps_alone() and not any([torch._C._functorch.is_batchedtensor(x) for x in tensors]):
        raise _draws_once()


def _wants_more_than_one(level) -> bool:
    functorch = torch._C._functorch
    if level.key() != functorch.TransformType.Vmap:
        return False
    return functorch.CVmapInterpreterPtr(level).randomness() != functorch.RandomnessType.Same


def _is_wanted_by_maps_alone() -> bool:
    levels = torch._C._functorch.get_interpreter_stack() or ()
    maps = all([level.key() == torch._C._functorch.TransformType.Vmap for level in levels])
    return maps and any([_wants_more_than_one(level) for level in levels])


# As torch.compiler.assume_constant_result says it, which imports the whole compiler: run while tracing, not traced.
_is_wanted_by_maps_alone._dynamo_marked_constant = True


def _draws_once() -> RuntimeError:
    return RuntimeError(
        "vmap: attention with dropout on tensors that are not mapped over would drop the same for all; give vmap "
        "randomness='same', or the call a seed"
    )


def _check_error_mode(info) -> None:
    if info.randomness == "error":
        raise RuntimeError(
            "vmap: attention draws a dropout mask, and vmap's randomness is 'error'; use randomness='same' or "
            "'different', or give the call a seed"
        )


def _pieces(x, dim, size):
    return [x] * size if dim is None else x.unbind(dim)


def _folded(x, dim, size):
    """(batch, ...) mapped over ``size``, as (size * batch, ...)."""
    if x is None:
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.reshape(size * x.shape[1], *x.shape[2:])


def _unfolded(x, size, batch):
    return x.reshape(size, batch, *x.shape[1:])


def _batch(x, dim):
    """The batch of each piece, which is one even if there are no pieces."""
    return x.shape[0] if dim is None else x.movedim(dim, 0).shape[1]


def _refuse_packed(cu_seqlens) -> None:
    if cu_seqlens is not None:
        raise NotImplementedError(
            "vmap: attention of packed sequences (cu_seqlens_q, cu_seqlens_k) is not mapped; pack what is mapped over as "
            "further sequences, or call it in a loop"
        )


def forward(info, in_dims, q, k, v, cu_seqlens_q, cu_seqlens_k, rng_state, seed, offset, *rest):
    _refuse_packed(cu_seqlens_q)
    size, (_, return_probs, *settings) = info.batch_size, rest
    dropout_p = dropout_p_of(settings)
    tensors = list(zip((q, k, v), in_dims[:3]))
    if dropout_p == 0.0 or size == 0:
        folded = [_folded(x, dim, size) for x, dim in tensors]
        out, lse, probs, state = _functions().Forward.apply(*folded, None, None, None, seed or 0, offset, *rest)
        state, of_state = (state, None) if rng_state is None else (rng_state.clone(), in_dims[5])
        batch = _batch(q, in_dims[0])
        probs = _unfolded(probs, size, batch) if return_probs else probs
        of_probs = 0 if return_probs else None
        return (_unfolded(out, size, batch), _unfolded(lse, size, batch), probs, state), (0, 0, of_probs, of_state)
    draws = seed is None and rng_state is None
    if draws:
        _check_error_mode(info)
    states = [None] * size if rng_state is None else _pieces(rng_state, in_dims[5], size)
    results = []
    for piece, state in zip(zip(*(_pieces(x, dim, size) for x, dim in tensors)), states):
        if draws and info.randomness == "same" and results:
            state = results[0][3]
        results.append(_functions().Forward.apply(*piece, None, None, state, seed, offset, *rest))
    out, lse, probs, state = zip(*results)
    probs, of_probs = (torch.stack(probs), 0) if return_probs else (probs[0], None)
    return (torch.stack(out), torch.stack(lse), probs, torch.stack(state)), (0, 0, of_probs, 0)


def backward(info, in_dims, dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, state, dlse, *rest):
    _refuse_packed(cu_seqlens_q)
    size, (_, *settings) = info.batch_size, rest
    dropout_p = dropout_p_of(settings)
    tensors = list(zip((dout, q, k, v, out, lse), in_dims[:6]))
    if dropout_p == 0.0 or size == 0:
        folded = [_folded(x, dim, size) for x, dim in tensors]
        state = state if in_dims[8] is None else state.new_zeros(2)  # which nothing is drawn from
        found = _functions().Backward.apply(*folded, None, None, state, _folded(dlse, in_dims[9], size), *rest)
        batch = _batch(q, in_dims[1])
        return tuple(_unfolded(x, size, batch) for x in found), (0, 0, 0)
    pieces = [_pieces(x, dim, size) for x, dim in tensors]
    pieces += [[None] * size] * 2
    pieces.append(_pieces(state, in_dims[8], size))
    pieces.append([None] * size if dlse is None else _pieces(dlse, in_dims[9], size))
    found = zip(*(_functions().Backward.apply(*piece, *rest) for piece in zip(*pieces)))
    return tuple(torch.stack(x) for x in found), (0, 0, 0)


def draw_state(info, in_dims, q):
    _check_error_mode(info)
    pieces = _pieces(q, in_dims[0], info.batch_size)
    if info.randomness == "same":
        return torch.ops.signflash.draw_state(pieces[0]), None
    return torch.stack([torch.ops.signflash.draw_state(x) for x in pieces]), 0


RULES = {"attention_forward": forward, "attention_backward": backward, "draw_state": draw_state}
