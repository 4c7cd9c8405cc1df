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
    """A gradient that is added up in float32, of a tensor's shape. The last part is added when the sum is asked for, which
    is the pass that rounds it, too.
    """

    def __init__(self, like) -> None:
        super().__init__(like.shape[-3])
        self._like = like
        self._late: Optional[Tuple[Tuple[int, int], Any]] = None

    def add(self, rows: slice, part) -> None:
        """To some rows; the sum keeps the part, which nobody else has."""
        self.settle()
        key = self._key(rows)
        if key not in self._found:
            self._found[key] = part
        elif key == (rows.start, rows.stop):
            self._late = (key, part)
        else:
            _of_rows(self._found[key], rows).add_(part)

    def settle(self) -> None:
        """Adds what waits, and lets go of it."""
        if self._late is not None:
            key, part = self._late
            self._found[key].add_(part)
            self._late = None

    def total(self):
        """float32."""
        self.settle()
        if not self._covers():
            self._found = {(0, self._rows): self._put_together()}
        return self._found[0, self._rows]

    def rounded(self, dtype):
        """The sum, of this dtype."""
        if self._covers() and self._late is None:
            return self._found[0, self._rows].to(dtype)
        return self._put_together(dtype)

    def _put_together(self, dtype=torch.float32):
        whole = self._room(self._like.new_empty, self._like.shape, dtype)
        for key, part in self._found.items():
            into = _of_rows(whole, slice(*key))
            if self._late is not None and self._late[0] == key:
                torch.add(part, self._late[1], out=into)
            else:
                into.copy_(part)
        return whole


class Partial(_Rows):
    """out (..., rows, heads, head_dim) and lse (..., heads, rows) of the keys that were added so far, float32."""

    def __init__(self, q, v) -> None:
        super().__init__(q.shape[-3])
        self._q, self._head_dim = q, v.shape[-1]

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
