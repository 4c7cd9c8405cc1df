"""FlashAttention-2's functions: the same names, signatures, defaults and dropout mask, on CPUs too.

Differences, all on purpose:

- ``return_attn_probs`` returns probabilities that are normalised, of exact shape (batch, num_heads, seqlen_q,
  seqlen_k), and defined at ``dropout_p=0`` too; FlashAttention-2 returns unnormalised exponentials, padded to
  multiples of 128, and nothing at 0. In both the sign says dropped.
- float32 works on the CPU, and empty batches everywhere.
- What is not there yet raises NotImplementedError: variable lengths, sliding windows, softcap, ALiBi, KV caches.
"""

from __future__ import annotations

import numbers
from typing import Any

from ._attention import torch_half
from ._settings import Settings, check_dropout_p, check_softmax_scale

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
    ``causal`` is aligned to the bottom right. ``window_size`` may be unbounded or the causal one, ``(-1, 0)``.

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
    """Not there yet: raises NotImplementedError."""
    raise _not_yet("flash_attn_varlen_func")


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
    """Not there yet: raises NotImplementedError."""
    raise _not_yet("flash_attn_varlen_kvpacked_func")


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
    """Not there yet: raises NotImplementedError."""
    raise _not_yet("flash_attn_varlen_qkvpacked_func")


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


def _not_yet(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name} is not there yet: packed sequences of different lengths are not computed. Call flash_attn_func on each "
        "sequence, or on groups of equal length; signflash.attention(..., shard=Shard(first_batch=i)) drops what it "
        "drops in sequence i of the packed call"
    )


UNBOUNDED = (-1, -1)


def _check_window(window_size: Any, causal: bool, seqlen_k: int) -> bool:
    """Whether it is the causal one; other windows than this and the unbounded one are refused."""
    if type(window_size) is tuple and window_size == UNBOUNDED:
        return causal
    try:
        left, right = (int(x) for x in (window_size[0], window_size[1]))
    except (TypeError, IndexError, ValueError):
        raise TypeError(f"window_size must be a pair (left, right) of ints, got {window_size!r}") from None
    if left >= seqlen_k:
        left = -1
    if right >= seqlen_k:
        right = -1
    right = 0 if causal else right
    if left >= 0 or right > 0:
        raise NotImplementedError(
            f"window_size must be (-1, -1), or (-1, 0) for causal, got ({left}, {right}): sliding windows are not there yet"
        )
    return right == 0


def _check_absent(softcap: Any, alibi_slopes: Any) -> None:
    if type(softcap) is not float and not isinstance(softcap, numbers.Real):
        raise TypeError(f"softcap must be a float, got {type(softcap).__name__}")
    if softcap != 0.0:
        raise NotImplementedError(f"softcap must be 0.0, got {softcap}: soft-capped scores are not there yet")
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes must be None: ALiBi is not there yet")


def _check_packed(half, packing, x):
    name, pieces = ("kv", 2) if packing == _KV_PACKED else ("qkv", 3)
    dims, meaning = _DIMS[packing][-1]
    half.checks.check_tensor(name, x, dims, meaning)
    if x.shape[2] != pieces:
        raise ValueError(f"{name} must be {meaning}, got shape {tuple(x.shape)}")


def _run(packing, tensors, tail):
    half = torch_half()
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs = tail
    # What is not packed is judged with the rest, but for q, whose type decides who judges.
    half.checks.check_tensor("qkv" if packing == _QKV_PACKED else "q", tensors[0], *_DIMS[packing][0])
    if packing != _PLAIN:
        _check_packed(half, packing, tensors[-1])
    _check_absent(softcap, alibi_slopes)
    # The last of the tensors holds the values, whatever the packing; what is no tensor is refused below.
    seqlen_k = tensors[-1].shape[1] if isinstance(tensors[-1], half.torch.Tensor) else 0
    causal = _check_window(window_size, bool(causal), seqlen_k)
    out, lse, probs, _ = half.attention(
        tensors,
        Settings(check_dropout_p(dropout_p), check_softmax_scale(softmax_scale), causal, nominal=True),
        packing,
        deterministic=bool(deterministic),
        return_probs=bool(return_attn_probs),
    )
    if not return_attn_probs:
        return out
    # FlashAttention-2's infinity for rows that see nothing is the positive one.
    return out, half.torch.where(half.torch.isinf(lse), lse.abs(), lse), probs
