"""Our mask function: what Transformers calls once a forward for each kind of attention in a model."""

from __future__ import annotations

import contextlib
from typing import Any, Optional

import torch

from .mask import Mask, uncompiled
from .patterns import Positions, pattern_of, values_of
from .values import Unlike


@uncompiled
def attention_mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Any = None,
    device: Any = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Mask:
    """The mask of q_length queries from position q_offset on and kv_length keys from kv_offset on.

    attention_mask is (batch, seqlen), nonzero for what counts, or a mask of ours. What no pattern says is kept entry by
    entry, which takes a byte for each query and key.
    """
    if isinstance(attention_mask, Mask):
        # generate() and composite models make masks in advance, and the model inside asks anew: what was made stands,
        # as Transformers takes masks of four dimensions.
        return attention_mask
    padding = None if attention_mask is None else attention_mask.to(torch.bool)
    first = int(q_offset)
    at = Positions(batch_size, q_length, kv_length, first, kv_offset, padding, device, use_vmap)
    # Here the GPU is waited for, once a mask: how sequences lie is then known to all layers.
    keys = None if padding is None else _keys(padding.cpu(), kv_offset, kv_length)
    settings = dict(first=first - kv_offset, device=device, values=lambda: values_of(mask_function, at))
    try:
        pattern = pattern_of(mask_function, at, keys)
    except Unlike:
        entries = values_of(mask_function, at)
        return Mask(batch_size, q_length, kv_length, entries=entries, **dict(settings, values=lambda: entries))
    mask = Mask(batch_size, q_length, kv_length, pattern, keys=keys, **settings)
    with contextlib.suppress(NotImplementedError):
        mask.of(q_length, kv_length)
    return mask


def _keys(padding: torch.Tensor, first: int, seqlen_k: int) -> Optional[torch.Tensor]:
    """Which of the keys count, bool (batch, seqlen_k); None if all do."""
    keys = padding[:, first : first + seqlen_k]
    if keys.shape[1] < seqlen_k:
        keys = torch.nn.functional.pad(keys, (0, seqlen_k - keys.shape[1]))
    return None if bool(keys.all()) else keys
