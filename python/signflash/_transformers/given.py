"""Attention masks of numbers, which a model or its user made: what they say, if it is something that we compute."""

from __future__ import annotations

from typing import Any, Optional

import torch

from .mask import REMEDY, Mask
from .masks import uncompiled


@uncompiled
def mask_of_numbers(mask: Any, seqlen_q: int, seqlen_k: int) -> Mask:
    """The meaning of an additive mask (batch, 1, 1 or seqlen_q, seqlen_k or more). Waits for the GPU, once a mask.

    Raises:
        NotImplementedError: it is something else, or another pattern than causal or full attention of keys that count.
    """
    # Tensors made in inference mode count no changes: those are read anew by each layer.
    counts = isinstance(mask, torch.Tensor) and not mask.is_inference()
    version = (mask._version, seqlen_q, seqlen_k) if counts else None
    known = getattr(mask, "_signflash_meaning", None)
    if counts and known is not None and known[0] == version:
        return known[1]
    hidden = _hidden(mask, seqlen_q, seqlen_k)
    meaning = None if hidden is None else _full(hidden, seqlen_q)
    if meaning is None and hidden is not None:
        meaning = _causal(hidden)
    if meaning is None:
        raise NotImplementedError(
            "attention_mask must be None or made of (batch, seqlen) by Transformers' mask functions, or say no more than "
            "that does: 0 where a key is seen and the dtype's least number or -inf where not, for all queries or those from "
            f"the key's position on; got shape {tuple(getattr(mask, 'shape', ()))} of type {_type(mask)}; {REMEDY}"
        )
    # A model hands the same mask to all of its layers.
    mask._signflash_meaning = (version, meaning)
    return meaning


def _type(mask: Any) -> str:
    return str(mask.dtype) if isinstance(mask, torch.Tensor) else type(mask).__name__


def _hidden(mask: Any, seqlen_q: int, seqlen_k: int) -> Optional[torch.Tensor]:
    """bool (batch, 1 or seqlen_q, seqlen_k), or None if the mask does more than to hide."""
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point() or mask.requires_grad or mask.dim() != 4:
        return None
    if mask.shape[1] != 1 or mask.shape[2] not in (1, seqlen_q) or mask.shape[3] < seqlen_k:
        return None
    mask = mask[:, 0, :, :seqlen_k]
    hidden = mask <= torch.finfo(mask.dtype).min
    return hidden if bool((hidden | (mask == 0)).all()) else None


def _full(hidden: torch.Tensor, seqlen_q: int) -> Optional[Mask]:
    if bool((hidden != hidden[:, :1]).any()):
        return None
    batch, _, seqlen_k = hidden.shape
    return _mask(batch, seqlen_q, seqlen_k, ~hidden[:, 0], causal=False)


def _causal(hidden: torch.Tensor) -> Optional[Mask]:
    batch, seqlen_q, seqlen_k = hidden.shape
    first = seqlen_k - seqlen_q
    if first < 0:
        return None
    keys = ~hidden[:, -1]
    before = torch.ones((seqlen_q, seqlen_k), dtype=torch.bool, device=hidden.device).tril(first)
    expected = before & keys[:, None]
    # What a query sees whose own position does not count, is nobody's: nothing, or all where there is nothing to see,
    # as Transformers makes it. A query that sees other keys than the last one does is of another sequence in the same
    # row.
    counts = keys[:, first:, None]
    nothing, all_ = hidden.all(-1, keepdim=True), ~hidden.any(-1, keepdim=True)
    nobodys = ~counts & (nothing | (all_ & ~expected.any(-1, keepdim=True)))
    if bool(((hidden == expected) & ~nobodys).any()):
        return None
    return _mask(batch, seqlen_q, seqlen_k, keys, causal=True, first=first)


def _mask(batch: int, seqlen_q: int, seqlen_k: int, keys: torch.Tensor, **meaning: Any) -> Mask:
    keys = None if bool(keys.all()) else keys
    return Mask(batch, seqlen_q, seqlen_k, keys=keys, device=keys.device if keys is not None else None, **meaning)
