"""What a call costs, for torch.utils.flop_counter: counted as PyTorch counts its own attention, whatever a mask hides.

Of packed sequences each is counted at its own length, which is read, as PyTorch reads those of its own: on a GPU the
counter, and only the counter, waits for it. Where no numbers are there to be read (fake tensors) it is what one
sequence of all rows would cost, which is the most that any lengths can.
"""

from __future__ import annotations

import torch


def _pairs(q, k, cu_seqlens_q, cu_seqlens_k) -> int:
    """How many scores a head has."""
    if cu_seqlens_q is None:
        return q.shape[0] * q.shape[1] * k.shape[1]
    if not _has_numbers(cu_seqlens_q):
        return q.shape[0] * k.shape[0]
    lengths = [x.diff().tolist() for x in (cu_seqlens_q, cu_seqlens_k)]
    return sum(of_q * of_k for of_q, of_k in zip(*lengths))


def _has_numbers(x) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return not isinstance(x, FakeTensor) and not x.is_meta


def _of_products(q, k, v, with_q, with_v, cu_seqlens_q, cu_seqlens_k) -> int:
    """Of so many that have the head_dim of q and k, and so many that have v's."""
    head_dims = with_q * q.shape[-1] + with_v * v.shape[-1]
    return 2 * q.shape[-2] * head_dims * _pairs(q, k, cu_seqlens_q, cu_seqlens_k)


def forward(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, *args, **kwargs) -> int:
    """Two matrix products: scores, out."""
    return _of_products(q, k, v, 1, 1, cu_seqlens_q, cu_seqlens_k)


def backward(dout, q, k, v, out, lse, cu_seqlens_q=None, cu_seqlens_k=None, *args, **kwargs) -> int:
    """Five: the scores again, dq and dk; dp and dv."""
    return _of_products(q, k, v, 3, 2, cu_seqlens_q, cu_seqlens_k)


def register() -> None:
    """Makes them known to the counter, which PyTorch has since 2.1."""
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.signflash.attention_forward, get_raw=True)(forward)
    register_flop_formula(torch.ops.signflash.attention_backward, get_raw=True)(backward)
