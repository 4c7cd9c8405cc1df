"""Attention under torch.vmap: the mapped dimension joins the batch, or each piece is computed alone.

``vmap(f)(x)[i]`` is ``f(x[i])``. So with a given seed each piece has the same dropout mask; without, ``randomness``
decides as for PyTorch's own random functions: "same", "different", or (its default) an error.
"""

from __future__ import annotations

import torch

from .._settings import dropout_p_of
from . import scores
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


def _joins_all(joined, in_dims) -> bool:
    """Whether what scores are made of is the same for each piece, and for each sequence of one: then a call of all pieces
    takes it as it is.
    """
    alibi_slopes, bias, mask, _ = joined
    alike = alibi_slopes is None or alibi_slopes.dim() == 1
    alike = alike and all([x is None or x.shape[0] == 1 for x in (bias, mask)])
    return alike and all([dim is None for dim in in_dims])


def _pieces_of(tensors, in_dims, size):
    """The arguments of each piece, None where there is no tensor."""
    return [[None] * size if x is None else _pieces(x, dim, size) for x, dim in zip(tensors, in_dims)]


def forward(info, in_dims, q, k, v, cu_seqlens_q, cu_seqlens_k, *rest):
    _refuse_packed(cu_seqlens_q)
    joined, (rng_state, seed, offset, *rest) = rest[: scores.COUNT], rest[scores.COUNT :]
    size, (_, return_probs, *settings) = info.batch_size, rest
    dropout_p, of_state = dropout_p_of(settings), in_dims[scores.READ]
    tensors = list(zip((q, k, v), in_dims[:3]))
    if size == 0 or (dropout_p == 0.0 and _joins_all(joined, in_dims[5 : scores.READ])):
        folded = [_folded(x, dim, size) for x, dim in tensors]
        joined = joined if size else scores.NONE
        out, lse, probs, state = _functions().Forward.apply(*folded, None, None, *joined, None, seed or 0, offset, *rest)
        state, of_state = (state, None) if rng_state is None else (rng_state.clone(), of_state)
        batch = _batch(q, in_dims[0])
        probs = _unfolded(probs, size, batch) if return_probs else probs
        of_probs = 0 if return_probs else None
        return (_unfolded(out, size, batch), _unfolded(lse, size, batch), probs, state), (0, 0, of_probs, of_state)
    draws = dropout_p > 0.0 and seed is None and rng_state is None
    if draws:
        _check_error_mode(info)
    states = [None] * size if rng_state is None else _pieces(rng_state, of_state, size)
    read = (q, k, v, None, None, *joined)
    results = []
    for piece, state in zip(zip(*_pieces_of(read, in_dims, size)), states):
        if draws and info.randomness == "same" and results:
            state = results[0][3]
        results.append(_functions().Forward.apply(*piece, state, seed, offset, *rest))
    out, lse, probs, state = zip(*results)
    probs, of_probs = (torch.stack(probs), 0) if return_probs else (probs[0], None)
    return (torch.stack(out), torch.stack(lse), probs, torch.stack(state)), (0, 0, of_probs, 0)


def backward(info, in_dims, dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, *rest):
    _refuse_packed(cu_seqlens_q)
    joined, (state, dlse, *rest) = rest[: scores.COUNT], rest[scores.COUNT :]
    size, (*wanted, _) = info.batch_size, rest[:3]
    dropout_p = dropout_p_of(rest[3:])
    of_joined, (of_state, of_dlse) = in_dims[8 : 8 + scores.COUNT], in_dims[8 + scores.COUNT :][:2]
    dims = (0, 0, 0, *(0 if wants else None for wants in wanted))
    tensors = list(zip((dout, q, k, v, out, lse), in_dims[:6]))
    whole = dropout_p == 0.0 and not any(wanted) and _joins_all(joined, of_joined)
    if size == 0 or whole:
        folded = [_folded(x, dim, size) for x, dim in tensors]
        state = state if of_state is None else state.new_zeros(2)  # which nothing is drawn from
        given = (*folded, None, None, *(joined if size else scores.NONE), state, _folded(dlse, of_dlse, size))
        *found, dbias, dsinks = _functions().Backward.apply(*given, False, False, *rest[2:])
        batch = _batch(q, in_dims[1])
        nothing = [
            x.new_empty((0, *_shape(x, dim))) if wants else q.new_empty(0)
            for x, dim, wants in zip((joined[scores.BIAS], joined[scores.SINKS]), of_joined[scores.BIAS :: 2], wanted)
        ]
        return (*(_unfolded(x, size, batch) for x in found), *nothing), dims
    read = (dout, q, k, v, out, lse, None, None, *joined, state, dlse)
    results = [_functions().Backward.apply(*piece, *rest) for piece in zip(*_pieces_of(read, in_dims, size))]
    return tuple(x[0] if dim is None else torch.stack(x) for x, dim in zip(zip(*results), dims)), dims


def _shape(x, dim):
    """That of a piece."""
    return x.shape if dim is None else x.movedim(dim, 0).shape[1:]


def draw_state(info, in_dims, q):
    _check_error_mode(info)
    pieces = _pieces(q, in_dims[0], info.batch_size)
    if info.randomness == "same":
        return torch.ops.signflash.draw_state(pieces[0]), None
    return torch.stack([torch.ops.signflash.draw_state(x) for x in pieces]), 0


RULES = {"attention_forward": forward, "attention_backward": backward, "draw_state": draw_state}
