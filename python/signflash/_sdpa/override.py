"""What PyTorch calls in place of its own kernels, and how that is registered and taken back.

``F.scaled_dot_product_attention`` chooses among its kernels in C++. On the CPU it has one for dropout, the plain
formula ``_scaled_dot_product_attention_math``, which is a composition of others; a kernel of ours for it, under
autograd's key, leaves all other choices as they are. Nothing of F is replaced, so that it does not matter who imported
what when.
"""

from __future__ import annotations

import warnings

import torch

from . import fused, masks, native, notes, rings, run, takes
from .call import Call

MATH = "_scaled_dot_product_attention_math"
#: Autograd's keys, and no other: an operator with kernels below them is no composition to exporters any more. So calls
#: of inference_mode, which skip autograd, stay with PyTorch.
KEYS = ("AutogradCPU", "AutogradCUDA")


def attend(call: Call):
    """(out, lse) of a call that is ours; None for one that stays with PyTorch."""
    rings.refuse(call)
    reason, seen = takes.why_not(call), None
    if reason is None:
        seen = masks.CAUSAL if call.is_causal else masks.ALL
        if call.attn_mask is not None:
            seen = masks.look(call.attn_mask, call.query.shape[-2], call.key.shape[-2])
            if seen is masks.HIDES_A_ROW:
                reason = takes.NOTHING_SEEN
    if reason is not None:
        notes.left(call, reason)
        return None
    notes.taken(call, seen)
    return run.run(call, seen)


def math(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    dropout_mask=None,
    *,
    scale=None,
    enable_gqa=False,
):
    """(out, attention weights): PyTorch's operator. Ours has no weights, which nobody sees but who calls this by name:
    they are NaN."""
    given = (query, key, value, attn_mask, dropout_p, is_causal, dropout_mask)
    found = None
    if dropout_mask is None:
        found = attend(Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa))
    if found is not None:
        return found[0], _no_weights(query, key)
    rest = {} if scale is None else {"scale": scale}
    if enable_gqa:
        rest["enable_gqa"] = True
    return torch.ops.aten._scaled_dot_product_attention_math.default.decompose(*given, **rest)


def math_of_1_13(query, key, value, attn_mask=None, dropout_p=0.0, need_attn_weights=False, is_causal=False):
    """The same of PyTorch 1.13."""
    given = (query, key, value, attn_mask, dropout_p, need_attn_weights, is_causal)
    call = Call(query, key, value, attn_mask, dropout_p, is_causal)
    found = None
    if not need_attn_weights:
        found = attend(call)
    elif dropout_p > 0.0:
        notes.left(call, takes.WEIGHTS)
    if found is not None:
        return found[0], query.new_empty(0)
    return torch.ops.aten._scaled_dot_product_attention_math.default.decompose(*given)


def _no_weights(query, key):
    """Of the right shape, in no memory, and nothing that could be taken for a number."""
    return query.detach().new_full((), float("nan")).expand(*query.shape[:-1], key.shape[-2])


class Registered:
    """Ours while it lives."""

    def __init__(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        kernel = math_of_1_13 if "need_attn_weights" in _schema(MATH) else math
        for key in KEYS if _has_cuda() else KEYS[:1]:
            self._library.impl(MATH, kernel, key)
        self._native = None
        if native.is_there():
            self._native = native.register(fused.EFFICIENT, fused.CUDNN)
        elif _has_cuda() and hasattr(torch.library, "get_kernel"):
            self._register_fused()
        _forget_kernels()

    def _register_fused(self) -> None:
        with warnings.catch_warnings():
            # PyTorch tells that kernels of its own are overridden: this is what was asked for.
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for kernel in fused.KERNELS:
                if hasattr(torch.ops.aten, kernel.name):
                    own = torch.library.get_kernel(f"aten::{kernel.name}", "CUDA")
                    self._library.impl(kernel.name, kernel(own), "CUDA", with_keyset=True)

    def remove(self) -> None:
        library, self._library = self._library, None
        if hasattr(library, "_destroy"):
            library._destroy()
        if self._native is not None:
            self._native.remove()
        _forget_kernels()


def _forget_kernels() -> None:
    """Tracers remember in Python which kernel a key of an operator has."""
    for name in (MATH, *[kernel.name for kernel in fused.KERNELS]):
        operator = getattr(getattr(torch.ops.aten, name, None), "default", None)
        if hasattr(operator, "_dispatch_cache"):
            operator._dispatch_cache.clear()


def _schema(name) -> str:
    return str(getattr(torch.ops.aten, name).default._schema)


def _has_cuda() -> bool:
    return torch.version.cuda is not None
