"""Methods by their names, and the ranks that they work on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Optional, Tuple

import torch.distributed as dist

from .all_gather import AllGather
from .exchange import Comm
from .layout import Layout
from .ring import Ring
from .ulysses import Ulysses, heads_of

#: Those that leave a rank's queries where they are.
BY_POSITION = {"ring": Ring, "all_gather": AllGather}
NAMES = (*BY_POSITION, "ulysses", *((name, "ulysses") for name in BY_POSITION))


class Ranks(NamedTuple):
    """All ranks that share a sequence, and the groups of this one along each part of a method."""

    #: Of all of them; None is all processes.
    group: Any
    rank: int
    size: int
    #: Of a method of two parts: this rank's groups along either dimension of the mesh.
    parts: Optional[Tuple[Any, Any]] = None

    @classmethod
    def of(cls, group, mesh, method) -> "Ranks":
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed is not initialized; call torch.distributed.init_process_group first")
        if mesh is None:
            if is_hybrid(method):
                raise ValueError(f"method={method!r} needs a mesh of two dimensions, got none; use init_device_mesh")
            return cls(group, dist.get_rank(group), dist.get_world_size(group))
        if group is not None:
            raise ValueError("group was given together with mesh; give one of them")
        expected = 2 if is_hybrid(method) else 1
        if mesh.ndim != expected:
            raise ValueError(
                f"mesh must have {expected} dimensions for method={method!r}, got {mesh.ndim}; take one by its name, mesh['cp']"
            )
        if expected == 1:
            group = mesh.get_group()
            return cls(group, dist.get_rank(group), dist.get_world_size(group))
        row, column = mesh.get_coordinate()
        whole = _whole_group(mesh)
        return cls(whole, row * mesh.size(1) + column, mesh.size(), (mesh.get_group(0), mesh.get_group(1)))


def _whole_group(mesh):
    """A group of all ranks of a mesh of two dimensions."""
    if mesh.size() == dist.get_world_size():
        return None
    return mesh._flatten().get_group()


def is_hybrid(method) -> bool:
    return isinstance(method, (tuple, list))


@lru_cache(maxsize=64)
def _whole(total: int) -> Layout:
    """That of one rank, which has all positions."""
    return Layout([[(0, total)]])


def method_of(method, ranks: Ranks, of_q: Layout, of_k: Layout, heads: Tuple[int, int]):
    """What computes."""
    name = f"signflash.distributed.attention(method={method!r})"
    if isinstance(method, list):
        method = tuple(method)
    if method not in NAMES:
        raise ValueError(f"method must be one of {', '.join(map(repr, NAMES))}, got {method!r}")
    if method in BY_POSITION:
        return BY_POSITION[method](Comm.of(ranks.group, name), of_q, of_k)
    if method == "ulysses":
        heads_of(*heads, ranks.size)  # judges them
        comm, alone = Comm.of(ranks.group, name), Comm(None, 0, 1, name)
        joined = [_whole(layout.total) for layout in (of_q, of_k)]
        return Ulysses(comm, of_q, of_k, Ring(alone, *joined))
    outer, inner = (Comm.of(group, name) for group in ranks.parts)
    heads_of(*heads, inner.size)
    rows = [range(row * inner.size, (row + 1) * inner.size) for row in range(outer.size)]
    by_position = BY_POSITION[method[0]](outer, *(layout.joined(rows) for layout in (of_q, of_k)))
    return Ulysses(inner, *(layout.within(rows[outer.rank]) for layout in (of_q, of_k)), by_position)
