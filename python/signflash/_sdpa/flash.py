"""Our kernels as PyTorch's flash implementation: what ``F.scaled_dot_product_attention`` then calls on CUDA.

The scale is PyTorch's, ``1 / (1 - p)``, and so are dropout mask and generator: results are those of PyTorch's
FlashAttention.
"""

from __future__ import annotations

import warnings

import torch

from . import below, native
from .below import Given, Like

NAME = "signflash"


class Handle:
    """What PyTorch's registry keeps; dropping the library brings PyTorch's kernels back."""

    def __init__(self, library) -> None:
        self.library = library

    def remove(self) -> None:
        self.library = None


def register():
    if native.is_there():
        return native.register(native.FLASH)
    library = torch.library.Library("aten", "IMPL", "CUDA")
    with warnings.catch_warnings():
        # PyTorch tells that a kernel of its own is overridden: this is what was asked for.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl("_scaled_dot_product_flash_attention", forward, "CUDA")
        library.impl("_scaled_dot_product_flash_attention_backward", backward, "CUDA")
    return Handle(library)


def activate() -> None:
    """Becomes PyTorch's, where it has a place for it (2.10 and newer)."""
    registry = _registry()
    if registry is not None:
        registry.register_flash_attention_impl(NAME, register_fn=register)
        registry.activate_flash_attention_impl(NAME)


def restore() -> None:
    registry = _registry()
    if registry is not None and registry.current_flash_attention_impl() == NAME:
        registry.restore_flash_attention_impl()


def _registry():
    try:
        import torch.nn.attention as registry
        from torch.nn.attention import activate_flash_attention_impl, register_flash_attention_impl  # noqa: F401
    except ImportError:
        return None
    return registry


def forward(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    """(output, logsumexp, None, None, max_q, max_k, rng_state, unused, debug_attn_mask); the last are our probs."""
    out = Like(query)
    given = Given(query, key, value, None, dropout_p, is_causal, scale)
    _, lse, probs, drawn = below.forward(given, out.rows_first, return_debug_mask)
    unused = torch.empty((), dtype=torch.uint64, device=query.device)
    debug_mask = query.new_empty(0) if probs is None else probs
    lengths = query.shape[2], key.shape[2]
    # Nobody reads a state without dropout; while a graph is captured, all that is returned has to be on the GPU.
    state = drawn.as_one() if dropout_p > 0.0 else torch.empty((2,), dtype=torch.uint64, device=query.device)
    return out.filled(), lse, None, None, *lengths, state, unused, debug_mask


def backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state, unused,
    *, scale=None,
):  # fmt: skip
    """(grad_query, grad_key, grad_value)."""
    given = Given(query, key, value, None, dropout_p, is_causal, scale)
    state = rng_state.view(torch.int64) if dropout_p > 0.0 else None
    gradients = [Like(x) for x in (query, key, value)]
    below.backward(given, grad_out, out, logsumexp, state, [x.rows_first for x in gradients])
    return tuple([x.filled() for x in gradients])
