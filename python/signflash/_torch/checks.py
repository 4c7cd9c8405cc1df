"""Judges tensors by name. Shapes that must fit each other are judged by the native half."""

from __future__ import annotations

import torch

from .. import _native
from . import sequences
from .paths import refuse_kinds

#: PyTorch's own; the attribute of Tensor that others read may be somebody else's, made for another PyTorch.
_table = getattr(torch._C, "_dlpack_exchange_api", lambda: None)()
#: Whether tensors describe themselves to the native half: where they lie, and of which dtype and on which device.
DESCRIBED = _table is not None and _native.exchange(torch.Tensor, _table)

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
IS_AMD = torch.version.hip is not None
HALF = (torch.float16, torch.bfloat16)
QKV_DIMS = "(batch, seqlen, num_heads, head_dim)"
PACKED_DIMS = "(total, num_heads, head_dim)"


def check_tensor(name: str, x, dims: int = 4, meaning: str = QKV_DIMS) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor as q is, got {type(x).__name__}; convert it with torch.as_tensor"
        )
    if x.dim() != dims:
        raise ValueError(
            f"{name} must have {dims} dimensions {meaning}, got shape {tuple(x.shape)}; use view or unsqueeze"
        )


def check_qkv(q, k, v, cu_seqlens=None) -> None:
    """That these tensors can be computed with. They are tensors."""
    if not _is_good(q, k, v, sequences.dims(cu_seqlens)):
        check_kinds(q, k, v, cu_seqlens)
    if cu_seqlens is not None:
        sequences.check(q, cu_seqlens)


def check_kinds(q, k, v, cu_seqlens=None) -> None:
    """The same, one by one, for anything."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_operand(name, x, cu_seqlens)
        if x.layout is not torch.strided and not getattr(x, "is_nested", False):
            raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}; use to_dense()")
    refuse_kinds((("q", q), ("k", k), ("v", v)))
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}; use {name}.to(q.dtype)")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}; use {name}.to(q.device)")
    check_dtype(q)
    if cu_seqlens is not None:
        sequences.check(q, cu_seqlens)


def check_operand(name: str, x, cu_seqlens) -> None:
    """That it is a tensor with the dimensions of q."""
    if cu_seqlens is None:
        check_tensor(name, x)
    else:
        check_tensor(name, x, 3, f"{PACKED_DIMS} with cu_seqlens")


def _is_good(q, k, v, dims) -> bool:
    """What most calls are, found out quickly; the rest is judged one by one. The tensors are plain ones.

    The native half judges how k and v lie, and their kind if they describe themselves; a call that it refuses is
    judged here.
    """
    if q.dim() != dims or q.layout is not torch.strided or q.is_nested:
        return False
    on_gpu = q.is_cuda
    if not (q.dtype in HALF and not IS_AMD if on_gpu else q.is_cpu and q.dtype in NAMES):
        return False
    if DESCRIBED:
        return True
    if not q.dtype is k.dtype is v.dtype:
        return False
    if on_gpu:
        # The number of the GPU, or -1: quicker than its name.
        return k.is_cuda and v.is_cuda and q.get_device() == k.get_device() == v.get_device()
    return k.is_cpu and v.is_cpu


def check_shapes(q, k, v) -> None:
    """What the native half judges, for tensors that it does not see."""
    *batch, _, num_heads, head_dim = q.shape
    *_, seqlen_k, num_heads_k, _ = k.shape
    meaning = QKV_DIMS if batch else PACKED_DIMS
    expected = (*batch, seqlen_k, num_heads_k)
    for name, x, sizes in (("k", k, (*expected, head_dim)), ("v", v, expected)):  # v has a head_dim of its own
        for dim, size in enumerate(sizes):
            _check_value(
                x.shape[dim] == size, f"{name} has another size in dimension {dim} of {meaning} than q and k ask for"
            )
    for of, x in (("", head_dim), (" of v", v.shape[-1])):
        _check_value(x >= 1, f"head_dim{of} must be from 1 to 256, got 0")
        _check_value(x <= 256, f"head_dim{of} must be from 1 to 256, got more")
    _check_value(num_heads_k >= 1, "num_heads_k must be positive")
    _check_value(num_heads % num_heads_k == 0, "num_heads must be a positive multiple of num_heads_k")


def _check_value(holds, message) -> None:
    if hasattr(torch, "_check_value"):
        torch._check_value(holds, lambda: message)
    elif not holds:
        raise ValueError(message)


def check_alike(q, k, v, out, dout, lse, dlse, cu_seqlens) -> None:
    """What the native half takes for granted of a backward's tensors: one dtype, one device."""
    index = q.get_device()  # -1 is the CPU
    fits = q.dtype is k.dtype is v.dtype is out.dtype is dout.dtype and lse.dtype is torch.float32
    fits = fits and index == k.get_device() == v.get_device() == out.get_device() == dout.get_device() == lse.get_device()
    if fits and dlse is not None:
        fits = dlse.dtype is torch.float32 and dlse.get_device() == index
    if fits and index >= 0:
        fits = all([x is None or x.is_cuda for x in (q, k, v, out, dout, lse, dlse)])
    if not fits or cu_seqlens is not None:
        check_backward(q, k, v, out, dout, lse, dlse, cu_seqlens)


def check_backward(q, k, v, out, dout, lse, dlse, cu_seqlens) -> None:
    """The same one by one, and the shapes that the native half refuses to read."""
    if not q.dtype is k.dtype is v.dtype is out.dtype is dout.dtype:
        kinds = ", ".join(str(x.dtype) for x in (q, k, v, out, dout))
        raise TypeError(f"q, k, v, out and dout must be of one dtype, as in the forward, got {kinds}")
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout)):
        if x.dim() != sequences.dims(cu_seqlens):
            meaning = QKV_DIMS if cu_seqlens is None else PACKED_DIMS
            raise ValueError(
                f"{name} must have {sequences.dims(cu_seqlens)} dimensions {meaning}, as in the forward, got shape "
                f"{tuple(x.shape)}"
            )
    rows = sequences.rows(q, cu_seqlens)
    for name, x in (("lse", lse), ("dlse", dlse)):
        if x is not None and (x.dtype is not torch.float32 or tuple(x.shape) != rows):
            raise ValueError(f"{name} must be float32 of shape {rows}, as in the forward, got {x.dtype} {tuple(x.shape)}")
    for name, x in (("k", k), ("v", v), ("out", out), ("dout", dout), ("lse", lse), ("dlse", dlse)):
        if x is not None and (x.get_device() != q.get_device() or x.is_cuda != q.is_cuda):
            raise ValueError(f"{name} must be on q's device {q.device}, as in the forward, got {x.device}")
    check_dtype(q)
    if cu_seqlens is not None:
        sequences.check(q, cu_seqlens)


def check_dtype(q) -> None:
    kind = q.device.type
    if kind not in ("cpu", "cuda", "meta"):
        raise NotImplementedError(f"q must be on the CPU or a CUDA device, got {q.device}; move q, k and v there")
    if torch.version.hip is not None and kind == "cuda":
        raise NotImplementedError("q is on an AMD GPU; expected an NVIDIA GPU or the CPU, move q, k and v there")
    if q.dtype not in NAMES:
        raise TypeError(f"q must be float16, bfloat16 or (on the CPU) float32, got {q.dtype}; convert q, k and v")
    if kind == "cuda" and q.dtype is torch.float32:
        raise TypeError(
            "q must be float16 or bfloat16 on CUDA, got float32; convert q, k and v, use torch.autocast('cuda'), or "
            "compute on the CPU"
        )


def autocast(q, k, v):
    """q, k, v in the dtype of the autocast region, if there is one: as PyTorch's own attention."""
    dtype = autocast_dtype(q.device.type)
    if dtype is None or not all(isinstance(x, torch.Tensor) for x in (k, v)):
        return q, k, v
    cast = [x.to(dtype) if x.is_floating_point() and x.dtype is not torch.float64 else x for x in (q, k, v)]
    return cast[0], cast[1], cast[2]


def _autocast_by_device(kind: str):
    # Other devices are refused later, in words of our own.
    return torch.get_autocast_dtype(kind) if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else None


def _autocast_before_2_4(kind: str):
    if kind == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


autocast_dtype = _autocast_by_device if hasattr(torch, "get_autocast_dtype") else _autocast_before_2_4
