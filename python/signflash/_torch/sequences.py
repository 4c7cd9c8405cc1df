"""Packed sequences: ``cu_seqlens`` is the pair (cu_seqlens_q, cu_seqlens_k), or None where a batch is dense.

Tensors of packed sequences have no batch: q is (total_q, num_heads, head_dim), lse (num_heads, total_q). What the
numbers say is judged by the native half where they lie in the CPU's memory, and by nobody on a GPU, which knows them
alone.
"""

from __future__ import annotations

import torch

NAMES = ("cu_seqlens_q", "cu_seqlens_k")
MEANING = "where each sequence begins, and the last ends"


def check(q, cu_seqlens) -> None:
    """That these can be read beside q, which is a tensor."""
    for name, x in zip(NAMES, cu_seqlens):
        if not isinstance(x, torch.Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor as q is, got {type(x).__name__}; use torch.tensor(numbers, "
                "dtype=torch.int32, device=q.device)"
            )
        if x.dtype is not torch.int32:
            raise TypeError(f"{name} must be int32, got {x.dtype}; use {name}.to(torch.int32)")
        if x.dim() != 1 or x.layout is not torch.strided:
            raise ValueError(f"{name} must be dense, of one dimension, {MEANING}, got shape {tuple(x.shape)} ({x.layout})")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}; use {name}.to(q.device)")
        if not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got stride {x.stride(0)}; use {name}.contiguous()")
    of_q, of_k = (x.shape[0] for x in cu_seqlens)
    if of_q != of_k or of_q == 0:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must have as many numbers, one more than there are sequences, got "
            f"{of_q} and {of_k}"
        )


def count(cu_seqlens):
    """How many sequences."""
    return cu_seqlens[0].shape[0] - 1


def dims(cu_seqlens) -> int:
    """Dimensions of q, k, v and out."""
    return 4 if cu_seqlens is None else 3


def rows(q, cu_seqlens):
    """The shape of lse."""
    if cu_seqlens is None:
        batch, seqlen_q, num_heads, _ = q.shape
        return (batch, num_heads, seqlen_q)
    total_q, num_heads, _ = q.shape
    return (num_heads, total_q)
