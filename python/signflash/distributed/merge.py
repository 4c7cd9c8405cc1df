"""Results over some of the keys, put together in float32 by their lse."""

from __future__ import annotations

import torch

_NOTHING = float("-inf")


class Sum:
    """A gradient that is added up in float32, of a tensor's shape; nothing is zeroed where one part is all of it."""

    def __init__(self, like) -> None:
        self._like, self._total = like, None

    def add(self, rows: slice, part) -> None:
        """To some rows of (..., rows, heads, head_dim)."""
        if self._total is None and part.shape == self._like.shape:
            self._total = part.float()  # results of a call, which nobody else has
        else:
            self.total()[..., rows, :, :].add_(part)

    def total(self):
        if self._total is None:
            self._total = torch.zeros(self._like.shape, dtype=torch.float32, device=self._like.device)
        return self._total


class Partial:
    """out (..., rows, heads, head_dim) and lse (..., heads, rows) of the keys that were added so far, float32."""

    def __init__(self, q, v) -> None:
        *batch, rows, heads, _ = q.shape
        self.out = torch.zeros((*q.shape[:-1], v.shape[-1]), dtype=torch.float32, device=q.device)
        self.lse = torch.full((*batch, heads, rows), _NOTHING, dtype=torch.float32, device=q.device)
        self._written = []

    def add(self, rows: slice, out, lse) -> None:
        """What these rows see of some more keys, of which none was added before."""
        into, of = self.out[..., rows, :, :], self.lse[..., rows]
        if all(rows.stop <= begin or end <= rows.start for begin, end in self._written):
            into.copy_(out)
            of.copy_(lse)
        else:
            merged, _, theirs = _weights(of, lse)
            into.lerp_(out.float(), theirs)  # both weights add up to 1, or to 0 where both are 0: one pass
            of.copy_(merged)
        self._written.append((rows.start, rows.stop))


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
