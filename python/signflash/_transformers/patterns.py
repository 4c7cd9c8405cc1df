"""What a mask function of Transformers means for the positions of a call: a window of sequences, or nothing that we
compute.

Functions are recognised by who made them; where that is not enough they are tried out.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from transformers import masking_utils

from .values import Pattern, Summary, Unlike, pattern_of_values

CAUSAL, FULL = Pattern(right=0), Pattern()
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

    @property
    def first(self) -> int:
        """The key at the first query's own position."""
        return self.first_query - self.first_key


def pattern_of(mask_function: Any, at: Positions, keys: Optional[torch.Tensor]) -> Pattern:
    """The pattern of a mask function; keys says which of them count, bool (batch, seqlen_k), or None if all do.

    Raises:
        Unlike: it is known, or was tried out, and is no window of sequences.
    """
    positions = at.first_key + torch.arange(at.seqlen_k)[None]
    found = _recognised(mask_function, positions)
    found = None if found is None else _checked(found)
    if found is not None and found.sequences is not None:
        found = found._replace(sequences=found.sequences.expand(at.batch, -1))
        if found.sequences.shape[1] != at.seqlen_k or at.first < 0 or at.first + at.seqlen_q > at.seqlen_k:
            found = None
    return _tried_out(mask_function, at, keys) if found is None else found


def _recognised(mask_function: Any, positions: torch.Tensor) -> Optional[Pattern]:
    """By who made it; None if that is not enough. Positions are those that the function is asked about, of each key."""
    if mask_function is None or mask_function is masking_utils.causal_mask_function:
        return CAUSAL
    if mask_function is masking_utils.bidirectional_mask_function:
        return FULL
    parts = _held(mask_function, "and_masks", "mask_functions")
    if parts is not None:
        found = FULL
        for part in parts:
            part = _recognised(part, positions)
            if part is None:
                return None
            found = _both(found, part)
        return found
    window = _held(mask_function, "sliding_window_overlay", "sliding_window")
    if window is not None:
        return Pattern(left=_side(window - 1, window))
    window = _held(mask_function, "sliding_window_bidirectional_overlay", "sliding_window")
    if window is not None:
        return Pattern(left=_side(window, window), right=window)
    size = _held(mask_function, "chunked_overlay", "chunk_size")
    if size is not None:
        start = _held(mask_function, "chunked_overlay", "left_padding").cpu()
        return Pattern(sequences=(positions - start[:, None]).div(size, rounding_mode="floor"))
    sequences = _held(mask_function, "packed_sequence_mask_function", "packed_sequence_mask")
    if sequences is not None:
        return Pattern(sequences=sequences.cpu())
    positions = _held(mask_function, "remap_positions_for_packed_sequence", "position_ids")
    if positions is not None:
        # Right between positions that follow each other: not across a place where they start anew.
        positions = positions.cpu()
        found = _recognised(_held(mask_function, "remap_positions_for_packed_sequence", "mask_function"), positions)
        return None if found is None else _both(found, Pattern(within=_numbered(positions.diff(dim=-1) != 1)))
    return None


def _side(reach: int, window: int) -> int:
    if reach < 0:
        raise Unlike(f"a sliding window of {window}")
    return reach


def _both(a: Pattern, b: Pattern) -> Pattern:
    """What both let through."""
    return Pattern(
        left=_least(a.left, b.left),
        right=_least(a.right, b.right),
        sequences=_refined(a.sequences, b.sequences),
        within=_refined(a.within, b.within),
    )


def _least(a: Optional[int], b: Optional[int]) -> Optional[int]:
    return b if a is None else a if b is None else min(a, b)


def _refined(a: Optional[torch.Tensor], b: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    """Sequences of what is of one sequence in both, numbered from 0 on."""
    if a is None or b is None:
        return b if a is None else a
    return _numbered((a.diff(dim=-1) != 0) | (b.diff(dim=-1) != 0))


def _numbered(new: torch.Tensor) -> torch.Tensor:
    """A number for each sequence, from where a new one begins (batch, seqlen - 1)."""
    return torch.nn.functional.pad(new.cumsum(-1), (1, 0))


def _checked(pattern: Pattern) -> Optional[Pattern]:
    """None if its sequences do not lie in one piece, or if it is right in a part of one only."""
    sequences, within = pattern.sequences, pattern.within
    if sequences is not None:
        new = sequences.diff(dim=-1) != 0
        if not torch.equal(new.sum(-1), (sequences.sort(-1).values.diff(dim=-1) != 0).sum(-1)):
            return None
        if not bool(new.any()):
            sequences = None
    if within is not None:
        outside = within.diff(dim=-1) != 0
        if bool((outside if sequences is None else outside & ~new).any()):
            return None
    return Pattern(pattern.left, pattern.right, sequences)


def _held(function: Any, maker: str, variable: str) -> Any:
    """What a function that Transformers' `maker` returned holds in its `variable`; None if it is no such function."""
    if not _name(function).startswith(f"{maker}.<locals>"):
        return None
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    return held[variable].cell_contents if variable in held else None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "a mask function")


def _tried_out(mask_function: Any, at: Positions, keys: Optional[torch.Tensor]) -> Pattern:
    """By its values at each query and each key, some queries at a time."""
    rows = max(1, STEP // (at.batch * at.seqlen_k))
    steps = []
    for start in range(0, at.seqlen_q, rows):
        part = at._replace(first_query=at.first_query + start, seqlen_q=min(rows, at.seqlen_q - start))
        steps.append(Summary.of(values_of(mask_function, part)[:, 0]))
    found = pattern_of_values(Summary.together(steps), at.first, keys)
    if found is None:
        raise Unlike(_name(mask_function))
    return found


def values_of(mask_function: Any, at: Positions) -> torch.Tensor:
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
        use_vmap=at.use_vmap,
        device=at.device,
    )
