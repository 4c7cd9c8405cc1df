"""The pattern behind the values of a mask: what each query sees, if that is a window of sequences."""

from __future__ import annotations

from typing import List, NamedTuple, Optional

import torch


class Unlike(Exception):
    """The pattern is known, and no window of sequences."""


class Pattern(NamedTuple):
    """A query sees the keys of its sequence, from ``left`` before its own position to ``right`` behind it."""

    left: Optional[int] = None
    right: Optional[int] = None
    #: (batch, seqlen_k), the same number for neighbours of one sequence; None if each row of the batch is one.
    sequences: Optional[torch.Tensor] = None
    #: Likewise, where the pattern is known to hold only between positions of the same number.
    within: Optional[torch.Tensor] = None


class Summary(NamedTuple):
    """What is asked of the values, bool (batch, seqlen_q, seqlen_k); on the CPU."""

    #: (batch, seqlen_q): the first key that a query sees, the last, and how many.
    first: torch.Tensor
    last: torch.Tensor
    count: torch.Tensor
    #: (batch, seqlen_k): which keys some query sees, and which some query sees that does not see all.
    seen: torch.Tensor
    seen_by_some: torch.Tensor

    @staticmethod
    def of(visible: torch.Tensor) -> "Summary":
        numbers, size = visible.to(torch.uint8), visible.shape[-1]
        found = (
            numbers.argmax(-1),
            size - 1 - numbers.flip(-1).argmax(-1),
            visible.sum(-1),
            visible.any(1),
            (visible & ~visible.all(-1, keepdim=True)).any(1),
        )
        return Summary(*(x.cpu() for x in found))

    @staticmethod
    def together(parts: List["Summary"]) -> "Summary":
        """Of the queries of several."""
        first, last, count = (torch.cat(x, 1) for x in list(zip(*parts))[:3])
        seen, seen_by_some = (torch.stack(x).any(0) for x in list(zip(*parts))[3:])
        return Summary(first, last, count, seen, seen_by_some)

    def sees(self, keys: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Which queries see the keys from first to last (batch, seqlen_q) that count, all of them and no others."""
        before = torch.nn.functional.pad(keys.cumsum(-1), (1, 0))
        expected = (before.gather(1, (last + 1).clamp(min=0)) - before.gather(1, first.clamp(max=keys.shape[1]))).clamp(min=0)
        within = (self.count == 0) | ((self.first >= first) & (self.last <= last))
        # Those that a query sees count: as many of them between two places are all of them.
        return within & (self.count == expected)


def pattern_of_values(
    summary: Summary, first: int, keys: Optional[torch.Tensor], exactly: bool = False
) -> Optional[Pattern]:
    """The pattern that gives these values, or None.

    first is the key at the first query's own position; keys, bool (batch, seqlen_k), says which count, and a query
    sees no others. What a query sees whose own position does not count, is nobody's. Exactly: it must be as the
    pattern says, nothing, or, where there is nothing to see, all.
    """
    (batch, seqlen_q), seqlen_k = summary.count.shape, summary.seen.shape[1]
    keys = torch.ones((batch, seqlen_k), dtype=torch.bool) if keys is None else keys
    ends = keys.new_zeros((), dtype=torch.long), keys.new_full((), seqlen_k - 1, dtype=torch.long)
    if bool(summary.sees(keys, *(x.expand(batch, seqlen_q) for x in ends)).all()):
        return Pattern()
    if first < 0 or first + seqlen_q > seqlen_k:
        return None
    counts = keys[:, first : first + seqlen_q]
    at = torch.arange(first, first + seqlen_q).expand(batch, -1)
    if bool((counts & ((summary.count == 0) | (summary.first > at) | (summary.last < at))).any()):
        return None
    sequences = _sequences(summary, first, keys)
    found = _window(summary, first, keys, sequences, exactly)
    if found is None and first > 0:
        # Of keys before the queries it is known only which are seen: where a sequence began there.
        seen = torch.where(counts, summary.first, seqlen_k).amin(-1, keepdim=True)
        found = _window(summary, first, keys, sequences + (torch.arange(seqlen_k) >= seen), exactly)
    return found


def _window(summary: Summary, first: int, keys, sequences, exactly: bool) -> Optional[Pattern]:
    """The pattern with these sequences, or None."""
    (batch, seqlen_q), seqlen_k = summary.count.shape, keys.shape[1]
    counts, at = keys[:, first : first + seqlen_q], torch.arange(first, first + seqlen_q).expand(batch, -1)
    begin, end = (x[:, first : first + seqlen_q] for x in _ends(sequences, keys))
    # As far as the queries see that count; where that is all of each sequence, there is no bound.
    left = right = None
    if bool((counts & (summary.first > begin)).any()):
        left = int(torch.where(counts, at - summary.first, 0).max())
        begin = torch.maximum(begin, at - left)
    if bool((counts & (summary.last < end)).any()):
        right = int(torch.where(counts, summary.last - at, 0).max())
        end = torch.minimum(end, at + right)
    matches = summary.sees(keys, begin, end)
    if exactly:
        matches |= ~counts & ((summary.count == 0) | (summary.count == seqlen_k) & (begin > end))
    else:
        matches |= ~counts
    if not bool(matches.all()):
        return None
    return Pattern(left, right, sequences if bool((sequences != sequences[:, :1]).any()) else None)


def _sequences(summary: Summary, first: int, keys: torch.Tensor) -> torch.Tensor:
    """Numbers (batch, seqlen_k): a new sequence begins at a key that counts if it and the one before do not see each
    other."""
    batch, seqlen_k = keys.shape
    at = torch.arange(seqlen_k).expand(batch, -1)
    before = torch.nn.functional.pad(torch.where(keys, at, -1).cummax(-1).values, (1, -1), value=-1)

    def of_keys(x, value):
        """What queries see, by their positions."""
        return torch.nn.functional.pad(x, (first, seqlen_k - first - x.shape[1]), value=value)

    sees_back = of_keys(summary.first, 0) <= before
    is_seen = of_keys(summary.last, 0).gather(1, before.clamp(min=0)) >= at
    new = keys & (at >= first) & (before >= 0) & ~sees_back & ~is_seen
    return new.cumsum(-1)


def _ends(sequences: torch.Tensor, keys: torch.Tensor):
    """The first and the last key that counts of each key's sequence (batch, seqlen_k)."""
    batch, seqlen_k = keys.shape
    at, size = torch.arange(seqlen_k).expand(batch, -1), int(sequences.max()) + 1
    # For each sequence the least, and the largest, over its keys.
    first = torch.full((batch, size), seqlen_k).scatter_reduce(1, sequences, torch.where(keys, at, seqlen_k), "amin")
    last = torch.full((batch, size), -1).scatter_reduce(1, sequences, torch.where(keys, at, -1), "amax")
    return first.gather(1, sequences), last.gather(1, sequences)
