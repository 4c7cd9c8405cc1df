"""What a mask function of Transformers means for the positions of a call: causal, full, or what we do not compute."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from transformers import masking_utils

from .mask import REMEDY

CAUSAL, FULL = "causal", "full"
#: Scores looked at in one step, where a mask function has to be tried out.
STEP = 1 << 26


class Positions(NamedTuple):
    """Where queries and keys lie, and which positions count (bool (batch, seqlen) from position 0 on, or None)."""

    batch: int
    seqlen_q: int
    seqlen_k: int
    first_query: int
    first_key: int
    padding: Optional[torch.Tensor]
    device: Any
    use_vmap: bool

    @property
    def end(self) -> int:
        """The position behind the last query."""
        return self.first_query + self.seqlen_q


class Unlike(Exception):
    """The pattern is known, and neither causal nor full here."""


def pattern_of(mask_function: Any, at: Positions) -> Any:
    """(CAUSAL or FULL, None) or (CAUSAL, why not)."""
    try:
        found = _recognised(mask_function, at)
        found = _tried_out(mask_function, at) if found is None else found
    except Unlike as unlike:
        return CAUSAL, f"the model asks for {unlike}; only causal and full attention are there, {REMEDY}"
    return found, None


def _recognised(mask_function: Any, at: Positions) -> Optional[str]:
    """By who made it; None if that is not enough."""
    if mask_function is None or mask_function is masking_utils.causal_mask_function:
        return CAUSAL
    if mask_function is masking_utils.bidirectional_mask_function:
        return FULL
    parts = _held(mask_function, "and_masks", "mask_functions")
    if parts is not None:
        found = [_recognised(part, at) for part in parts]
        return None if None in found else CAUSAL if CAUSAL in found else FULL
    window = _held(mask_function, "sliding_window_overlay", "sliding_window")
    if window is not None:
        # The key of position 0 is the first that the last query loses.
        return _unless(window < at.end - at.first_key, f"a sliding window of {window}")
    window = _held(mask_function, "sliding_window_bidirectional_overlay", "sliding_window")
    if window is not None:
        reach = max(at.end - at.first_key, at.first_key + at.seqlen_k - at.first_query)
        return _unless(window < reach - 1, f"a sliding window of {window} to both sides")
    size = _held(mask_function, "chunked_overlay", "chunk_size")
    if size is not None:
        start = _held(mask_function, "chunked_overlay", "left_padding")
        return _unless(at.end - int(start.min()) > size, f"chunked_overlay of {size}")
    sequences = _held(mask_function, "packed_sequence_mask_function", "packed_sequence_mask")
    if sequences is not None:
        several = bool((sequences != sequences[:, :1]).any())
        return _unless(several, "packed sequences (position_ids that start anew within a row)")
    # Compiled models always ask for packed sequences, also where each row holds one: that is the plain pattern.
    positions = _held(mask_function, "remap_positions_for_packed_sequence", "position_ids")
    if positions is not None and bool((positions.diff(dim=-1) == 1).all()):
        return _recognised(_held(mask_function, "remap_positions_for_packed_sequence", "mask_function"), at)
    return None


def _unless(hides: bool, what: str) -> str:
    if hides:
        raise Unlike(what)
    return FULL


def _held(function: Any, maker: str, variable: str) -> Any:
    """What a function that Transformers' `maker` returned holds in its `variable`; None if it is no such function."""
    if not _name(function).startswith(f"{maker}.<locals>"):
        return None
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    return held[variable].cell_contents if variable in held else None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "a mask function")


def _tried_out(mask_function: Any, at: Positions) -> str:
    """By its values at each query that counts and each key, some queries at a time."""
    possible = {CAUSAL, FULL}
    rows = max(1, STEP // (at.batch * at.seqlen_k))
    for start in range(0, at.seqlen_q, rows):
        part = at._replace(first_query=at.first_query + start, seqlen_q=min(rows, at.seqlen_q - start))
        values = _values(mask_function, part)
        counts = _queries_that_count(part)
        possible = {x for x in possible if _equal(values, _values(_PLAIN[x], part), counts)}
        if not possible:
            raise Unlike(_name(mask_function))
    return CAUSAL if CAUSAL in possible else FULL


_PLAIN = {CAUSAL: masking_utils.causal_mask_function, FULL: masking_utils.bidirectional_mask_function}


def _values(mask_function: Any, at: Positions) -> torch.Tensor:
    """bool (batch, 1, seqlen_q, seqlen_k), as Transformers makes it for PyTorch."""
    return masking_utils.sdpa_mask(
        batch_size=at.batch,
        q_length=at.seqlen_q,
        kv_length=at.seqlen_k,
        q_offset=at.first_query,
        kv_offset=at.first_key,
        mask_function=mask_function,
        attention_mask=at.padding,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=at.use_vmap and mask_function not in _PLAIN.values(),
        device=at.device,
    )


def _queries_that_count(at: Positions) -> Optional[torch.Tensor]:
    if at.padding is None or at.end > at.padding.shape[1]:
        return None
    return at.padding[:, None, at.first_query : at.end, None]


def _equal(a: torch.Tensor, b: torch.Tensor, counts: Optional[torch.Tensor]) -> bool:
    differs = a != b
    return not bool((differs if counts is None else differs & counts).any())
