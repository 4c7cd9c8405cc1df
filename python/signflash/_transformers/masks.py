"""Our mask function: what Transformers calls once a forward for each kind of attention in a model."""

from __future__ import annotations

from typing import Any

import torch

from .mask import Mask
from .patterns import CAUSAL, Positions, pattern_of

#: Looking into a mask function, and at the mask, is not for the compiler.
uncompiled = torch.compiler.disable if hasattr(torch, "compiler") else lambda function: function


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

    attention_mask is (batch, seqlen), nonzero for what counts, or a mask of ours. Models make masks that no layer of
    theirs uses: one that we cannot compute is refused where it is used.
    """
    if isinstance(attention_mask, Mask):
        # generate() and composite models make masks in advance, and the model inside asks anew: what was made stands,
        # as Transformers takes masks of four dimensions.
        return attention_mask
    padding = None if attention_mask is None else attention_mask.to(torch.bool)
    first = int(q_offset)
    at = Positions(batch_size, q_length, kv_length, first, kv_offset, padding, device, use_vmap)
    pattern, problem = pattern_of(mask_function, at)
    causal = pattern is CAUSAL
    # A cache may have room to spare: what is beyond the queries holds nothing yet, and is cut off.
    seen = min(kv_length, at.end - kv_offset) if causal else kv_length
    return Mask(
        batch_size,
        q_length,
        kv_length,
        causal=causal,
        first=first - kv_offset,
        keys=None if problem else _keys(padding, kv_offset, seen),
        padding=padding,
        problem=problem,
        device=device,
    )


def _keys(padding: Any, first: int, seqlen_k: int) -> Any:
    """Which of the keys count, bool (batch, seqlen_k); None if all do."""
    if padding is None:
        return None
    keys = padding[:, first : first + seqlen_k]
    if keys.shape[1] < seqlen_k:
        keys = torch.nn.functional.pad(keys, (0, seqlen_k - keys.shape[1]))
    return None if bool(keys.all()) else keys
