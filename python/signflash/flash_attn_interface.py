"""FlashAttention-2's functions: the same names, signatures, defaults and dropout mask, on CPUs too.

Differences, all on purpose:

- ``return_attn_probs`` returns probabilities that are normalised, of exact shape (batch, num_heads, seqlen_q,
  seqlen_k), and defined at ``dropout_p=0`` too; FlashAttention-2 returns unnormalised exponentials, padded to
  multiples of 128, and nothing at 0. In both the sign says dropped.
- float32 works on the CPU, and empty batches everywhere.
- A window with a bound on the left alone has none on the right; FlashAttention-2's then ends seqlen_k keys behind the
  diagonal, which matters to queries that face what is before the first key.
- ``max_seqlen_q`` and ``max_seqlen_k`` decide nothing: the numbers in cu_seqlens do.
- softcap and dropout may be given together, which FlashAttention-2 refuses; v may have a head_dim of its own.
- What is not there raises NotImplementedError: paged KV (``block_table``) and KV caches.
"""

from __future__ import annotations

import numbers
from typing import Any, Optional, Tuple

from ._attention import torch_half
from ._settings import (
    UNBOUNDED,
    Settings,
    check_causal,
    check_dropout_p,
    check_softcap,
    check_softmax_scale,
    check_window,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """Attention of q (batch, seqlen_q, num_heads, head_dim), k and v (batch, seqlen_k, num_heads_k, head_dim).

    Dropout drops what FlashAttention-2 drops, and has its scale, ``1 / (1 - dropout_p)``; pass 0.0 in evaluation.
    ``causal`` is aligned to the bottom right. With ``window_size=(left, right)`` query i sees the keys from
    ``i + seqlen_k - seqlen_q - left`` to ``i + seqlen_k - seqlen_q + right``; -1 is no bound, and ``causal`` makes the
    right side 0.

    With ``softcap`` scores become ``softcap * tanh(score / softcap)``; 0.0 is none. ``alibi_slopes``, (num_heads) or (batch,
    num_heads) float32, then take ``slope * |i + seqlen_k - seqlen_q - j|`` from them, and get no gradient.

    Returns out (batch, seqlen_q, num_heads, head_dim); with ``return_attn_probs`` (out, softmax_lse, S_dmask):
    softmax_lse (batch, num_heads, seqlen_q) float32, +inf where a query sees no key, and S_dmask as this module says.
    """
    tensors = (q, k, v)
    return _run(
        _PLAIN,
        tensors,
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
    )


def flash_attn_kvpacked_func(
    q,
    kv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_func` of q and kv (batch, seqlen_k, 2, num_heads_k, head_dim); the gradient is packed alike."""
    tensors = (q, kv)
    return _run(
        _KV_PACKED,
        tensors,
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
    )


def flash_attn_qkvpacked_func(
    qkv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_func` of qkv (batch, seqlen, 3, num_heads, head_dim); the gradient is packed alike."""
    tensors = (qkv,)
    return _run(
        _QKV_PACKED,
        tensors,
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
    )


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """:func:`flash_attn_func` of packed sequences, each of a length of its own.

    q is (total_q, num_heads, head_dim), k and v (total_k, num_heads_k, head_dim). Sequence b has the queries from
    ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1] - 1`` and the keys that cu_seqlens_k says: int32 (batch + 1,) on q's
    device. It attends to itself alone, aligned to its own bottom right, and drops what sequence b of a dense batch
    drops. ``max_seqlen_q`` and ``max_seqlen_k`` are taken, and decide nothing. Rows behind the last sequence are 0, and
    so are their gradients.

    Returns out (total_q, num_heads, head_dim); with ``return_attn_probs``, which is for tests and waits for the GPU,
    (out, softmax_lse, S_dmask): softmax_lse (num_heads, total_q) float32, and S_dmask (batch, num_heads, max_seqlen_q,
    max_seqlen_k), 0 where a sequence is shorter.
    """
    if block_table is not None:
        raise NotImplementedError("block_table must be None: a paged KV cache is for inference; use flash_attn for it")
    return _run(
        _PLAIN,
        (q, k, v),
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
        (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
    )


def flash_attn_varlen_kvpacked_func(
    q,
    kv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_varlen_func` of q and kv (total_k, 2, num_heads_k, head_dim); the gradient is packed alike."""
    return _run(
        _KV_PACKED,
        (q, kv),
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
        (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
    )


def flash_attn_varlen_qkvpacked_func(
    qkv,
    cu_seqlens,
    max_seqlen,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_varlen_func` of qkv (total, 3, num_heads, head_dim); the gradient is packed alike."""
    return _run(
        _QKV_PACKED,
        (qkv,),
        (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs),
        (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen),
    )


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """Not there: raises NotImplementedError."""
    raise NotImplementedError(
        "flash_attn_with_kvcache is not there: this package is for training; use flash_attn for decoding"
    )


QKV = "(batch, seqlen, num_heads, head_dim)"
_PLAIN, _KV_PACKED, _QKV_PACKED = 0, 1, 2  # as in _torch/function.py
#: Of each packing, dimensions and meaning of the first tensor and of the last.
_DIMS = (
    ((4, QKV), (4, QKV)),
    ((4, QKV), (5, "(batch, seqlen_k, 2, num_heads_k, head_dim)")),
    ((5, "(batch, seqlen, 3, num_heads, head_dim)"), (5, "(batch, seqlen, 3, num_heads, head_dim)")),
)
TOTAL = "(total, num_heads, head_dim)"
#: The same of packed sequences, which have no batch.
_VARLEN_DIMS = (
    ((3, TOTAL), (3, TOTAL)),
    ((3, TOTAL), (4, "(total_k, 2, num_heads_k, head_dim)")),
    ((4, "(total, 3, num_heads, head_dim)"), (4, "(total, 3, num_heads, head_dim)")),
)


def _window(window_size: Any, seqlen_k: Optional[int]) -> Tuple[int, int]:
    """(left, right): FlashAttention-2 takes any negative number for no bound, and one that reaches all keys."""
    if type(window_size) is tuple and window_size == UNBOUNDED:
        return UNBOUNDED
    try:
        left, right = (int(x) for x in (window_size[0], window_size[1]))
    except (TypeError, IndexError, ValueError):
        raise TypeError(f"window_size must be a pair (left, right) of ints, got {window_size!r}") from None
    if left < 0 or (seqlen_k is not None and left >= seqlen_k):
        left = -1
    if right < 0 or (seqlen_k is not None and right >= seqlen_k):
        right = -1
    return check_window((left, right))


def _check_packed(half, packing, x, dims):
    name, pieces = ("kv", 2) if packing == _KV_PACKED else ("qkv", 3)
    dims, meaning = dims[packing][-1]
    half.checks.check_tensor(name, x, dims, meaning)
    if x.shape[-3] != pieces:
        raise ValueError(f"{name} must be {meaning}, got shape {tuple(x.shape)}")


def _check_max_seqlen(torch: Any, name: str, value: Any) -> None:
    """A number, as FlashAttention-2 wants one; a tensor of one is not read, which would wait for the GPU."""
    if isinstance(value, torch.Tensor):
        fits = value.numel() == 1 and not value.is_floating_point()
    else:
        fits = isinstance(value, (numbers.Integral, getattr(torch, "SymInt", int)))
    if not fits:
        raise TypeError(f"{name} must be an int, the length of the longest sequence, got {value!r}")


def _run(packing, tensors, tail, lengths=None):
    half = torch_half()
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs = tail
    dims = _DIMS if lengths is None else _VARLEN_DIMS
    # What is not packed is judged with the rest, but for q, whose type decides who judges.
    half.checks.check_tensor("qkv" if packing == _QKV_PACKED else "q", tensors[0], *dims[packing][0])
    if packing != _PLAIN:
        _check_packed(half, packing, tensors[-1], dims)
    cu_seqlens = seqlen_k = None
    if lengths is None:
        # The last of the tensors holds the values, whatever the packing; what is no tensor is refused below.
        seqlen_k = tensors[-1].shape[1] if isinstance(tensors[-1], half.torch.Tensor) else 0
    else:
        cu_seqlens = lengths[:2]
        for name, value in zip(("max_seqlen_q", "max_seqlen_k"), lengths[2:]):
            _check_max_seqlen(half.torch, name, value)
    settings = Settings(
        check_dropout_p(dropout_p),
        check_softmax_scale(softmax_scale),
        check_causal(causal),
        *_window(window_size, seqlen_k),
        nominal=True,
        softcap=check_softcap(softcap),
    )
    out, lse, probs, _ = half.attention(
        tensors,
        settings,
        packing,
        cu_seqlens=cu_seqlens,
        deterministic=bool(deterministic),
        return_probs=bool(return_attn_probs),
        joined=None if alibi_slopes is None else (alibi_slopes, None, None, None),
        wants_lse=bool(return_attn_probs),
    )
    if not return_attn_probs:
        return out
    if lengths is not None:
        probs = _as_long_as(probs, *lengths[2:])
    # FlashAttention-2's infinity for rows that see nothing is the positive one.
    return out, half.torch.where(half.torch.isinf(lse), lse.abs(), lse), probs


def _as_long_as(probs, max_seqlen_q, max_seqlen_k):
    """probs (batch, num_heads, the most queries of any, the most keys of any) with room for so many."""
    sizes = (int(max_seqlen_q), int(max_seqlen_k))
    for name, given, longest in zip(("max_seqlen_q", "max_seqlen_k"), sizes, probs.shape[2:]):
        if given < longest:
            raise ValueError(f"{name} must be at least {longest}, the length of the longest sequence, got {given}")
    if tuple(probs.shape[2:]) == sizes:
        return probs
    room = probs.new_zeros((*probs.shape[:2], *sizes))
    room[:, :, : probs.shape[2], : probs.shape[3]] = probs
    return room
