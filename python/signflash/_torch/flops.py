"""What a call costs, for torch.utils.flop_counter: counted as PyTorch counts its own attention, causal or not."""

from __future__ import annotations

import torch


def _of_one_product(q_shape, k_shape) -> int:
    batch, seqlen_q, num_heads, head_dim = q_shape
    return 2 * batch * num_heads * seqlen_q * k_shape[1] * head_dim


def forward(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """Two matrix products: scores, out."""
    return 2 * _of_one_product(q_shape, k_shape)


def backward(dout_shape, q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """Five: the scores again, dp, dv, dq, dk."""
    return 5 * _of_one_product(q_shape, k_shape)


def register() -> None:
    """Makes them known to the counter, which PyTorch has since 2.1."""
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.signflash.attention_forward)(forward)
    register_flop_formula(torch.ops.signflash.attention_backward)(backward)
