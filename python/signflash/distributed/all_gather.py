"""Keys and values of all ranks gathered on each; gradients of keys go back to their ranks, and are added there.

Heads are computed in parts: while one is, keys of the next come, and gradients of the one before go.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import compute
from .exchange import Comm, Parts
from .heads import parts_of, together
from .layout import Layout, Span
from .merge import Partial, Sum


class AllGather(NamedTuple):
    """What a rank has to know of the others."""

    comm: Comm
    of_q: Layout
    of_k: Layout

    def forward(self, call, operands, k, v):
        """(out, lse, what the backward is given)."""
        parts = parts_of(call, operands, k, self.of_k.total)
        coming = [self._gather(part, k, v, "forward") for part in parts]
        outs, rows = [], []
        for part, pending in zip(parts, coming):
            own_call, own = (call, operands) if len(parts) == 1 else (part.of_call(call), part.of_operands(operands))
            total = Partial(own.q, v)
            compute.forward_of(own_call, self._spans(), own, *self._arrived(pending), total)
            out, lse = compute.finish(own_call, self.of_q.spans[self.comm.rank], total, own)
            outs.append(out)
            rows.append(lse)
        out, lse = together(outs, -2), together(rows, -2)
        return out, lse, (operands.q, k, v, out, lse)

    def backward(self, call, operands, saved, dout, dlse, wanted):
        """(dq, dk, dv, dbias, dsinks), each of its tensor's dtype, or of float32 where ``wanted.wide``."""
        q, k, v, out, lse = saved
        results = compute.Results(out, lse, dout, dlse)
        dbias = compute.room_for_dbias(operands.bias, wanted.dbias)
        parts = parts_of(call, operands, k, self.of_k.total)
        coming = [self._gather(part, k, v, "backward") for part in parts]
        of_queries, going = [], []
        for part, pending in zip(parts, coming):
            own_call, own, own_results = call, operands, results
            if len(parts) > 1:
                own_call, own, own_results = part.of_call(call), part.of_operands(operands), part.of_results(results)
            every = self._arrived(pending)
            dq, *sums = (Sum(x) for x in (own.q, *every))
            compute.backward_of(own_call, self._spans(), own, *every, own_results, (dq, *sums, dbias))
            going.append(self._return(sums))
            of_queries.append(dq.rounded(q.dtype))
            del every, dq, sums
        dk, dv = (k.new_empty(x.shape, dtype=torch.float32 if wanted.wide else x.dtype) for x in (k, v))
        for part, pending in zip(parts, going):
            of_k, of_v = pending.wait()
            _add_up(of_k, part.of_keys(dk))
            _add_up(of_v, part.of_keys(dv))
        dsinks = compute.dsinks_of(operands, results, wanted.dsinks)
        return together(of_queries, -2), dk, dv, dbias, dsinks

    def _spans(self):
        return self.of_q.spans[self.comm.rank], (Span(0, self.of_k.total),)

    def _gather(self, part, k, v, direction: str):
        """Starts to bring all keys and all values of some heads."""
        own = [part.of_keys(x).contiguous() for x in (k, v)]
        shapes = [
            [(*x.shape[:-3], self.of_k.length(rank), *x.shape[-2:]) for rank in range(self.comm.size)] for x in own
        ]
        return self.comm.all_gather(own, shapes, f"{direction}: keys and values from every rank")

    def _arrived(self, pending):
        """In the order of positions."""
        return [self.of_k.put_together(parts, -3) for parts in pending.wait()]

    def _return(self, sums):
        """Starts to send each rank its rows of the gradients of keys and values, and to bring this rank's of what every rank
        has.
        """
        parts = [[self.of_k.take(one.total(), rank, -3) for rank in range(self.comm.size)] for one in sums]
        shapes = [[of[self.comm.rank].shape] * self.comm.size for of in parts]
        doing = "backward: gradients of keys and values to their ranks"
        return self.comm.all_to_all(Parts(parts, shapes, [self.of_k.longest] * len(sums), doing))


def _add_up(parts, into) -> None:
    """In the order of ranks, so that the sum is the same in each run."""
    total, *others = parts
    for number, one in enumerate(others):
        if number + 1 == len(others):
            torch.add(total, one, out=into)
        else:
            total.add_(one)
    if not others:
        into.copy_(total)
