"""Attention of the sequences of a padded or packed batch, in one call."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch

from .._attention import attention
from .layout import Packed
from .mask import REMEDY, uncompiled


def attention_of_sequences(q: Any, k: Any, v: Any, packed: Packed, settings: Dict, return_probs: bool) -> Any:
    """(out, probs or None) of q (batch, seqlen_q, num_heads, head_dim) and k, v (batch, seqlen_k, num_heads_k,
    head_dim).

    Queries of no sequence get zeros. The dropout mask of a sequence is FlashAttention-2's of the sequence of its
    number.
    """
    shape = q.shape
    if packed.cu_seqlens_q.device != q.device:
        packed = packed.to(q.device)
    tensors = _rows(q, packed.order_q), _rows(k, packed.order_k), _rows(v, packed.order_k)
    settings = dict(settings, cu_seqlens_q=packed.cu_seqlens_q, cu_seqlens_k=packed.cu_seqlens_k)
    if return_probs:
        out, probs = _with_probs(tensors, settings)
        probs = _of_rows(probs, packed, (*shape[:2], k.shape[1]))
    else:
        out, probs = attention(*tensors, **settings), None
    if packed.back_q is not None:
        out = out.index_select(0, packed.back_q)
    return out.view(*shape[:-1], out.shape[-1]), probs


def _rows(x: Any, order: Any) -> Any:
    """(batch * seqlen, heads, head_dim), in the order of the sequences."""
    x = x.reshape(-1, *x.shape[2:])
    return x if order is None else x.index_select(0, order)


@uncompiled
def _with_probs(tensors: Any, settings: Dict) -> Any:
    """Their shape follows from the lengths, which a compiler does not know."""
    return attention(*tensors, **settings, return_probs=True)


@uncompiled
def _of_rows(probs: Any, packed: Packed, sizes: Tuple[int, int, int]) -> Any:
    """Probabilities (sequences, num_heads, longest, longest) as (batch, num_heads, seqlen_q, seqlen_k), zero where a
    query is of no sequence or a key of another."""
    batch, seqlen_q, seqlen_k = sizes
    found = probs.new_zeros((batch * seqlen_q, probs.shape[1], seqlen_k))
    orders = ((packed.order_q, batch * seqlen_q), (packed.order_k, batch * seqlen_k))
    rows, keys = (torch.arange(size) if order is None else order.cpu() for order, size in orders)
    starts = packed.cu_seqlens_q.tolist(), packed.cu_seqlens_k.tolist()
    for i, (q0, q1, k0, k1) in enumerate(zip(starts[0], starts[0][1:], starts[1], starts[1][1:])):
        if q0 == q1 or k0 == k1:
            continue
        row = int(keys[k0]) // seqlen_k
        if int(keys[k1 - 1]) // seqlen_k != row:
            raise NotImplementedError(
                f"output_attentions=True needs sequences within a row of the batch, got one from row {row} into the next "
                f"(cu_seq_lens_k); make the batch 1, or {REMEDY}"
            )
        at = torch.meshgrid(rows[q0:q1], keys[k0:k1] - row * seqlen_k, indexing="ij")
        found.transpose(1, 2)[at] = probs[i, :, : q1 - q0, : k1 - k0].permute(1, 2, 0)
    return found.view(batch, seqlen_q, -1, seqlen_k).transpose(1, 2)
