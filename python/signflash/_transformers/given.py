"""Attention masks of numbers, which a model or its user made: what they say, if it is something that we compute."""

from __future__ import annotations

from typing import Any, Optional

import torch

from .mask import REMEDY, Mask, uncompiled
from .values import Summary, pattern_of_values


@uncompiled
def mask_of_numbers(mask: Any, seqlen_q: int, seqlen_k: int) -> Mask:
    """The meaning of an additive mask (batch, 1, 1 or seqlen_q, seqlen_k or more). Waits for the GPU, once a mask.

    Raises:
        NotImplementedError: it is something else, or another pattern than a window of sequences and keys that count.
    """
    # Tensors made in inference mode count no changes: those are read anew by each layer.
    counts = isinstance(mask, torch.Tensor) and not mask.is_inference()
    version = (mask._version, seqlen_q, seqlen_k) if counts else None
    known = getattr(mask, "_signflash_meaning", None)
    if counts and known is not None and known[0] == version:
        return known[1]
    visible = _visible(mask, seqlen_q, seqlen_k)
    meaning = None if visible is None else _meaning(visible, seqlen_q)
    if meaning is None:
        raise NotImplementedError(
            "attention_mask must be None or made of (batch, seqlen) by Transformers' mask functions, or say no more than "
            "those can: 0 where a key is seen and the dtype's least number or -inf where not, for queries that see all keys "
            "that count, those up to their own position, or a window around it, of one sequence or of several in a row; got "
            f"shape {tuple(getattr(mask, 'shape', ()))} of type {_type(mask)}; {REMEDY}"
        )
    # A model hands the same mask to all of its layers.
    mask._signflash_meaning = (version, meaning)
    return meaning


def _type(mask: Any) -> str:
    return str(mask.dtype) if isinstance(mask, torch.Tensor) else type(mask).__name__


def _visible(mask: Any, seqlen_q: int, seqlen_k: int) -> Optional[torch.Tensor]:
    """bool (batch, 1 or seqlen_q, seqlen_k), or None if the mask does more than to hide."""
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point() or mask.requires_grad or mask.dim() != 4:
        return None
    if mask.shape[1] != 1 or mask.shape[2] not in (1, seqlen_q) or mask.shape[3] < seqlen_k:
        return None
    mask = mask[:, 0, :, :seqlen_k]
    hidden = mask <= torch.finfo(mask.dtype).min
    return ~hidden if bool((hidden | (mask == 0)).all()) else None


def _meaning(visible: torch.Tensor, seqlen_q: int) -> Optional[Mask]:
    batch, rows, seqlen_k = visible.shape
    first = seqlen_k - seqlen_q
    summary = Summary.of(visible)
    # Transformers lets queries see all keys that see none: they say nothing of which keys count.
    for keys in (summary.seen, summary.seen_by_some):
        pattern = pattern_of_values(summary, first if rows == seqlen_q else -1, keys, exactly=True)
        if pattern is not None:
            keys = None if bool(keys.all()) else keys
            return Mask(batch, seqlen_q, seqlen_k, pattern, first=first, keys=keys, device=visible.device)
    return None
