"""Hugging Face Transformers: ``attn_implementation="signflash"``.

Dropout is honoured, padding is computed exactly (each sequence at its own length), and what cannot be computed is refused:
nothing that changes the result is ignored.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils, modeling_utils

from ._torch.attention import attention
from ._torch.checks import autocast_dtype
from ._torch.padding import padded_attention

NAME = "signflash"

#: Arguments of an attention function that change what is computed, and that are not there.
REFUSED = (
    "softcap",
    "s_aux",
    "position_bias",
    "cache",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "head_mask",
    "score_mod",
    "block_mask",
)
REMEDY = "use attn_implementation='eager' or 'sdpa' for this model"


#: Looking into a mask function, and at the mask, is not for the compiler.
_uncompiled = torch.compiler.disable if hasattr(torch, "compiler") else lambda function: function


def register() -> None:
    """Makes the name known to Transformers."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask_of)
    _need_no_flash_attn()


def _need_no_flash_attn() -> None:
    """Transformers 5 takes every name with "flash" in it for a flavour of the package flash_attn, which it then imports
    when a model is made. Ours is registered already: there is nothing to import."""
    original = getattr(modeling_utils, "lazy_import_flash_attention", None)
    if original is None or hasattr(original, "_of_signflash"):
        return

    @functools.wraps(original)
    def lazy_import_flash_attention(implementation, *args, **kwargs):
        return None if implementation == NAME else original(implementation, *args, **kwargs)

    lazy_import_flash_attention._of_signflash = True
    modeling_utils.lazy_import_flash_attention = lazy_import_flash_attention


@_uncompiled
def attention_mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Any = None,
    device: Any = None,
    **kwargs: Any,
) -> Any:
    """None if every position counts, or bool (batch, seqlen_k), where keys beyond seqlen_k do not count either.

    Patterns other than causal and full are refused.
    """
    # A cache may have room to spare: what is beyond the queries holds nothing yet, and is cut off.
    seqlen_k = kv_length
    if _is_causal(mask_function, kv_length):
        seqlen_k = min(kv_length, int(q_offset) + q_length - kv_offset)
    if attention_mask is not None:
        attention_mask = attention_mask[:, -kv_length:].to(torch.bool)
        seqlen_k = min(seqlen_k, attention_mask.shape[1])
        attention_mask = attention_mask[:, :seqlen_k]
    if seqlen_k == kv_length and (attention_mask is None or bool(attention_mask.all())):
        return None
    if attention_mask is None:
        return torch.ones((batch_size, seqlen_k), dtype=torch.bool, device=device)
    return attention_mask


def _is_causal(mask_function: Any, kv_length: int) -> bool:
    mask_function = _without_packing(mask_function)
    if mask_function is None or mask_function is masking_utils.causal_mask_function:
        return True
    if mask_function is masking_utils.bidirectional_mask_function:
        return False
    window = None
    overlay, rest = _parts(mask_function)
    if rest is masking_utils.causal_mask_function:
        window = _held(overlay, "sliding_window_overlay", "sliding_window")
    if window is not None and window >= kv_length:
        return True
    what = f"a sliding window of {window}" if window is not None else _name(mask_function)
    raise NotImplementedError(f"the model asks for {what}; only causal and full attention are there, {REMEDY}")


def _without_packing(mask_function: Any) -> Any:
    """Compiled models always ask for packed sequences, also where each row holds one: that is the plain pattern.

    Versions of Transformers differ in the order of the two, and in whether positions are counted anew in each sequence.
    """
    parts = _parts(mask_function)
    for packing, pattern in (parts, parts[::-1]):
        sequences = _held(packing, "packed_sequence_mask_function", "packed_sequence_mask")
        if sequences is not None:
            one_a_row = not bool((sequences[:, -1] != 0).any())
            inner = _held(pattern, "remap_positions_for_packed_sequence", "mask_function") or pattern
            return inner if one_a_row else mask_function
    return mask_function


def _parts(mask_function: Any) -> Any:
    """The two functions whose intersection it is, or two times None."""
    parts = _held(mask_function, "and_masks", "mask_functions")
    return parts if isinstance(parts, tuple) and len(parts) == 2 else (None, None)


def _held(function: Any, maker: str, variable: str) -> Any:
    """What a function that Transformers' `maker` returned holds in its `variable`; None if it is no such function."""
    if not _name(function).startswith(f"{maker}.<locals>"):
        return None
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    return held[variable].cell_contents if variable in held else None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "a mask function")


def attention_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    is_causal: Optional[bool] = None,
    sliding_window: Optional[int] = None,
    output_attentions: Optional[bool] = None,
    **kwargs: Any,
) -> Any:
    """(out (batch, seqlen, num_heads, head_dim), probabilities or None) of query (batch, num_heads, seqlen, head_dim)."""
    _check(attention_mask, sliding_window, key.shape[2], kwargs)
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if causal is None:
        raise NotImplementedError(f"{type(module).__name__} does not say whether it is causal (is_causal); {REMEDY}")
    query, key, value = _of_one_dtype(module, query, key, value)
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    if value_dim < head_dim:
        value = torch.nn.functional.pad(value, (0, head_dim - value_dim))
    if attention_mask is not None:
        key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    settings = dict(
        causal=bool(causal), dropout_p=float(dropout), softmax_scale=scaling, return_probs=bool(output_attentions)
    )
    if attention_mask is None:
        out, _, probs, _ = attention(tuple(tensors), **settings)
    else:
        out, probs = padded_attention(*tensors, attention_mask, **settings)
    return out[..., :value_dim], None if probs is None else probs.abs()


def _check(attention_mask: Any, sliding_window: Optional[int], seqlen_k: int, kwargs: dict) -> None:
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{name} was given, which is not there; {REMEDY}")
    if sliding_window is not None and sliding_window < seqlen_k:
        raise NotImplementedError(f"sliding_window is {sliding_window}, below {seqlen_k} keys: not there; {REMEDY}")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise NotImplementedError(
            f"attention_mask must be None or (batch, seqlen) of padding, got shape {tuple(attention_mask.shape)}; {REMEDY}"
        )


def _of_one_dtype(module: Any, query: Any, key: Any, value: Any) -> Any:
    """Norms and rotations in float32 leave float32 behind in half-precision models: back to the weights' dtype."""
    if query.dtype == key.dtype == value.dtype and not (query.is_cuda and query.dtype is torch.float32):
        return query, key, value
    dtype = value.dtype
    if dtype is torch.float32 and autocast_dtype(query.device.type) is None:
        weights = (layer.weight.dtype for layer in module.modules() if isinstance(layer, torch.nn.Linear))
        dtype = next(weights, dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)
