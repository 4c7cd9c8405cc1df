"""Our kernels as PyTorch's flash implementation: what ``F.scaled_dot_product_attention`` then calls on CUDA.

The scale is PyTorch's, ``1 / (1 - p)``, and so are dropout mask and generator: results are those of PyTorch's
FlashAttention.
"""

from __future__ import annotations

import warnings

import torch

from .._settings import Settings, signed
from .._torch import checks, native, random
from . import masks, notes, rings
from .call import Call

NAME = "signflash"


class Handle:
    """What PyTorch's registry keeps; dropping the library brings PyTorch's kernels back."""

    def __init__(self, library) -> None:
        self.library = library

    def remove(self) -> None:
        self.library = None


def register() -> Handle:
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


def _like(x):
    """An empty (batch, heads, seqlen, head_dim) as PyTorch's tracing predicts it, and one for a kernel to write."""
    result = torch.empty_like(x)
    return result, result if result.stride(-1) == 1 or result.shape[-1] == 1 else torch.empty(
        x.shape, dtype=x.dtype, device=x.device
    )


def _rows_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def forward(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    """(output, logsumexp, None, None, max_q, max_k, rng_state, unused, debug_attn_mask); the last are our probs."""
    q, k, v = _rows_first(query, key, value)
    checks.check_qkv(q, k, v)
    if dropout_p > 0.0:
        rings.refuse_in_a_ring()
    if notes.listeners:
        seen = masks.CAUSAL if is_causal else masks.ALL
        notes.taken(Call(query, key, value, None, dropout_p, is_causal, scale), seen)
    seed, offset, state = (0, 0, None) if dropout_p == 0.0 else random.draw_now(q)
    settings = Settings(dropout_p, scale, bool(is_causal), nominal=True)
    out, written = _like(query)
    drawn = (seed, offset) if state is None else state
    _, lse, probs = native.forward(q, k, v, settings, drawn, return_debug_mask, written.transpose(1, 2))
    if written is not out:
        out.copy_(written)
    if state is None:
        # On the CPU: the backward reads it without waiting for the GPU.
        state = torch.tensor([signed(seed), signed(offset)], dtype=torch.int64, device="cpu")
    unused = torch.empty((), dtype=torch.uint64, device=query.device)
    debug_mask = query.new_empty(0) if probs is None else probs
    return out, lse, None, None, query.shape[2], key.shape[2], state.view(torch.uint64), unused, debug_mask


def backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state, unused,
    *, scale=None,
):  # fmt: skip
    """(grad_query, grad_key, grad_value)."""
    q, k, v, o, dout = _rows_first(query, key, value, out, grad_out)
    settings = Settings(dropout_p, scale, bool(is_causal), nominal=True)
    state = rng_state.view(torch.int64) if dropout_p > 0.0 else (0, 0)
    gradients = [_like(x) for x in (query, key, value)]
    into = [written.transpose(1, 2) for _, written in gradients]
    deterministic = torch.are_deterministic_algorithms_enabled()
    native.backward(dout, q, k, v, o, logsumexp, None, settings, state, deterministic, into)
    for result, written in gradients:
        if written is not result:
            result.copy_(written)
    return tuple(result for result, _ in gradients)
