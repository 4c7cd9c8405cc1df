"""Tensors to addresses: allocates results with PyTorch and runs the native half on the tensor's device and stream."""

from __future__ import annotations

import torch

from .. import _native
from .._settings import Settings
from .checks import NAMES

if hasattr(torch._C, "_cuda_getCurrentRawStream"):
    _stream = torch._C._cuda_getCurrentRawStream  # a tenth of the time of torch.cuda.current_stream
else:

    def _stream(index):
        return torch.cuda.current_stream(index).cuda_stream


def dense(x):
    """With a last stride of 1, which costs a copy if it was not, and without lazy negation."""
    if x.stride(-1) == 1 and not x.is_neg():
        return x
    if x.is_neg():
        x = x.resolve_neg()
    if x.numel() == 0:
        return x.new_empty(x.shape)  # such a tensor may have any strides, and keeps them when made contiguous
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


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
    """(dq, dk, dv); written to ``into`` if given. None for dout or dlse is no gradient of it."""
    if into is None:
        into = [empty(x) for x in (q, k, v)]
    dout = out.new_zeros(out.shape) if dout is None else dense(dout)
    if dlse is not None:
        dlse = dlse.contiguous()
    address = 0
    if rng_state is not None:
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
