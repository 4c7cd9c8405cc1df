"""A call's heads in parts, one computed after the other: what belongs to one part travels while another is computed."""

from __future__ import annotations

from typing import List, NamedTuple

import torch

from .compute import Call, Operands, Results

#: Into how many parts heads are cut. More hide more of what travels, give kernels less to do at once, and the host more.
PARTS = 2
#: Where all keys of all ranks have fewer bytes than this, heads are computed at once: what travels takes less time than a
#: message takes the host. Measured on two H200s (benchmarks/distributed.md).
LEAST_BYTES = 96 << 20


class Part(NamedTuple):
    """Neighbouring key heads, and the query heads that they serve."""

    query: slice
    key: slice

    def of_call(self, call: Call) -> Call:
        return call.of_heads(self.query, None)

    def of_operands(self, operands: Operands) -> Operands:
        sinks = None if operands.sinks is None else operands.sinks[self.query]
        return Operands(self.of_queries(operands.q), None, sinks)

    def of_results(self, results: Results) -> Results:
        out, lse, dout, dlse = results
        return Results(*(self.of_queries(out), self.of_lse(lse), self.of_queries(dout), self.of_lse(dlse)))

    def of_queries(self, x):
        """Its heads of (..., rows, heads, head_dim)."""
        return x[..., self.query, :]

    def of_keys(self, x):
        return x[..., self.key, :]

    def of_lse(self, x):
        """Its heads of (..., heads, rows), if there is one."""
        return None if x is None else x[..., self.query, :]


def whole_of(operands: Operands, k) -> Part:
    """All heads."""
    return Part(slice(0, operands.q.shape[-2]), slice(0, k.shape[-2]))


def parts_of(call: Call, operands: Operands, k, total: int) -> List[Part]:
    """Equal ones, of keys of so many positions in all; one, where they are few, where there is a bias or a mask, or where heads
    cannot be divided. On all ranks alike.
    """
    num_heads, num_heads_k = operands.q.shape[-2], k.shape[-2]
    divides = operands.bias is None and call.mask is None and num_heads_k % PARTS == 0
    count = PARTS if divides and are_many(k, total) else 1
    return [
        Part(*(slice(part * heads // count, (part + 1) * heads // count) for heads in (num_heads, num_heads_k)))
        for part in range(count)
    ]


def are_many(k, total: int) -> bool:
    """Whether keys of so many positions, with k's heads, are worth a message of their own for each part."""
    batch = k.shape[0] if k.dim() > 3 else 1
    return batch * total * k.shape[-2] * k.shape[-1] * k.element_size() >= LEAST_BYTES


def together(parts: List, dim: int):
    """What all parts have found."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
