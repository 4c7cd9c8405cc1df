"""Which positions of a sequence each rank holds."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Sequence, Tuple

import torch

NAMES = ("zigzag", "contiguous")


class Span(NamedTuple):
    """Neighbouring positions, from ``begin`` up to and without ``end``."""

    begin: int
    end: int


class Layout:
    """The positions of each rank: spans, which lie one behind the other in the rank's tensors.

    Every position of the sequence belongs to one rank. A rank may hold none.

    >>> from signflash.distributed import Layout
    >>> Layout.zigzag(8, ranks=2).spans
    ((Span(begin=0, end=2), Span(begin=6, end=8)), (Span(begin=2, end=6),))
    >>> Layout([[(0, 5)], [(5, 8)]]).length(1)  # a cut of your own
    3
    """

    __slots__ = ("spans", "total")

    def __init__(self, spans: Sequence[Sequence[Tuple[int, int]]]) -> None:
        #: Of each rank.
        self.spans = tuple(_neighbours_joined(rank) for rank in spans)
        every = sorted(span for rank in self.spans for span in rank)
        at = 0
        for begin, end in every:
            if begin != at:
                raise ValueError(
                    f"layout must give every position to one rank: expected a span that begins at {at}, got ({begin}, {end})"
                )
            at = end
        #: How many positions there are.
        self.total = at

    @classmethod
    def contiguous(cls, total: int, ranks: int) -> "Layout":
        """As ``torch.chunk`` cuts, and as a DTensor's ``Shard`` does: rank after rank."""
        return cls([[span] for span in _chunks(total, ranks)])

    @classmethod
    def zigzag(cls, total: int, ranks: int) -> "Layout":
        """Rank r has the chunks r and ``2 * ranks - 1 - r`` of ``2 * ranks``: under causal attention all have equal work."""
        chunks = _chunks(total, 2 * ranks)
        return cls([[chunks[rank], chunks[2 * ranks - 1 - rank]] for rank in range(ranks)])

    @property
    def ranks(self) -> int:
        return len(self.spans)

    def length(self, rank: int) -> int:
        """How many positions this rank holds."""
        return sum(end - begin for begin, end in self.spans[rank])

    @property
    def longest(self) -> int:
        """How many the rank holds that holds most."""
        return max(self.length(rank) for rank in range(self.ranks))

    def joined(self, groups: Sequence[Sequence[int]]) -> "Layout":
        """That of groups of ranks, each of which puts together what its members hold, in the order of positions."""
        return Layout([sorted(span for rank in group for span in self.spans[rank]) for group in groups])

    def within(self, group: Sequence[int]) -> "Layout":
        """That of the members of a group among themselves: positions are numbered as the group has them together."""
        order = sorted(span for rank in group for span in self.spans[rank])
        begins, at = {}, 0
        for begin, end in order:
            begins[begin] = at
            at += end - begin
        return Layout([[(begins[b], begins[b] + e - b) for b, e in self.spans[rank]] for rank in group])

    def take(self, x, rank: int, dim: int):
        """What a rank holds of x, which has all positions along ``dim``; without a copy if it is one span."""
        parts = [x.narrow(dim, begin, end - begin) for begin, end in self.spans[rank]]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0)

    def put_together(self, parts, dim: int):
        """All positions, of what each rank holds."""
        placed = []
        for spans, part in zip(self.spans, parts):
            at = 0
            for begin, end in spans:
                placed.append((begin, part.narrow(dim, at, end - begin)))
                at += end - begin
        placed = [part for _, part in sorted(placed, key=lambda one: one[0])]
        if not placed:
            return parts[0]
        return placed[0] if len(placed) == 1 else _joined(placed, dim)

    def __eq__(self, other) -> bool:
        return isinstance(other, Layout) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return f"Layout({[[tuple(span) for span in rank] for rank in self.spans]})"


def _joined(parts, dim: int):
    """Parts one behind the other along a dimension: without a copy where they lie so in memory."""
    first, at = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for x in parts:
        if not x.is_contiguous() or x.data_ptr() != at or x.untyped_storage().data_ptr() != storage:
            return torch.cat(parts, dim)
        at += x.numel() * x.element_size()
    if any(size != 1 for size in first.shape[:dim]):
        return torch.cat(parts, dim)
    shape = list(first.shape)
    shape[dim] = sum(x.shape[dim] for x in parts)
    return first.as_strided(shape, first.stride())


def _chunks(total: int, count: int):
    size = -(-total // count)
    return [Span(min(total, i * size), min(total, (i + 1) * size)) for i in range(count)]


def _neighbours_joined(spans) -> Tuple[Span, ...]:
    """Spans without empty ones, and two that follow each other as one."""
    joined = []
    for begin, end in spans:
        if not 0 <= begin <= end:
            raise ValueError(f"layout's spans must be (begin, end) with 0 <= begin <= end, got ({begin}, {end})")
        if begin == end:
            continue
        if joined and joined[-1].end == begin:
            joined[-1] = Span(joined[-1].begin, end)
        else:
            joined.append(Span(begin, end))
    return tuple(joined)


def layout_of(layout, total: int, ranks: int) -> Layout:
    """A layout by its name, or one that is one."""
    if isinstance(layout, Layout):
        if layout.ranks != ranks or layout.total != total:
            raise ValueError(
                f"layout must be of {ranks} ranks and {total} positions, got one of {layout.ranks} and {layout.total}"
            )
        return layout
    if isinstance(layout, str) and layout in NAMES:
        return _named(layout, total, ranks)
    raise ValueError(f"layout must be 'zigzag', 'contiguous' or a signflash.distributed.Layout, got {layout!r}")


@lru_cache(maxsize=256)
def _named(name: str, total: int, ranks: int) -> Layout:
    return getattr(Layout, name)(total, ranks)


def layouts_of(layout, totals: Tuple[int, int], ranks: int) -> Tuple[Layout, Layout]:
    """That of the queries and that of the keys."""
    if isinstance(layout, Layout) or isinstance(layout, str):
        of_q, of_k = layout, layout
    else:
        try:
            of_q, of_k = layout
        except (TypeError, ValueError):
            of_q, of_k = layout, layout
    return layout_of(of_q, totals[0], ranks), layout_of(of_k, totals[1], ranks)
