"""Results over some of the keys, put together in float32 by their lse."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch

_NOTHING = float("-inf")
#: Less than any lse of a row that sees a key.
_LEAST = -3.0e38


class _Rows:
    """Parts of (..., rows, heads, head_dim) by their rows: kept as they come, as long as two are of the same rows or have
    none in common, and else put into one.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._found: Dict[Tuple[int, int], Any] = {}

    def _key(self, rows: slice) -> Tuple[int, int]:
        """Where a part of these rows is added, or kept as the first of them."""
        key = (rows.start, rows.stop)
        if key in self._found or all(key[1] <= begin or end <= key[0] for begin, end in self._found):
            return key
        self._found = {(0, self._rows): self._put_together()}
        return (0, self._rows)

    def _covers(self) -> bool:
        """Whether one part is all."""
        return list(self._found) == [(0, self._rows)]

    def _put_together(self) -> Any:
        raise NotImplementedError

    def _room(self, make, shape, dtype):
        """Of all rows: nothing is zeroed that is written."""
        covered = sum(end - begin for begin, end in self._found) == self._rows
        return make(shape, dtype=dtype) if covered else make(shape, dtype=dtype).zero_()


class Sum(_Rows):
    """A gradient that is added up in float32, of a tensor's shape."""

    def __init__(self, like) -> None:
        super().__init__(like.shape[-3])
        self._like = like

    @classmethod
    def of(cls, total) -> "Sum":
        """One that is known already, of all rows."""
        found = cls(total)
        found.add(slice(0, total.shape[-3]), total)
        return found

    def room(self, rows: slice):
        """Where a GPU's kernels may add what they find for some rows; None where there is nothing yet to add to."""
        key = self._key(rows)
        if key not in self._found:
            return None
        return self._found[key] if key == (rows.start, rows.stop) else _of_rows(self._found[key], rows)

    def add(self, rows: slice, part) -> None:
        """To some rows. The first part of them is kept, which nobody else has."""
        into = self.room(rows)
        if into is None:
            self._found[rows.start, rows.stop] = part
        else:
            into.add_(part)

    def total(self):
        """float32."""
        if not self._covers():
            self._found = {(0, self._rows): self._put_together()}
        return self._found[0, self._rows]

    def rounded(self, dtype):
        """The sum, of this dtype."""
        return self.total().to(dtype) if self._covers() else self._put_together(dtype)

    def add_to(self, others: Optional["Sum"], heads: slice, into) -> None:
        """Writes this sum, which is of some heads, and that of others, if there is one, rounded: one pass."""
        found = [self._found, {} if others is None else others._found]
        ends = sorted({0, self._rows, *(end for of in found for span in of for end in span)})
        for rows in map(slice, ends, ends[1:]):
            mine, theirs = (
                [_of_rows(x, _within(rows, span)) for span, x in of.items() if _has(span, rows)] for of in found
            )
            parts = [*mine, *(x[..., heads, :] for x in theirs)]
            if len(parts) == 2:
                torch.add(*parts, out=_of_rows(into, rows))
            else:
                _of_rows(into, rows).copy_(parts[0]) if parts else _of_rows(into, rows).zero_()

    def _put_together(self, dtype=torch.float32):
        whole = self._room(self._like.new_empty, self._like.shape, dtype)
        for key, part in self._found.items():
            _of_rows(whole, slice(*key)).copy_(part)
        return whole


class Partial(_Rows):
    """out (..., rows, heads, head_dim) and lse (..., heads, rows) of the keys that were added so far, float32."""

    def __init__(self, q, v) -> None:
        super().__init__(q.shape[-3])
        self._q, self._head_dim = q, v.shape[-1]

    def room(self, rows: slice):
        """(out, lse) of exactly these rows, to which a GPU's kernels may add what they find; None where there are none."""
        return self._found.get((rows.start, rows.stop))

    def add(self, rows: slice, out, lse) -> None:
        """What these rows see of some more keys, of which none was added before. Who adds them lets go of them."""
        key = self._key(rows)
        if key not in self._found:
            self._found[key] = (out, lse)
            return
        of_out, of_lse = self._found[key]
        if key != (rows.start, rows.stop):
            of_out, of_lse = _of_rows(of_out, rows), of_lse[..., rows]
        # What part of both together is new. A row that neither has seen keys for keeps its 0.
        new = (lse - of_lse.clamp(min=_LEAST)).sigmoid_()
        of_out.lerp_(out, new.transpose(-1, -2).unsqueeze(-1))
        torch.logaddexp(of_lse, lse, out=of_lse)

    def whole(self):
        """(out, lse)."""
        if not self._covers():
            self._found = {(0, self._rows): self._put_together()}
        return self._found[0, self._rows]

    def rounded(self, dtype):
        """(out of this dtype, lse)."""
        if self._covers():
            out, lse = self._found[0, self._rows]
            return out.to(dtype), lse
        return self._put_together(dtype)

    def _put_together(self, dtype=torch.float32):
        *batch, rows, heads, _ = self._q.shape
        whole = self._room(self._q.new_empty, (*self._q.shape[:-1], self._head_dim), dtype)
        of_all = self._q.new_full((*batch, heads, rows), _NOTHING, dtype=torch.float32)
        for key, (out, lse) in self._found.items():
            _of_rows(whole, slice(*key)).copy_(out)
            of_all[..., slice(*key)].copy_(lse)
        return whole, of_all


def _has(span, rows: slice) -> bool:
    return span[0] <= rows.start and rows.stop <= span[1]


def _within(rows: slice, span) -> slice:
    """The same rows, counted from where a span begins."""
    return slice(rows.start - span[0], rows.stop - span[0])


def _of_rows(x, rows: slice):
    return x[..., rows, :, :]


def _weights(a, b):
    """(lse of both together, what part of it either has as factors of out)."""
    both = torch.logaddexp(a, b)
    seen = both != _NOTHING  # a row that sees nothing: 0, and not NaN
    parts = [torch.where(seen, torch.exp(x - both), torch.zeros_like(both)) for x in (a, b)]
    return (both, *(x.transpose(-1, -2).unsqueeze(-1) for x in parts))


def merge(out, lse, other_out, other_lse):
    """(out, lse) of two results over keys that have none in common: out (..., seqlen, num_heads, head_dim), lse (...,
    num_heads, seqlen). Both are float32, and so is the result; a row that sees no key has lse -inf.

    >>> import torch, signflash
    >>> from signflash.distributed import merge
    >>> q, k, v = torch.randn(3, 1, 8, 2, 16)
    >>> halves = [signflash.attention(q, k[:, cut], v[:, cut], return_lse=True) for cut in (slice(0, 4), slice(4, 8))]
    >>> out, lse = merge(*halves[0], *halves[1])
    >>> torch.allclose(out, signflash.attention(q, k, v), atol=1e-6)
    True
    """
    both, ours, theirs = _weights(lse.float(), other_lse.float())
    return out.float() * ours + other_out.float() * theirs, both


def add_sinks(out, lse, sinks):
    """With one more score of each row, which has no value."""
    of_rows = sinks.float()[:, None].expand_as(lse)
    both, ours, _ = _weights(lse, of_rows)
    return out * ours, both


def gradient_of_sinks(sinks, results):
    """dsinks (num_heads): a sink's weight is exp(sink - lse), and its value is 0."""
    delta = (results.dout.float() * results.out.float()).sum(-1).transpose(-1, -2)
    if results.dlse is not None:
        delta = delta - results.dlse
    # A row whose sink is -inf and that sees no key has no weights at all.
    weights = torch.exp(sinks.float()[:, None] - results.lse)
    weights = torch.where(results.lse == _NOTHING, torch.zeros_like(weights), weights)
    dsinks = -(weights * delta)
    return dsinks.transpose(-1, -2).reshape(-1, len(sinks)).sum(0)
