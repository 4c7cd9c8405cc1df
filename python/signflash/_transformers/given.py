"""Attention masks of numbers, which a model or its user made: what they say, as a pattern if it is one."""

from __future__ import annotations

from typing import Any, Optional

import torch

from .calculated import plain
from .mask import REMEDY, Mask, uncompiled
from .values import Summary, pattern_of_values


@uncompiled
def mask_of_numbers(mask: Any, batch: int, seqlen_q: int, seqlen_k: int) -> Mask:
    """The meaning of a mask (batch or 1, num_heads or 1, seqlen_q or 1, seqlen_k or more): bool, True where a query sees a
    key, as PyTorch's attention has it; or floats that are added to scores. Waits for the GPU, once a mask.

    Raises:
        TypeError, NotImplementedError: it is something else.
    """
    _check(mask, batch, seqlen_q, seqlen_k)
    given, mask = mask, plain(mask)
    # Tensors made in inference mode count no changes: those are read anew by each layer.
    counts = not mask.is_inference()
    version = (mask._version, batch, seqlen_q, seqlen_k) if counts else None
    known = getattr(given, "_signflash_meaning", None)
    if counts and known is not None and known[0] == version:
        return known[1]
    entries = mask[..., :seqlen_k]
    visible = _visible(entries)
    meaning = None if visible is None or mask.shape[1] != 1 else _meaning(visible[:, 0].expand(batch, -1, -1), seqlen_q)
    if meaning is None:
        entries = _added(entries) if visible is None else visible
        meaning = Mask(batch, seqlen_q, seqlen_k, first=seqlen_k - seqlen_q, entries=entries, device=mask.device)
    if counts and not mask.requires_grad:
        # A model hands the same mask to all of its layers. One that requires a gradient is part of a graph, which nobody is
        # to keep.
        given._signflash_meaning = (version, meaning)
    return meaning


def _check(mask: Any, batch: int, seqlen_q: int, seqlen_k: int) -> None:
    if not isinstance(mask, torch.Tensor) or not (mask.is_floating_point() or mask.dtype is torch.bool):
        kind = str(mask.dtype) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(
            "attention_mask must be None, made of (batch, seqlen) by Transformers' mask functions, bool that is True where a "
            f"query sees a key, or floats that are added to scores; got {kind}"
        )
    if (
        mask.dim() != 4
        or mask.shape[0] not in (1, batch)
        or mask.shape[2] not in (1, seqlen_q)
        or mask.shape[3] < seqlen_k
    ):
        raise NotImplementedError(
            f"attention_mask must be ({batch} or 1, num_heads or 1, {seqlen_q} or 1, {seqlen_k} or more), got shape "
            f"{tuple(mask.shape)}; {REMEDY}"
        )


def _visible(mask: Any) -> Optional[torch.Tensor]:
    """bool, or None if the mask does more than to hide."""
    if mask.dtype is torch.bool:
        return mask
    if mask.requires_grad:
        return None
    hidden = mask <= torch.finfo(mask.dtype).min
    return ~hidden if bool((hidden | (mask == 0)).all()) else None


def _added(mask: Any) -> torch.Tensor:
    """What is added to scores. Whatever is as far down as the dtype goes is meant to hide."""
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)


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
