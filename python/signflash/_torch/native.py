"""Tensors to addresses: allocates results with PyTorch and runs the native half on the tensor's device and stream."""

from __future__ import annotations

import torch

from .. import _native
from .._settings import Settings
from .checks import NAMES, check_backward

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


def dense(x):
    """With a last stride of 1, which costs a copy if it was not, without lazy negation, aligned, and all of it in memory."""
    if x.stride()[-1] != 1 or x.is_neg():
        return _made_dense(x)
    size, address = x.element_size(), x.data_ptr()
    last = x.storage_offset() + (x.numel() if x.is_contiguous() else _extent(x))
    return x if address and not address % size and last * size <= _storage(x).nbytes() else _made_dense(x)


def dense_rows(x):
    """lse or its gradient, the same but without gaps."""
    return dense(x if x.is_contiguous() else x.contiguous())


def _extent(x) -> int:
    """How many elements lie between the first and one past the last."""
    extent = 1
    for size, stride in zip(x.shape, x.stride()):
        if size == 0:
            return 0
        extent += (size - 1) * stride
    return extent


def _made_dense(x):
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
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    # A view into bytes may begin between two elements; new memory does not.
    return x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % x.element_size() else x


def empty(x):
    """A dense tensor as x."""
    return torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)


def _place(x):
    if x.is_cuda:
        index = x.get_device()
        return (index, _stream(index))
    return (-1, torch.get_num_threads())


def _tensor(x):
    """Whoever calls keeps x alive until the native call has returned."""
    return (x.data_ptr(), x.shape, x.stride())


def _rng_state(settings, rng_state):
    """A state in memory: its address on CUDA, its numbers on the CPU."""
    if rng_state.is_cuda:
        return settings, rng_state.data_ptr()
    seed, offset = (int(x) & 0xFFFF_FFFF_FFFF_FFFF for x in rng_state.tolist())
    return settings._replace(seed=seed, offset=offset), 0


def forward(q, k, v, settings: Settings, rng_state=None, return_probs: bool = False, out=None):
    """(out, lse, probs or None) of q (batch, seqlen_q, num_heads, head_dim), dense in the last dimension."""
    batch, seqlen_q, num_heads, _ = q.shape
    if out is None:
        out = empty(q)
    lse = q.new_empty((batch, num_heads, seqlen_q), dtype=torch.float32)
    probs = q.new_empty((batch, num_heads, seqlen_q, k.shape[1])) if return_probs else None
    address = 0
    if rng_state is not None:
        rng_state = dense_rows(rng_state)
        settings, address = _rng_state(settings, rng_state)
    _native.forward(
        _place(q),
        NAMES[q.dtype],
        _tensor(q),
        _tensor(k),
        _tensor(v),
        _tensor(out),
        lse.data_ptr(),
        None if probs is None else _tensor(probs),
        address,
        settings,
    )
    return out, lse, probs


def backward(dout, q, k, v, out, lse, settings: Settings, rng_state=None, deterministic=False, into=None, dlse=None):
    """(dq, dk, dv) of tensors that are dense in the last dimension; written to ``into`` if given.

    None for dout or dlse is no gradient of it. What was saved is judged again: much may have happened since.
    """
    if into is None:
        into = [empty(x) for x in (q, k, v)]
    dout = out.new_zeros(out.shape) if dout is None else dense(dout)
    lse, dlse = dense_rows(lse), None if dlse is None else dense_rows(dlse)
    check_backward(q, k, v, out, dout, lse, dlse)
    address = 0
    if rng_state is not None:
        rng_state = dense_rows(rng_state)
        settings, address = _rng_state(settings, rng_state)
    workspace = None
    if q.is_cuda:
        size = _native.workspace_bytes(q.get_device(), q.shape, k.shape, deterministic, settings)
        workspace = q.new_empty(size, dtype=torch.uint8)
    _native.backward(
        _place(q),
        NAMES[q.dtype],
        (_tensor(q), _tensor(k), _tensor(v), _tensor(out), _tensor(dout)),
        lse.data_ptr(),
        0 if dlse is None else dlse.data_ptr(),
        tuple([_tensor(x) for x in into]),
        0 if workspace is None else workspace.data_ptr(),
        deterministic,
        address,
        settings,
    )
    return tuple(into)
