"""Ring attention: keys and values go round, and in the backward their gradients follow them.

In step s a rank has the keys of the rank s before it, and sends them on while it computes. Gradients of keys leave a
rank when it has added what its queries contribute, so that they arrive one step later, and the last one sends them home:
straight, where a window ends the ring early. What a rank's queries contribute to its own keys does not travel; half of it is
computed while the last gradients do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import List, NamedTuple, Tuple

from . import compute
from .exchange import Comm, Parcel
from .heads import Part, parts_of, whole_of
from .layout import Layout
from .merge import Partial, Sum
from .pieces import Geometry, pieces

KEYS, GRADIENTS = 16, 32  # tags


class Unit(NamedTuple):
    """What is computed at once of a rank's own keys and queries."""

    part: Part
    #: Of the pieces.
    which: slice = slice(None)


class OfHeads(NamedTuple):
    """Gradients of some heads: sums of dq, dk and dv."""

    part: Part
    sums: List[Sum]


class Ring(NamedTuple):
    """What a rank has to know of the others."""

    comm: Comm
    of_q: Layout
    of_k: Layout

    def forward(self, call, operands, k, v):
        """(out, lse, what the backward is given)."""
        q = operands.q
        alone = self._alone(call, q)
        if alone is not None:
            out, lse = compute.forward_alone(call, alone, operands, k, v)
            return out, lse, (q, k, v, out, lse)
        total, kv = Partial(q, v), [k.contiguous(), v.contiguous()]
        steps = self._steps(call)
        for step in range(steps):
            coming = self._pass_on(kv, step, steps, "forward")
            compute.forward_of(call, self._spans(step), operands, *kv, total)
            kv = coming.wait() if coming else kv
        out, lse = compute.finish(call, self.of_q.spans[self.comm.rank], total, operands)
        return out, lse, (q, k, v, out, lse)

    def backward(self, call, operands, saved, dout, dlse, wanted):
        """(dq, dk, dv, dbias, dsinks), each of its tensor's dtype, or of float32 where ``wanted.wide``."""
        q, k, v, out, lse = saved
        results = compute.Results(out, lse, dout, dlse)
        alone = self._alone(call, q)
        if alone is not None:
            return compute.backward_alone(call, alone, operands, k, v, results, wanted)
        dbias = compute.room_for_dbias(operands.bias, wanted.dbias)
        steps = self._steps(call)
        units, own = self._units(call, operands, k, steps), {}
        kv = [k.contiguous(), v.contiguous()]
        coming = self._pass_on(kv, 0, steps, "backward")
        # This rank's own keys: some before those of others, which come meanwhile, the rest behind, while gradients go.
        before = max(1, len(units) // 2)
        for unit in units[:before]:
            self._add_own(call, operands, unit, kv, results, dbias, own)
        in_parts = units[0].part != units[-1].part
        dq, behind = Sum(q) if in_parts else own[0].sums[0], None
        for step in range(1, steps):
            kv = coming.wait()
            coming = self._pass_on(kv, step, steps, "backward")
            sums = [Sum(x) for x in kv]
            compute.backward_of(call, self._spans(step), operands, *kv, results, (dq, *sums, dbias))
            sums = [one.total() for one in sums]
            if behind is not None:
                for mine, others in zip(sums, behind.wait()):
                    mine.add_(others)
            behind = self._send_gradients(sums, kv, step, steps)
        kv = sums = coming = None
        for unit in units[before:]:
            self._add_own(call, operands, unit, (k, v), results, dbias, own)
        others = [dq if in_parts else None, None, None]
        if behind is not None:
            others[1:] = [Sum.of(x) for x in behind.wait()]
        found = [x.new_empty(x.shape, dtype=dtype) for x, dtype in zip((q, k, v), wanted.dtypes(q, k, v))]
        for part, sums in own.values():
            for heads, mine, other, into in zip((part.query, part.key, part.key), sums, others, found):
                mine.add_to(other, heads, into[..., heads, :])
        dsinks = compute.dsinks_of(operands, results, wanted.dsinks)
        return (*found, dbias, dsinks)

    def _units(self, call, operands, k, steps: int):
        """This rank's own work in two, if others' is to be done between: some of the pieces and the rest of them, if there are
        several, and else some of the heads.
        """
        whole = whole_of(operands, k)
        if steps == 1:
            return [Unit(whole)]
        count = len(list(pieces(call.geometry, *self._spans(0))))
        if count > 1:
            return [Unit(whole, slice(0, count // 2)), Unit(whole, slice(count // 2, None))]
        return [Unit(part) for part in parts_of(call, operands, k, self.of_k.total)]

    def _add_own(self, call, operands, unit: "Unit", kv, results, dbias, own) -> None:
        """Adds gradients of this rank's queries and its own keys to those of some heads, which ``own`` has by the first of them."""
        (k, v), part = kv, unit.part
        if part.query != slice(0, operands.q.shape[-2]):
            call, operands, results = part.of_call(call), part.of_operands(operands), part.of_results(results)
            k, v = part.of_keys(k), part.of_keys(v)
        of_part = own.setdefault(part.query.start, OfHeads(part, [Sum(x) for x in (operands.q, k, v)]))
        compute.backward_of(call, self._spans(0), operands, k, v, results, (*of_part.sums, dbias), unit.which)

    def _owner(self, step: int) -> int:
        return (self.comm.rank - step) % self.comm.size

    def _spans(self, step: int):
        return self.of_q.spans[self.comm.rank], self.of_k.spans[self._owner(step)]

    def _steps(self, call) -> int:
        return steps_of(call.geometry, self.of_q, self.of_k)

    def _alone(self, call, q):
        """The one piece, where there is nobody else and nothing to add."""
        if self.comm.size > 1:
            return None
        geometry, every = call.geometry, list(pieces(call.geometry, self.of_q.spans[0], self.of_k.spans[0]))
        if len(every) != 1 or every[0][:2] != (slice(0, q.shape[-3]), slice(0, self.of_k.length(0))):
            return None
        if geometry.is_packed and (every[0].starts is None or len(every[0].starts[0]) != len(geometry.starts_q)):
            return None
        return every[0]

    def _shapes(self, like, rank: int):
        """Of tensors like these that belong to another rank."""
        length = self.of_k.length(rank)
        return [(*x.shape[:-3], length, *x.shape[-2:]) for x in like]

    def _pass_on(self, kv, step: int, steps: int, direction: str):
        if step + 1 == steps:
            return None
        rank, size = self.comm.rank, self.comm.size
        shapes = self._shapes(kv, self._owner(step + 1))
        doing = f"{direction}, step {step + 1} of {steps}: keys and values"
        return self.comm.exchange(
            Parcel(kv, (rank + 1) % size, (rank - 1) % size, shapes, self.of_k.longest, KEYS, doing)
        )

    def _send_gradients(self, sums, kv, step: int, steps: int):
        """On to the next, or home; None where they are at home."""
        rank, size = self.comm.rank, self.comm.size
        doing = f"backward, step {step + 1} of {steps}: gradients of keys and values"
        if step + 1 < steps:
            to, source, shapes = (rank + 1) % size, (rank - 1) % size, self._shapes(kv, self._owner(step + 1))
        else:
            to, source, shapes = self._owner(step), (rank + step) % size, self._shapes(kv, rank)
        return self.comm.exchange(Parcel(sums, to, source, shapes, self.of_k.longest, GRADIENTS, doing))


@lru_cache(maxsize=256)
def steps_of(geometry: Geometry, of_q: Layout, of_k: Layout) -> int:
    """After how many steps no rank meets keys that its queries see: the same for all ranks."""
    size = of_q.ranks
    for step in range(size - 1, 0, -1):
        for rank in range(size):
            found: Tuple = (of_q.spans[rank], of_k.spans[(rank - step) % size])
            if next(pieces(geometry, *found), None) is not None:
                return step + 1
    return 1
