"""Our attention function: what the layers of a model call."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch

from .._settings import Settings
from .._torch.attention import attention
from .._torch.checks import autocast_dtype
from .._torch.padding import padded_attention
from .given import mask_of_numbers
from .mask import REMEDY, Mask, Seen
from .masks import uncompiled

#: Arguments of an attention function that change what is computed, and that are not there.
REFUSED = (
    "softcap",
    "s_aux",
    "sinks",
    "indices",
    "block_indices",
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
#: The largest head_dim that there is a kernel for.
LARGEST_HEAD_DIM = 256

#: Each sequence is a call of its own, at a length that only the mask knows: nothing that a compiler could look through.
_padded_attention = uncompiled(padded_attention)


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
    """(out (batch, seqlen, num_heads, head_dim), probabilities or None) of query (batch, num_heads, seqlen, head_dim).

    Whether it is causal is what the mask says, as it is for Transformers' eager attention. Without a mask it is what
    the caller or the module says.
    """
    _check_arguments(kwargs)
    seen = _seen(module, query, key, attention_mask, is_causal, sliding_window)
    query, key, value = _of_one_dtype(module, query, key, value)
    value_dim = value.shape[-1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = _of_one_head_dim(query, key, value)
    if seen.seqlen_k < key.shape[2]:
        key, value = (x[:, :, : seen.seqlen_k] for x in (key, value))
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    settings, return_probs = Settings(float(dropout), scaling, seen.causal), bool(output_attentions)
    if seen.keys is None:
        out, _, probs, _ = attention(tuple(tensors), settings, return_probs=return_probs)
    else:
        out, probs = _padded_attention(*tensors, seen.keys, settings, return_probs=return_probs)
    return out[..., :value_dim], None if probs is None else probs.abs()


def _check_arguments(kwargs: dict) -> None:
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{name} was given, which is not there; {REMEDY}")


def _seen(module: Any, query: Any, key: Any, mask: Any, is_causal: Optional[bool], window: Optional[int]) -> Seen:
    seqlen_q, seqlen_k = query.shape[2], key.shape[2]
    if isinstance(mask, Mask):
        seen = mask.of(seqlen_q, seqlen_k)
    elif mask is None:
        seen = Seen(_is_causal(module, is_causal, seqlen_q), seqlen_k, None)
    else:
        seen = mask_of_numbers(mask, seqlen_q, seqlen_k).of(seqlen_q, seqlen_k)
    if window is not None and window < seen.seqlen_k:
        raise NotImplementedError(f"sliding_window is {window}, below {seen.seqlen_k} keys: not there; {REMEDY}")
    return seen


def _is_causal(module: Any, is_causal: Optional[bool], seqlen_q: int) -> bool:
    """Where the model made no mask: eager attention is full then, and PyTorch's is causal if the module says so."""
    stated = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if stated is None:
        raise NotImplementedError(
            f"{type(module).__name__} does not say whether it is causal (is_causal), and made no attention mask; {REMEDY}"
        )
    if stated and is_causal is None and seqlen_q > 1:
        raise NotImplementedError(
            f"attention_mask must be None or causal, got None from {type(module).__name__}, which says is_causal=True: eager "
            f"attention would see all keys, and sdpa only those before; {REMEDY}"
        )
    return bool(stated)


def _of_one_head_dim(query: Any, key: Any, value: Any) -> Tuple[Any, Any, Any]:
    """Zeros behind the shorter ones change neither scores nor the other columns of the output."""
    head_dim = max(query.shape[-1], value.shape[-1])
    if head_dim > LARGEST_HEAD_DIM:
        raise NotImplementedError(
            f"the model asks for head_dim {head_dim}, which is above the largest, {LARGEST_HEAD_DIM}; {REMEDY}"
        )
    tensors = (query, key, value)
    return tuple(
        x if x.shape[-1] == head_dim else torch.nn.functional.pad(x, (0, head_dim - x.shape[-1])) for x in tensors
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
