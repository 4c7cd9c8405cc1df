"""Ulysses: ranks exchange positions for heads, so that each has all positions of some heads; and back."""

from __future__ import annotations

from typing import Any, List, NamedTuple

import torch

from . import compute
from .exchange import Comm
from .layout import Layout


class Heads(NamedTuple):
    """Which heads a rank computes."""

    query: slice
    #: Key heads, one after the other; a head that several ranks need is in the lists of all of them.
    key: List[int]


def heads_of(num_heads: int, num_heads_k: int, ranks: int) -> List[Heads]:
    """Of each rank, equally many.

    Where key heads are fewer than ranks each goes to all that need it; where a rank's query heads are neither whole groups
    nor within one, each has a copy of its own.
    """
    if num_heads % ranks:
        raise ValueError(
            f"method='ulysses' needs num_heads to be a multiple of the {ranks} ranks that share them, got {num_heads}; use "
            "method='ring' or 'all_gather', or a mesh of two dimensions and method=('ring', 'ulysses')"
        )
    each, group = num_heads // ranks, num_heads // num_heads_k
    found = []
    for rank in range(ranks):
        first = rank * each
        if each % group == 0 or group % each == 0:
            keys = list(range(first // group, -(-(first + each) // group)))
        else:
            keys = [head // group for head in range(first, first + each)]
        found.append(Heads(slice(first, first + each), keys))
    return found


class Ulysses(NamedTuple):
    """What a rank has to know of those with which it exchanges, and who computes then: all positions of a few heads."""

    comm: Comm
    #: Of the ranks of ``comm``; the positions of one together are what ``inner`` holds.
    of_q: Layout
    of_k: Layout
    inner: Any

    def forward(self, call, operands, k, v):
        """(out, lse, what the backward is given)."""
        every = heads_of(call.num_heads, call.num_heads_k, self.comm.size)
        to_heads = [(operands.q, self.of_q, "q"), (k, self.of_k, "k"), (v, self.of_k, "v")]
        coming = []
        for x, layout, name in to_heads:
            chosen = [x[..., heads.query if name == "q" else heads.key, :] for heads in every]
            coming.append((self._start(chosen, layout, f"forward: {name}"), layout))
        q, k, v = [layout.put_together(one.wait(), -3).contiguous() for one, layout in coming]
        inner_call, inner = self._of_heads(call, operands, q, every, "forward")
        out, lse, saved = self.inner.forward(inner_call, inner, k, v)
        out = torch.cat(self._from_all(out, self.of_q, "forward: out"), -2)
        return out, _of_rows(torch.cat(self._from_all(_as_out(lse), self.of_q, "forward: lse"), -2)), saved

    def backward(self, call, operands, saved, dout, dlse, wanted):
        """(dq, dk, dv, dbias, dsinks), each of its tensor's dtype, or of float32 where ``wanted.wide``."""
        every = heads_of(call.num_heads, call.num_heads_k, self.comm.size)
        shares = sum(len(heads.key) for heads in every) != call.num_heads_k
        dout = self._exchange([dout[..., heads.query, :] for heads in every], "backward: dout")
        if dlse is not None:
            rows = _as_out(dlse)
            dlse = _of_rows(self._exchange([rows[..., heads.query, :] for heads in every], "backward: dlse"))
        inner_call, inner = self._of_heads(call, operands, saved[0], every, "backward")
        dq, dk, dv, dbias, dsinks = self.inner.backward(
            inner_call, inner, saved, dout, dlse, wanted._replace(wide=wanted.wide or shares)
        )
        dq = torch.cat(self._from_all(dq, self.of_q, "backward: dq"), -2)
        dk = self._of_keys(dk, every, call.num_heads_k, "backward: dk")
        dv = self._of_keys(dv, every, call.num_heads_k, "backward: dv")
        if not wanted.wide:
            dk, dv = dk.to(saved[1].dtype), dv.to(saved[2].dtype)
        if dbias is not None:
            dbias = self._of_entries(dbias, operands.bias, every, call)
        if dsinks is not None:
            dsinks = _among_all(dsinks, every[self.comm.rank].query, call.num_heads, 0)
        return dq, dk, dv, dbias, dsinks

    def _of_heads(self, call, operands, q, every: List[Heads], direction: str):
        """The call and the operands of a rank's own heads, for all positions."""
        own = every[self.comm.rank].query
        bias, mask = (
            self._entries(x, every, call, f"{direction}: {name}")
            for name, x in (("bias", operands.bias), ("mask", call.mask))
        )
        sinks = None if operands.sinks is None else operands.sinks[own]
        return call.of_heads(own, mask), compute.Operands(q, bias, sinks)

    def _entries(self, x, every: List[Heads], call, doing: str):
        """A bias's or a mask's share of a rank: of its heads, and of all queries where each rank has its own."""
        if x is None:
            return None
        each = [heads.query if x.shape[1] > 1 else slice(None) for heads in every]
        if not self._has_rows(x, call):
            return x[:, each[self.comm.rank]]
        rows = self.of_q.length(self.comm.rank)
        rows_first = x.expand(-1, -1, rows, -1).transpose(1, 2)
        return self._exchange([rows_first[..., heads, :] for heads in each], doing).transpose(1, 2)

    def _of_entries(self, dbias, bias, every: List[Heads], call):
        """The way back: a rank's own rows of all heads; of a bias of one row for all, what its heads contribute."""
        if self._has_rows(bias, call):
            parts = self._from_all(dbias.transpose(1, 2), self.of_q, "backward: dbias")
            own = (torch.cat(parts, -2) if bias.shape[1] > 1 else torch.stack(parts).sum(0)).transpose(1, 2)
            return own.sum_to_size(bias.shape)
        return dbias if bias.shape[1] == 1 else _among_all(dbias, every[self.comm.rank].query, call.num_heads, 1)

    def _has_rows(self, x, call) -> bool:
        """Whether ranks exchange rows of a bias or a mask. Where one has a single query, it cannot tell its own row from one
        for all: then all do.
        """
        if call.geometry.is_packed:
            return False
        return x.shape[2] != 1 or any(self.of_q.length(rank) == 1 for rank in range(self.comm.size))

    def _start(self, chosen, layout: Layout, doing: str):
        mine = chosen[self.comm.rank].shape
        shapes = [(*mine[:-3], layout.length(rank), *mine[-2:]) for rank in range(self.comm.size)]
        return self.comm.all_to_all(chosen, shapes, doing)

    def _exchange(self, chosen, doing: str):
        """All queries' rows of a rank's own heads."""
        return self.of_q.put_together(self._start(chosen, self.of_q, doing).wait(), -3).contiguous()

    def _from_all(self, x, layout: Layout, doing: str):
        """A rank's own positions, of the heads of each rank."""
        parts = [layout.take(x, rank, -3) for rank in range(self.comm.size)]
        shape = parts[self.comm.rank].shape
        return self.comm.all_to_all(parts, [shape] * self.comm.size, doing).wait()

    def _of_keys(self, x, every: List[Heads], num_heads_k: int, doing: str):
        """The same of gradients of keys: what several ranks have of one head is added, in the order of ranks."""
        parts = self._from_all(x, self.of_k, doing)
        if sum(len(heads.key) for heads in every) == num_heads_k:
            return torch.cat(parts, -2)
        total = parts[0].new_zeros((*parts[0].shape[:-2], num_heads_k, parts[0].shape[-1]))
        for heads, part in zip(every, parts):
            for at, head in enumerate(heads.key):
                total[..., head, :] += part[..., at, :]
        return total


def _as_out(lse):
    """(..., heads, rows) as (..., rows, heads, 1)."""
    return lse.transpose(-1, -2).unsqueeze(-1)


def _of_rows(x):
    """The inverse."""
    return x.squeeze(-1).transpose(-1, -2).contiguous()


def _among_all(x, heads: slice, num_heads: int, dim: int):
    """What some heads contribute to a gradient that is of all: zeros elsewhere."""
    shape = list(x.shape)
    shape[dim] = num_heads
    whole = x.new_zeros(shape)
    whole.narrow(dim, heads.start, heads.stop - heads.start).copy_(x)
    return whole
