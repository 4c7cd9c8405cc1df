"""Tensors to addresses: allocates results with PyTorch and runs the native half on the tensor's device and stream."""

from __future__ import annotations

import torch

from .. import _native
from .._settings import U64, Settings
from . import sequences
from .checks import DESCRIBED, NAMES, check_alike, check_backward, check_kinds
from .scores import Scores
from .scores import check_again as check_scores

if hasattr(torch.Tensor, "untyped_storage"):
    _storage = torch.Tensor.untyped_storage
else:

    def _storage(x):
        return x.storage()._storage


if hasattr(torch._C, "_cuda_getCurrentRawStream"):
    _stream = torch._C._cuda_getCurrentRawStream  # a tenth of the time of torch.cuda.current_stream
else:

    def _stream(index):
        return torch.cuda.current_stream(index).cuda_stream


#: What the native half takes for a tensor that cannot be read where it lies.
_UNREADABLE = (0, (), (), 0, 0)


def _told(x):
    """What the native half has to know of a tensor that it reads, and judges: whether it lies as kernels read it, and
    all of it in memory. Whoever calls keeps x alive until the native call has returned.
    """
    try:
        if x.is_neg():  # the sign is to be turned when somebody reads it
            return _UNREADABLE
        return (x.data_ptr(), x.shape, x.stride(), x.storage_offset(), _storage(x).nbytes())
    except RuntimeError:  # a kind that has no strides, or no memory
        return _UNREADABLE


def _describing_itself(x):
    """The same where PyTorch tells address, shape, strides, dtype and device in one call: only what else there is."""
    try:
        return _UNREADABLE if x.is_neg() else (x, x.storage_offset(), _storage(x).nbytes())
    except RuntimeError:
        return _UNREADABLE


_lent = _describing_itself if DESCRIBED else _told


def _written(x):
    return (x.data_ptr(), x.shape, x.stride())


def _alike(x):
    """(an empty tensor as x, what the native half has to know of it): an address alone if it lies as x does."""
    if x.is_contiguous():
        result = torch.empty_like(x)
        return result, result.data_ptr()
    result = x.new_empty(x.shape)
    return result, _written(result)


def dense(x, any_strides=False):
    """x as kernels read it, which costs a copy if it does not lie so.

    With a last stride of 1 unless any will do, without lazy negation, aligned, and all of it in memory.
    """
    if x.layout is not torch.strided:
        raise TypeError(f"a tensor of shape {tuple(x.shape)} must be dense, got layout {x.layout}; use to_dense()")
    if x.numel() == 0:
        return x.new_empty(x.shape)  # such a tensor may have any strides, and keeps them when made contiguous
    if x._is_zerotensor():  # zeros that PyTorch knows of, and keeps nowhere
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    if x.is_neg():
        x = x.resolve_neg()
    room = _storage(x).nbytes() // x.element_size()
    if x.data_ptr() == 0 or x.storage_offset() + _extent(x) > room:
        raise RuntimeError(
            f"a tensor of shape {tuple(x.shape)} reaches beyond its storage, which holds {room} elements: its memory was "
            "freed or shortened (untyped_storage().resize_, as FSDP does to parameters); call while it is there"
        )
    if not any_strides and x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    # A view into bytes may begin between two elements; new memory does not.
    return x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % x.element_size() else x


def dense_rows(x):
    """lse, its gradient, a state, cu_seqlens, slopes or sinks, the same but without gaps."""
    return dense(x if x.is_contiguous() else x.contiguous())


def _extent(x) -> int:
    """How many elements lie between the first and one past the last of a tensor that has any."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))


def empty(x):
    """A dense tensor as x."""
    return torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)


def _place(x):
    if x.is_cuda:
        index = x.get_device()
        return (index, _stream(index))
    return (-1, torch.get_num_threads())


def _numbers(state):
    """((seed, offset, address of both or 0), what has to live as long) of a state, which is a pair or a tensor."""
    if type(state) is tuple:
        return (*state, 0), None
    state = dense_rows(state)
    if state.is_cuda:
        return (0, 0, state.data_ptr()), state
    seed, offset = (int(x) & U64 for x in state.tolist())
    return (seed, offset, 0), None


def _expect(computed: bool) -> None:
    if not computed:
        raise RuntimeError("a tensor cannot be read where it lies, though it was made dense; please report this")


def _starts(cu_seqlens, told):
    """What the native half has to know of cu_seqlens."""
    return None if cu_seqlens is None else (told(cu_seqlens[0]), told(cu_seqlens[1]))


def _of_scores(scores, told):
    """What the native half has to know of the scores' own tensors."""
    if scores is None:
        return None
    alibi_slopes, bias, mask, sinks = scores
    return (
        None if alibi_slopes is None else told(alibi_slopes),
        None if bias is None else (told(bias), NAMES[bias.dtype]),
        None if mask is None else told(mask),
        None if sinks is None else told(sinks),
    )


def _declared(scores):
    """Which of them there are, and of which shapes: what a plan depends on."""
    if scores is None:
        return None
    alibi_slopes, bias, mask, sinks = scores
    return (
        None if alibi_slopes is None else alibi_slopes.dim(),
        None if bias is None else (NAMES[bias.dtype], bias.shape),
        None if mask is None else mask.shape,
        sinks is not None,
    )


def _dense_scores(scores):
    if scores is None:
        return None
    alibi_slopes, bias, mask, sinks = scores
    return Scores(
        None if alibi_slopes is None else dense_rows(alibi_slopes),
        None if bias is None else dense(bias, any_strides=True),
        None if mask is None else dense(mask, any_strides=True),
        None if sinks is None else dense_rows(sinks),
    )


def _room_for_out(q, v):
    """(out, what the native half has to know of it): as q, but for v's head_dim."""
    if q.shape[-1] == v.shape[-1]:
        return _alike(q)
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    return out, _written(out)


def _probs(q, k, v, cu_seqlens, scores, settings):
    """Room for probs (batch, num_heads, seqlen_q, seqlen_k); of packed sequences, as long as the longest are, for which
    a GPU is waited for.
    """
    if cu_seqlens is None:
        batch, seqlen_q, num_heads, _ = q.shape
        return q.new_empty((batch, num_heads, seqlen_q, k.shape[1]))
    known = [dense_rows(x).cpu() for x in cu_seqlens]
    shape = _native.packed_probs((-1, 0), (q.shape, k.shape, v.shape), _starts(known, _told), settings)
    return q.new_zeros(shape)  # no kernel writes what is beyond a shorter sequence


def forward(
    q, k, v, settings: Settings, state=(0, 0), return_probs: bool = False, out=None, cu_seqlens=None, scores=None, lse=None
):
    """(out, lse, probs or None) of q (batch, seqlen_q, num_heads, head_dim), k and v, or of packed sequences.

    Written to ``out`` if that is given. With ``lse``, too, these are results in float32 of other keys, on a GPU, which become
    those of all of them.
    """
    if k.dim() != q.dim() or v.is_nested:
        check_kinds(q, k, v, cu_seqlens)
    at, dtype = _place(q), NAMES[q.dtype]
    out, written = _room_for_out(q, v) if out is None else (out, _written(out))
    if out.dtype is not q.dtype:
        dtype = (dtype, NAMES[out.dtype], (lse is not None, False))
    if lse is None:
        lse = q.new_empty(sequences.rows(q, cu_seqlens), dtype=torch.float32)
    probs = _probs(q, k, v, cu_seqlens, scores, settings) if return_probs else None
    numbers, alive = _numbers(state)
    workspace, scratch = None, 0
    # Tiles of packed sequences are listed there, and the keys that a mask leaves to all queries.
    if q.is_cuda and (cu_seqlens is not None or (scores is not None and scores.mask is not None)):
        count = None if cu_seqlens is None else sequences.count(cu_seqlens)
        shapes = (q.shape, k.shape, v.shape)
        size = _native.forward_workspace_bytes(q.get_device(), shapes, count, _declared(scores), settings)
        workspace = q.new_empty(size, dtype=torch.uint8)
        scratch = workspace.data_ptr()
    rest = (written, lse.data_ptr(), None if probs is None else _written(probs), scratch, numbers, settings)
    read = (_lent(q), _lent(k), _lent(v))
    if not _native.forward(at, dtype, read, _starts(cu_seqlens, _lent), _of_scores(scores, _lent), *rest):
        check_kinds(q, k, v, cu_seqlens)
        q, k, v = (dense(x) for x in (q, k, v))
        cu_seqlens, scores = cu_seqlens and [dense_rows(x) for x in cu_seqlens], _dense_scores(scores)
        read = (_told(q), _told(k), _told(v))
        _expect(_native.forward(at, dtype, read, _starts(cu_seqlens, _told), _of_scores(scores, _told), *rest))
    return out, lse, probs


def _gradients_of_scores(scores, wanted):
    """Room for (dbias, dsinks), where they are wanted, and what the native half has to know of it."""
    if not any(wanted):
        return (None, None), (None, None)
    bias, sinks = scores.bias, scores.sinks
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device) if wanted[0] else None
    dsinks = torch.empty(sinks.shape, dtype=sinks.dtype, device=sinks.device) if wanted[1] else None
    return (dbias, dsinks), (None if dbias is None else _written(dbias), None if dsinks is None else dsinks.data_ptr())


def backward(
    dout,
    q,
    k,
    v,
    out,
    lse,
    dlse,
    settings: Settings,
    state=(0, 0),
    deterministic=False,
    into=None,
    cu_seqlens=None,
    scores=None,
    wanted=(False, False),
    adds=(False, False),
):
    """(dq, dk, dv, dbias, dsinks); the first three written to ``into`` if given, the others None unless ``wanted``. Where
    ``adds`` says so, of dq, and of dk and dv, they are added to what float32 ``into`` holds, on a GPU.

    None for dout or dlse is no gradient of it. What was saved is judged again: much may have happened since.
    """
    if dout is None:
        dout = out.new_zeros(out.shape)
    if not DESCRIBED:
        check_alike(q, k, v, out, dout, lse, dlse, cu_seqlens)
        check_scores(q, scores)
    if q.dtype not in NAMES or q.dim() != sequences.dims(cu_seqlens) or k.dim() != q.dim():
        check_backward(q, k, v, out, dout, lse, dlse, cu_seqlens)
    if into is None:
        (dq, written_q), (dk, written_k), (dv, written_v) = _alike(q), _alike(k), _alike(v)
        into, written = (dq, dk, dv), (written_q, written_k, written_v)
    else:
        written = tuple([_written(x) for x in into])
    of_scores, written_scores = _gradients_of_scores(scores, wanted)
    numbers, alive = _numbers(state)
    workspace, scratch = None, 0
    if q.is_cuda:
        count = None if cu_seqlens is None else sequences.count(cu_seqlens)
        rest = (count, _declared(scores), deterministic, settings)
        size = _native.workspace_bytes(q.get_device(), (q.shape, k.shape, v.shape), *rest)
        workspace = q.new_empty(size, dtype=torch.uint8)
        scratch = workspace.data_ptr()
    at, dtype = _place(q), NAMES[q.dtype]
    if into[0].dtype is not q.dtype:
        dtype = (dtype, NAMES[into[0].dtype], adds)
    rest = ((*written, *written_scores), scratch, deterministic, numbers, settings)
    read = (_lent(q), _lent(k), _lent(v), _lent(out), _lent(dout))
    rows = (_lent(lse), None if dlse is None else _lent(dlse))
    if not _native.backward(at, dtype, read, rows, _starts(cu_seqlens, _lent), _of_scores(scores, _lent), *rest):
        check_backward(q, k, v, out, dout, lse, dlse, cu_seqlens)
        check_scores(q, scores)
        scores = _dense_scores(scores)
        tensors = [dense(x) for x in (q, k, v, out, dout)]
        lse, dlse = dense_rows(lse), None if dlse is None else dense_rows(dlse)
        rows = (_told(lse), None if dlse is None else _told(dlse))
        starts = _starts(cu_seqlens and [dense_rows(x) for x in cu_seqlens], _told)
        read = tuple([_told(x) for x in tensors])
        _expect(_native.backward(at, dtype, read, rows, starts, _of_scores(scores, _told), *rest))
    return (*into, *of_scores)
