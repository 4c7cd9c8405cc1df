"""Cutting a sequence into what each rank holds, and putting it together again."""

from __future__ import annotations

from typing import Any, Optional

import torch

from .exchange import Comm
from .layout import layout_of
from .methods import Ranks

HYBRID = ("ring", "ulysses")


def ranks_of(group, mesh) -> Ranks:
    """Those that share a sequence, whatever the method."""
    return Ranks.of(group, mesh, HYBRID if mesh is not None and mesh.ndim == 2 else "ring")


def shard_sequence(x: Any, *, group: Any = None, mesh: Any = None, layout: Any = "zigzag", dim: int = 1) -> Any:
    """This rank's positions of x, which every rank has whole along ``dim``. Nothing is sent.

    It is a copy where a rank's positions are not one span, and else a view. Cut everything that goes with positions alike:
    tokens, labels, position_ids. Differentiable, as indexing is.
    """
    ranks = ranks_of(group, mesh)
    return layout_of(layout, x.shape[dim], ranks.size).take(x, ranks.rank, dim)


@torch.no_grad()
def unshard_sequence(
    x: Any, *, group: Any = None, mesh: Any = None, layout: Any = "zigzag", dim: int = 1, seqlen: Optional[int] = None
) -> Any:
    """The whole of what :func:`shard_sequence` cut, on every rank. Without a gradient.

    seqlen is how many positions there are on all ranks; None: as many on each as on this one.
    """
    ranks = ranks_of(group, mesh)
    dim = dim % x.dim()
    total = x.shape[dim] * ranks.size if seqlen is None else seqlen
    of = layout_of(layout, total, ranks.size)
    if x.shape[dim] != of.length(ranks.rank):
        raise ValueError(
            f"x must have the {of.length(ranks.rank)} positions that rank {ranks.rank} has of {total} in dimension {dim}, got "
            f"{x.shape[dim]}; give seqlen where ranks have unequally many"
        )
    shapes = [(*x.shape[:dim], of.length(rank), *x.shape[dim + 1 :]) for rank in range(ranks.size)]
    comm = Comm.of(ranks.group, "signflash.distributed.unshard_sequence")
    return of.put_together(
        comm.all_gather([x.contiguous()], [shapes], "parts of every rank").wait()[0], dim
    ).contiguous()
