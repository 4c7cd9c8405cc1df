"""Ulysses: ranks exchange positions for heads, so that each has all positions of some heads; and back.

A rank's heads are computed in parts: while one is, the next come, and results of the one before go.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, List, NamedTuple, Tuple

import torch

from . import compute
from . import heads as of_heads
from .exchange import Comm, Parts
from .layout import Layout

#: How many tensors a method of one part keeps for its backward.
SAVED = 5


class Heads(NamedTuple):
    """Which heads a rank computes."""

    query: slice
    #: Key heads, one after the other; a head that several ranks need is in the lists of all of them.
    key: List[int]

    @property
    def keys(self):
        """The same as an index: a slice, which copies nothing, where they follow each other."""
        first, end = self.key[0], self.key[-1] + 1
        return slice(first, end) if self.key == list(range(first, end)) else self.key

    def part(self, number: int, count: int) -> "Heads":
        """One of equal parts."""
        begin, end, own = self.query.start, self.query.stop, len(self.key)
        at = [begin + (end - begin) * i // count for i in (number, number + 1)]
        return Heads(slice(*at), self.key[own * number // count : own * (number + 1) // count])


@lru_cache(maxsize=64)
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
        parts, many = self._parts(call, operands, k)
        coming = [self._to_heads(every, (operands.q, k, v), many) for every in parts]
        going, kept = [], []
        for every, pending in zip(parts, coming):
            q, k, v = self._in_order(pending, (self.of_q, self.of_k, self.of_k))
            inner_call, inner = self._of_heads(call, operands, q, every, "forward")
            out, lse, saved = self.inner.forward(inner_call, inner, k, v)
            kept += saved
            going.append(self._to_all((out, _as_out(lse)), (self.of_q, self.of_q), "forward: out and lse"))
        outs, rows = zip(*(pending.wait() for pending in going))
        return self._heads_of_all(parts, outs, call), _of_rows(self._heads_of_all(parts, rows, call)), tuple(kept)

    def backward(self, call, operands, saved, dout, dlse, wanted):
        """(dq, dk, dv, dbias, dsinks), each of its tensor's dtype, or of float32 where ``wanted.wide``."""
        shares, count = self._shares_keys(call), len(saved) // SAVED
        parts = self._parts_of(call, count)
        rows = [dout] if dlse is None else [dout, _as_out(dlse)]
        coming = [self._of_queries(every, rows) for every in parts]
        going, dbias, dsinks = [], None, None
        for number, (every, pending) in enumerate(zip(parts, coming)):
            own = saved[number * SAVED : (number + 1) * SAVED]
            inner_call, inner = self._of_heads(call, operands, own[0], every, "backward")
            of_out, *of_lse = self._in_order(pending, [self.of_q] * len(rows))
            of_lse = _of_rows(of_lse[0]) if of_lse else None
            wide = wanted._replace(wide=wanted.wide or shares)
            *found, dbias, of_sinks = self.inner.backward(inner_call, inner, own, of_out, of_lse, wide)
            going.append(self._to_all(found, (self.of_q, self.of_k, self.of_k), "backward: dq, dk and dv"))
            del found
            if of_sinks is not None:
                of_sinks = _among_all(of_sinks, every[self.comm.rank].query, call.num_heads, 0)
                dsinks = of_sinks if dsinks is None else dsinks + of_sinks
        of_q, of_k, of_v = zip(*(pending.wait() for pending in going))
        dq = self._heads_of_all(parts, of_q, call)
        dk, dv = (self._key_heads_of_all(parts, x, call) for x in (of_k, of_v))
        if not wanted.wide:
            dk, dv = dk.to(saved[1].dtype), dv.to(saved[2].dtype)
        if dbias is not None:
            dbias = self._of_entries(dbias, operands.bias, parts[0], call)
        return dq, dk, dv, dbias, dsinks

    def _parts(self, call, operands, k) -> Tuple[List[List[Heads]], bool]:
        """The heads of each rank, part by part, and whether there is much to send. One part, where there is not, where heads
        cannot be divided, or where there is a bias or a mask.
        """
        many = of_heads.are_many(k, self.of_k.total)
        whole = not many or operands.bias is not None or call.mask is not None or self._shares_keys(call)
        own = len(heads_of(call.num_heads, call.num_heads_k, self.comm.size)[0].key)
        return self._parts_of(call, 1 if whole or own % of_heads.PARTS else of_heads.PARTS), many

    def _parts_of(self, call, count: int) -> List[List[Heads]]:
        every = heads_of(call.num_heads, call.num_heads_k, self.comm.size)
        return [every] if count == 1 else [[heads.part(number, count) for heads in every] for number in range(count)]

    def _shares_keys(self, call) -> bool:
        """Whether a key head goes to several ranks."""
        every = heads_of(call.num_heads, call.num_heads_k, self.comm.size)
        return sum(len(heads.key) for heads in every) != call.num_heads_k

    def _to_heads(self, every: List[Heads], tensors, many: bool):
        """Starts to bring q, k and v of a rank's own heads, of all positions."""
        q, k, v = tensors
        chosen = [[q[..., heads.query, :] for heads in every]]
        chosen += [[x[..., heads.keys, :] for heads in every] for x in (k, v)]
        return self._start(chosen, (self.of_q, self.of_k, self.of_k), "forward: q, k and v", not many)

    def _of_queries(self, every: List[Heads], tensors):
        """The same of the gradients of out and, if there is one, of lse."""
        chosen = [[x[..., heads.query, :] for heads in every] for x in tensors]
        return self._start(chosen, [self.of_q] * len(chosen), "backward: gradients of out and lse")

    def _in_order(self, pending, layouts):
        """What has arrived, in the order of positions."""
        return [layout.put_together(parts, -3).contiguous() for parts, layout in zip(pending.wait(), layouts)]

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
            parts = self._to_all([dbias.transpose(1, 2)], [self.of_q], "backward: dbias").wait()[0]
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

    def _start(self, chosen, layouts, doing: str, together=True):
        """Starts to send each rank some heads of this rank's positions, and to bring this rank's heads of all."""
        mine = [of[self.comm.rank].shape for of in chosen]
        shapes = [
            [(*shape[:-3], layout.length(rank), *shape[-2:]) for rank in range(self.comm.size)]
            for shape, layout in zip(mine, layouts)
        ]
        return self.comm.all_to_all(Parts(chosen, shapes, [layout.longest for layout in layouts], doing, together))

    def _exchange(self, chosen, doing: str):
        """All queries' rows of a rank's own heads."""
        return self._in_order(self._start([chosen], [self.of_q], doing), [self.of_q])[0]

    def _to_all(self, tensors, layouts, doing: str):
        """Starts to bring a rank's own positions, of the heads of each rank."""
        parts = [[layout.take(x, rank, -3) for rank in range(self.comm.size)] for x, layout in zip(tensors, layouts)]
        shapes = [[of[self.comm.rank].shape] * self.comm.size for of in parts]
        return self.comm.all_to_all(Parts(parts, shapes, [layout.longest for layout in layouts], doing))

    def _heads_of_all(self, parts, going, call):
        """All query heads of a rank's own positions."""
        like = going[0][0]
        whole = like.new_empty((*like.shape[:-2], call.num_heads, like.shape[-1]))
        for every, of_ranks in zip(parts, going):
            for heads, x in zip(every, of_ranks):
                whole[..., heads.query, :].copy_(x)
        return whole

    def _key_heads_of_all(self, parts, going, call):
        """The same of gradients of keys: what several ranks have of one head is added, in the order of ranks."""
        like, shares = going[0][0], self._shares_keys(call)
        shape = (*like.shape[:-2], call.num_heads_k, like.shape[-1])
        whole = like.new_zeros(shape) if shares else like.new_empty(shape)
        for every, of_ranks in zip(parts, going):
            for heads, x in zip(every, of_ranks):
                if not shares:
                    whole[..., heads.keys, :].copy_(x)
                    continue
                for at, head in enumerate(heads.key):
                    whole[..., head, :] += x[..., at, :]
        return whole


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
