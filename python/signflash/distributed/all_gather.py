"""Keys and values of all ranks gathered on each; gradients of keys go back to their ranks, and are added there."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import compute
from .exchange import Comm
from .layout import Layout, Span
from .merge import Partial, Sum


class AllGather(NamedTuple):
    """What a rank has to know of the others."""

    comm: Comm
    of_q: Layout
    of_k: Layout

    def forward(self, call, operands, k, v):
        """(out, lse, what the backward is given)."""
        total = Partial(operands.q, v)
        compute.forward_of(call, self._spans(), operands, *self._gathered(k, v, "forward"), total)
        out, lse = compute.finish(call, self.of_q.spans[self.comm.rank], total, operands)
        return out, lse, (operands.q, k, v, out, lse)

    def backward(self, call, operands, saved, dout, dlse, wanted):
        """(dq, dk, dv, dbias, dsinks), each of its tensor's dtype, or of float32 where ``wanted.wide``."""
        q, k, v, out, lse = saved
        results = compute.Results(out, lse, dout, dlse)
        every = self._gathered(k, v, "backward")
        dq, *sums = (Sum(x) for x in (q, *every))
        dbias = compute.room_for_dbias(operands.bias, wanted.dbias)
        compute.backward_of(call, self._spans(), operands, *every, results, (dq, *sums, dbias))
        dk, dv = self._returned([one.total() for one in sums])
        dsinks = compute.dsinks_of(operands, results, wanted.dsinks)
        if not wanted.wide:
            dk, dv = dk.to(k.dtype), dv.to(v.dtype)
        return dq.total().to(q.dtype), dk, dv, dbias, dsinks

    def _spans(self):
        return self.of_q.spans[self.comm.rank], (Span(0, self.of_k.total),)

    def _gathered(self, k, v, direction: str):
        """All keys and all values, in the order of positions."""
        pending = []
        for name, x in (("keys", k), ("values", v)):
            shapes = [(*x.shape[:-3], self.of_k.length(rank), *x.shape[-2:]) for rank in range(self.comm.size)]
            pending.append(self.comm.all_gather(x.contiguous(), shapes, f"{direction}: {name} from every rank"))
        return [self.of_k.put_together(one.wait(), -3) for one in pending]

    def _returned(self, sums):
        """Of each gradient, this rank's rows of what every rank has: added in the order of ranks, so that they are the same
        in each run."""
        pending = []
        for name, x in zip(("keys", "values"), sums):
            parts = [self.of_k.take(x, rank, -3).contiguous() for rank in range(self.comm.size)]
            mine = parts[self.comm.rank].shape
            doing = f"backward: gradients of {name} to their ranks"
            pending.append(self.comm.all_to_all(parts, [mine] * self.comm.size, doing))
        return [torch.stack(one.wait()).sum(0) if self.comm.size > 1 else one.wait()[0] for one in pending]
