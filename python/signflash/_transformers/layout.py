"""Where the sequences of a padded or packed batch lie, so that one call of packed attention computes all of them.

Sequences are looked at where they are: rows of a batch lie one behind the other, so what is between two sequences is
a sequence too, of queries that see no keys and of keys that no query sees. Nothing is copied. Only keys that count
with others between them are gathered.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch


class Rows(NamedTuple):
    """Rows of a batch, on the CPU, and what is known of each key."""

    batch: int
    seqlen_q: int
    seqlen_k: int
    #: The key at the first query's own position.
    first: int
    #: bool (batch, seqlen_k), which keys count, or None if all do.
    keys: Optional[torch.Tensor]
    #: (batch, seqlen_k), the same number for neighbours of one sequence, or None if a row is one.
    sequences: Optional[torch.Tensor]


class Packed(NamedTuple):
    """What a packed call takes, of q (batch * seqlen_q, num_heads, head_dim) and k and v likewise."""

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    #: Rows of q and of k and v, in the order of their sequences, where they do not lie so.
    order_q: Optional[torch.Tensor] = None
    order_k: Optional[torch.Tensor] = None
    #: The inverse of order_q.
    back_q: Optional[torch.Tensor] = None

    def to(self, device: Any) -> "Packed":
        return Packed(*(None if x is None else x.to(device, non_blocking=True) for x in self))


class Scattered(Exception):
    """Keys that count have others between them."""


def packed(rows: Rows, by_position: bool, distances: bool) -> Packed:
    """The sequences of some rows.

    by_position: a query whose own position does not count is computed by nobody, as under causal attention; else all
    queries are. distances: how far a query is from a key matters, as under a window.

    Raises:
        Scattered: the distances matter, and gathering the keys would change them.
    """
    kept, begin, end = _runs_of_keys(rows)
    row = kept[begin].div(rows.seqlen_k, rounding_mode="floor")
    first_k, last_k = kept[begin], kept[end - 1] + 1
    if by_position:
        from_q, to_q = _positions(rows, row, first_k, last_k)
    else:
        from_q, to_q = _all_queries(rows, row, first_k)
    if torch.equal(last_k - first_k, end - begin):
        return _where_they_lie(from_q, to_q, first_k, last_k)
    if distances:
        raise Scattered
    if by_position:
        queries, of = _own_positions(rows, kept, begin, end)
    else:
        queries, of = _expanded(from_q, to_q), to_q - from_q
    order_q, order_k = _behind(queries, rows.batch * rows.seqlen_q), _behind(kept, rows.batch * rows.seqlen_k)
    back_q = None if order_q is None else torch.empty_like(order_q).scatter_(0, order_q, torch.arange(len(order_q)))
    return Packed(_starts(of.cumsum(0)), _starts((end - begin).cumsum(0)), order_q, order_k, back_q)


def _runs_of_keys(rows: Rows) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The keys that count, counted through all rows, and where among them each sequence begins and ends."""
    size = rows.batch * rows.seqlen_k
    kept = torch.arange(size) if rows.keys is None else rows.keys.reshape(-1).nonzero()[:, 0]
    new = torch.ones(len(kept), dtype=torch.bool)
    row = kept.div(rows.seqlen_k, rounding_mode="floor")
    new[1:] = row[1:] != row[:-1]
    if rows.sequences is not None:
        of = rows.sequences.reshape(-1)[kept]
        new[1:] |= of[1:] != of[:-1]
    begin = new.nonzero()[:, 0]
    return kept, begin, torch.cat([begin[1:], begin.new_tensor([len(kept)] * min(1, len(begin)))])


def _positions(rows: Rows, row, first_k, last_k):
    """Queries from the position of the first key to that of the last."""
    before = row * rows.seqlen_k + rows.first
    return tuple((x - before).clamp(0, rows.seqlen_q) + row * rows.seqlen_q for x in (first_k, last_k))


def _all_queries(rows: Rows, row, first_k):
    """The queries of the row, or those of the same sequence."""
    if rows.sequences is None:
        return row * rows.seqlen_q, (row + 1) * rows.seqlen_q
    new = torch.ones((rows.batch, rows.seqlen_k), dtype=torch.bool)
    new[:, 1:] = rows.sequences[:, 1:] != rows.sequences[:, :-1]
    new = new.reshape(-1)
    begin = new.nonzero()[:, 0]
    end = torch.cat([begin[1:], begin.new_tensor([len(new)])])
    run = new.cumsum(0)[first_k] - 1
    return _positions(rows, row, begin[run], end[run])


def _own_positions(rows: Rows, kept, begin, end):
    """The queries whose own positions count, and how many each sequence has."""
    row = kept.div(rows.seqlen_k, rounding_mode="floor")
    at = kept - row * rows.seqlen_k - rows.first
    before = torch.cat([at.new_zeros(1), (at >= 0).cumsum(0)])
    return (row * rows.seqlen_q + at)[at >= 0], before[end] - before[begin]


def _expanded(begin, end):
    """All numbers of some ranges."""
    of = end - begin
    return torch.arange(int(of.sum())) + (begin - of.cumsum(0) + of).repeat_interleave(of)


def _where_they_lie(from_q, to_q, from_k, to_k) -> Packed:
    zero = to_q.new_zeros(1)
    before_q, before_k = torch.cat([zero, to_q])[:-1], torch.cat([zero, to_k])[:-1]
    if torch.equal(before_q, from_q) and torch.equal(before_k, from_k):
        return Packed(_starts(to_q), _starts(to_k))
    # Three sequences each: queries between two, keys between two, and the sequence itself.
    return Packed(
        _starts(torch.stack([from_q, from_q, to_q], 1).reshape(-1)),
        _starts(torch.stack([before_k, from_k, to_k], 1).reshape(-1)),
    )


def _starts(ends):
    """cu_seqlens; where nothing counts it is one sequence of nothing."""
    ends = ends if len(ends) else ends.new_zeros(1)
    return torch.cat([ends.new_zeros(1), ends]).to(torch.int32)


def _behind(index, size: int) -> Optional[torch.Tensor]:
    """An order of all rows: these, and then the others, which no sequence has. None if it is the order they are in."""
    every = torch.arange(size)
    if torch.equal(index, every[: len(index)]):
        return None
    others = torch.ones(size, dtype=torch.bool)
    others[index] = False
    return torch.cat([index, every[others]])

