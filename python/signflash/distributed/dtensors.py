"""DTensors: where their placements say that a rank's part lies in the whole."""

from __future__ import annotations

import sys
from typing import Any, List, Tuple

from .._settings import Shard
from .layout import Layout
from .methods import Ranks, is_hybrid

BATCH, SEQUENCE, HEADS = 0, 1, 2


def _kind():
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def are(q, k, v) -> bool:
    """Whether these are DTensors: all, or none."""
    kind = _kind()
    found = [kind is not None and isinstance(x, kind) for x in (q, k, v)]
    if any(found) and not all(found):
        raise TypeError(
            "q, k and v must be DTensors of one mesh, or plain tensors, got both; use distribute_tensor or to_local()"
        )
    return all(found)


def attention(run, tensors: Tuple, given, debug: bool) -> Tuple:
    """``run`` of the local parts, and its results as DTensors."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Placement

    q, k, v = tensors
    mesh, placements = q.device_mesh, q.placements
    for name, x in (("k", k), ("v", v)):
        if x.device_mesh != mesh or x.placements != placements:
            raise ValueError(
                f"{name} must have q's mesh and placements {placements}, got {x.placements}; use {name}.redistribute"
            )
    if given.cu_seqlens is not None:
        raise NotImplementedError("cu_seqlens with DTensors is not there; give the local parts, q.to_local()")
    if q.dim() != 4:
        raise ValueError(f"q must have 4 dimensions (batch, seqlen, num_heads, head_dim), got shape {tuple(q.shape)}")
    along = {dim: _dims_of(placements, dim) for dim in (BATCH, SEQUENCE, HEADS)}
    _refuse_others(placements, along)
    ranks = _ranks(mesh, along[SEQUENCE], given.method)
    batch, heads, heads_k = (_span(mesh, along[d], x.shape[d]) for d, x in ((BATCH, q), (HEADS, q), (HEADS, k)))
    if along[HEADS] and (k.shape[HEADS] % _count(mesh, along[HEADS]) or q.shape[HEADS] % _count(mesh, along[HEADS])):
        raise ValueError(
            f"num_heads and num_heads_k must be multiples of the {_count(mesh, along[HEADS])} parts that they are cut into, got "
            f"{q.shape[HEADS]} and {k.shape[HEADS]}; replicate them, and use method='ulysses' or another split"
        )
    layout = "contiguous" if given.layout is None else given.layout
    if isinstance(layout, str) and layout == "contiguous":
        layout = Layout.contiguous(q.shape[SEQUENCE], ranks.size), Layout.contiguous(k.shape[SEQUENCE], ranks.size)
    base = Shard(*(given.shard or ()))
    shard = base._replace(
        first_batch=base.first_batch + batch[0],
        first_head=base.first_head + heads[0],
        num_heads_total=q.shape[HEADS] if base.num_heads_total is None else base.num_heads_total,
    )
    joined = _of_heads(given.joined, batch, heads, q.shape)
    given = given._replace(layout=layout, seqlen=(q.shape[SEQUENCE], k.shape[SEQUENCE]), shard=shard, joined=joined)
    out, lse = run(tuple(x.to_local() for x in tensors), ranks, given, debug)
    shape = (*q.shape[:3], v.shape[3])
    stride = (shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1)
    # lse is (batch, num_heads, seqlen): the sequence is its last dimension, heads the one before.
    moved = {BATCH: 0, SEQUENCE: 2, HEADS: 1}
    of_lse = [Placement(moved[p.dim]) if p.is_shard() else p for p in placements]
    rows = (shape[0], shape[2], shape[1])
    wrapped = DTensor.from_local(out, mesh, placements, run_check=False, shape=shape, stride=stride)
    lse_stride = (rows[1] * rows[2], rows[2], 1)
    return wrapped, DTensor.from_local(lse, mesh, of_lse, run_check=False, shape=rows, stride=lse_stride)


def _dims_of(placements, dim: int) -> List[int]:
    """The dimensions of the mesh along which this one is sharded."""
    return [at for at, placement in enumerate(placements) if placement.is_shard(dim)]


def _refuse_others(placements, along) -> None:
    for at, placement in enumerate(placements):
        if placement.is_replicate() or any(at in dims for dims in along.values()):
            continue
        raise NotImplementedError(
            f"q must be sharded along batch, seqlen or num_heads, or replicated, got {placement}; use redistribute"
        )
    for dim, name in ((BATCH, "batch"), (HEADS, "num_heads")):
        if len(along[dim]) > 1:
            raise NotImplementedError(
                f"{name} is sharded along {len(along[dim])} dimensions of the mesh, expected one; flatten them"
            )


def _ranks(mesh, dims: List[int], method) -> Ranks:
    """Those that share the sequence."""
    names = mesh.mesh_dim_names
    if is_hybrid(method):
        if len(dims) != 2 or names is None:
            raise ValueError(
                f"method={method!r} needs seqlen sharded along two named dimensions of the mesh, got {len(dims)} of {names}"
            )
        return Ranks.of(None, mesh[names[dims[0]], names[dims[1]]], method)
    if len(dims) > 1:
        raise ValueError(
            f"seqlen is sharded along {len(dims)} dimensions of the mesh, expected one for method={method!r}"
        )
    if not dims:
        raise ValueError(
            "seqlen is not sharded along any dimension of the mesh: no rank needs another's keys; call signflash.attention on "
            "to_local() with shard=Shard(...), or redistribute"
        )
    return Ranks.of(mesh.get_group(dims[0]), None, method)


def _count(mesh, dims: List[int]) -> int:
    return mesh.size(dims[0]) if dims else 1


def _span(mesh, dims: List[int], size: int) -> Tuple[int, int]:
    """Which part of a dimension this rank has, as ``torch.chunk`` cuts it."""
    if not dims:
        return 0, size
    return chunk_of(size, mesh.size(dims[0]), mesh.get_local_rank(dims[0]))


def chunk_of(size: int, count: int, rank: int) -> Tuple[int, int]:
    each = -(-size // count)
    return min(size, rank * each), min(size, (rank + 1) * each)


def _of_heads(joined, batch, heads, shape) -> Any:
    """What scores are made of, cut to this rank's batches and heads: given whole, as plain tensors."""
    if joined is None:
        return None
    alibi_slopes, bias, mask, sinks = joined
    own, of = slice(*batch), slice(*heads)
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes[of] if alibi_slopes.dim() == 1 else alibi_slopes[own, of]
    cut = []
    for x in (bias, mask):
        if x is not None and x.dim() == 4:
            x = x[own if x.shape[0] > 1 else slice(None), of if x.shape[1] > 1 else slice(None)]
        elif x is not None and x.dim() == 3 and x.shape[0] > 1:
            x = x[of]
        cut.append(x)
    return alibi_slopes, *cut, None if sinks is None else sinks[of]
