"""What one block of queries has to do with one block of keys: calls of the package's own attention."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

from .layout import Span


class Geometry(NamedTuple):
    """What is seen of the whole problem. A window side of None has no bound."""

    seqlen_q: int
    seqlen_k: int
    left: Optional[int] = None
    right: Optional[int] = None
    #: Whether scores depend on how far a key is from its query.
    has_distances: bool = False
    #: Of packed sequences, where each begins and the last ends.
    starts_q: Optional[Tuple[int, ...]] = None
    starts_k: Optional[Tuple[int, ...]] = None
    #: Whether something depends on where an entry lies: dropout, a bias, a mask.
    has_positions: bool = True

    @property
    def is_packed(self) -> bool:
        return self.starts_q is not None

    def sees(self, rows: Span, columns: Span, diagonal: int) -> bool:
        """Whether some of these queries see some of these keys; query i faces key ``i + diagonal``."""
        if rows.begin >= rows.end or columns.begin >= columns.end:
            return False
        first, last = rows.begin + diagonal, rows.end - 1 + diagonal
        if self.left is not None and columns.end <= first - self.left:
            return False
        return self.right is None or columns.begin <= last + self.right

    def is_one(self, of_q: Sequence[Span], of_k: Sequence[Span]) -> bool:
        """Whether all these queries see of all these keys what they would see if either followed each other without gaps."""
        if self.is_packed or self.has_positions or self.has_distances or self.left is not None or not (of_q and of_k):
            return False
        if self.right is None:
            return True
        rises = all(a.end <= b.begin for a, b in zip(of_q, of_q[1:]))
        return self.right == 0 and self.seqlen_q == self.seqlen_k and tuple(of_q) == tuple(of_k) and rises


class Piece(NamedTuple):
    """One call: local rows and columns, and where they lie in the whole, or in the one sequence that is cut."""

    rows: slice
    columns: slice
    first_row: int
    first_column: int
    #: The key of the piece that its first query faces; None where nothing depends on it.
    diagonal: Optional[int]
    #: Of packed sequences, the first of those that this is about.
    sequence: Optional[int] = None
    #: Where whole sequences begin in the piece, queries and keys; None for a piece of one.
    starts: Optional[Tuple[Tuple[int, ...], Tuple[int, ...]]] = None


def pieces(geometry: Geometry, of_q: Sequence[Span], of_k: Sequence[Span]) -> Iterator[Piece]:
    """All calls for the queries of some spans and the keys of others, each in the order in which tensors have them."""
    if geometry.is_one(of_q, of_k):
        rows, columns = (slice(0, sum(end - begin for begin, end in of)) for of in (of_q, of_k))
        yield Piece(rows, columns, 0, 0, None if geometry.right is None else 0)
        return
    at_row = 0
    for rows in of_q:
        at_column = 0
        for columns in of_k:
            between = _packed if geometry.is_packed else _dense
            yield from between(geometry, rows, columns, at_row, at_column)
            at_column += columns.end - columns.begin
        at_row += rows.end - rows.begin


def _dense(geometry, rows, columns, at_row, at_column) -> Iterator[Piece]:
    diagonal = geometry.seqlen_k - geometry.seqlen_q
    if geometry.sees(rows, columns, diagonal):
        yield _piece(geometry, rows, columns, (at_row - rows.begin, at_column - columns.begin), diagonal)


def _piece(geometry, rows, columns, shifts, diagonal, origin=(0, 0), sequence=None) -> Piece:
    """Rows and columns as positions; ``shifts`` make local ones of them, ``origin`` is where the sequence begins."""
    to_row, to_column = shifts
    first_row, first_column = rows.begin - origin[0], columns.begin - origin[1]
    matters = geometry.left is not None or geometry.right is not None or geometry.has_distances
    return Piece(
        slice(rows.begin + to_row, rows.end + to_row),
        slice(columns.begin + to_column, columns.end + to_column),
        first_row,
        first_column,
        diagonal + first_row - first_column if matters else None,
        sequence,
    )


def _packed(geometry, rows, columns, at_row, at_column) -> Iterator[Piece]:
    """Sequences that lie whole in both blocks are one call, and each that is cut is one."""
    starts_q, starts_k = geometry.starts_q, geometry.starts_k
    shifts = at_row - rows.begin, at_column - columns.begin
    count = len(starts_q) - 1
    first = max(bisect_right(starts_q, rows.begin), bisect_right(starts_k, columns.begin)) - 1
    end = min(bisect_left(starts_q, rows.end), bisect_left(starts_k, columns.end), count)
    # Sequences of no queries or no keys may lie at the very beginning, whatever is first of them: nothing is lost.
    run = []
    for i in range(max(first, 0), end):
        own_rows, own_columns = Span(*starts_q[i : i + 2]), Span(*starts_k[i : i + 2])
        cut_rows, cut_columns = _both(own_rows, rows), _both(own_columns, columns)
        if cut_rows == own_rows and cut_columns == own_columns:
            run.append(i)
            continue
        if run:
            yield _whole(geometry, run, shifts)
            run = []
        diagonal = (own_columns.end - own_columns.begin) - (own_rows.end - own_rows.begin)
        origin = own_rows.begin, own_columns.begin
        relative = [Span(x.begin - at, x.end - at) for x, at in zip((cut_rows, cut_columns), origin)]
        if geometry.sees(*relative, diagonal):
            yield _piece(geometry, cut_rows, cut_columns, shifts, diagonal, origin, i)
    if run:
        yield _whole(geometry, run, shifts)


def _both(a: Span, b: Span) -> Span:
    begin = max(a.begin, b.begin)
    return Span(begin, max(begin, min(a.end, b.end)))


def _whole(geometry, run, shifts) -> Piece:
    numbers = slice(run[0], run[-1] + 2)
    starts = [of[numbers] for of in (geometry.starts_q, geometry.starts_k)]
    rows, columns = (slice(of[0] + shift, of[-1] + shift) for of, shift in zip(starts, shifts))
    relative = tuple(tuple(x - of[0] for x in of) for of in starts)
    return Piece(rows, columns, 0, 0, None, run[0], relative)
