"""The public function: attention of a sequence that lies on several ranks."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Sequence, Tuple

import torch

from .._attention import _joined, _pair
from .._settings import UNBOUNDED, Shard, judged
from .._torch import checks, paths, scores
from . import compare, dtensors, seeds
from .compute import Call
from .function import Distributed, Job
from .layout import Layout, layouts_of
from .methods import Ranks, method_of
from .pieces import Geometry


class Given(NamedTuple):
    """Arguments that say what is computed, as they were given."""

    method: Any
    layout: Any
    seqlen: Any
    causal: bool
    window: Sequence[int]
    cu_seqlens: Any
    softmax_scale: Optional[float]
    dropout_p: float
    seed: Optional[int]
    offset: Optional[int]
    generator: Any
    scale_rule: str
    shard: Optional[Shard]
    deterministic: bool
    softcap: Optional[float]
    joined: Any


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    group: Any = None,
    mesh: Any = None,
    method: Any = "ring",
    layout: Any = None,
    seqlen: Any = None,
    causal: bool = False,
    window: Sequence[int] = UNBOUNDED,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    softmax_scale: Optional[float] = None,
    dropout_p: float = 0.0,
    seed: Optional[int] = None,
    offset: Optional[int] = None,
    generator: Any = None,
    scale_rule: str = "unbiased",
    shard: Optional[Sequence] = None,
    deterministic: bool = False,
    softcap: Optional[float] = None,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    return_lse: bool = False,
    debug: bool = False,
) -> Any:
    """:func:`signflash.attention` of sequences whose positions lie on several ranks, with the dropout mask of one device.

    Every rank of the group calls it, with the same arguments but for tensors. out and gradients of a rank are those of its
    own positions.

    Args:
        q: (batch, this rank's queries, num_heads, head_dim), as :func:`shard_sequence` cuts; k and v alike. Packed sequences
            are (this rank's tokens, num_heads, head_dim). Or DTensors, see below.
        group: a process group; None is all processes.
        mesh: a ``DeviceMesh`` in place of it: of one dimension, or of as many as ``method`` has parts.
        method: ``"ring"``: keys and values go round while they are used, and each rank holds two shares of them.
            ``"all_gather"``: each rank holds all of them while it computes. ``"ulysses"``: ranks exchange positions for
            heads, so num_heads must be a multiple of the ranks; key heads may be fewer. ``("ring", "ulysses")`` (or
            ``("all_gather", "ulysses")``) is both: over the first and the second dimension of ``mesh``.
        layout: which positions a rank has. ``"zigzag"``, the default: the chunks r and 2 n - 1 - r of 2 n, which gives all
            ranks equal work where attention is causal. ``"contiguous"``: chunk r of n, the default of DTensors. A
            :class:`Layout`, for any other; a pair of these, for queries and for keys.
        seqlen: how many positions there are on all ranks together, or a pair for queries and keys. None: as many on each
            rank as on this one. Must be given where ranks have unequally many.
        causal, window, softmax_scale, scale_rule, softcap, deterministic: as of one device, of the whole sequence.
        cu_seqlens_q, cu_seqlens_k: of packed sequences, where each begins in the whole: the same on all ranks, which may cut
            sequences anywhere. On a GPU they are waited for; tensors on the CPU, or lists, are not.
        dropout_p, seed, offset, generator: as of one device. Without a seed the state is that of ``generator`` (a
            :class:`signflash.Generator` that all ranks have alike), of the innermost :func:`signflash.random_state`, or of a
            generator of the group, whose seed rank 0's ``torch.manual_seed`` or :func:`manual_seed` has set. Nothing is sent
            for it but that seed, once.
        shard: where batch and heads of all these ranks lie in something larger still, as in tensor and data parallel.
        alibi_slopes, sinks: as of one device, of all heads.
        bias, mask: (1 or batch, 1 or num_heads, 1 or this rank's queries, all keys): rows as q has them, and columns by
            position. Those of packed sequences are whole on every rank. Gradients of bias and sinks are this rank's
            contribution, as of every parameter in data parallel: add those of all ranks.
        return_lse: also return lse (batch, num_heads, this rank's queries), differentiable.
        debug: compare arguments, shapes, dtypes and the random state of all ranks before anything is sent; if they differ,
            every rank raises the same error, which names the ranks. Takes a collective, and on a GPU waits.

    Returns:
        out (batch, this rank's queries, num_heads, head_dim_v), of q's dtype, or (out, lse). DTensors of the placements of q
        for DTensors: these may be sharded along batch, sequence and heads (``mesh`` is then theirs, and group must be None),
        and what ``method`` works on are the dimensions of the mesh along which the sequence is sharded.

    Raises:
        ValueError, TypeError, NotImplementedError: on this rank alone, before anything is sent; with ``debug`` on all.
        RuntimeError: a rank ended, or sends something else: what the backend raised, when the group's timeout has passed,
            with the name of the call and the step.

    Accuracy is that of one device (docs/contract.md): partial results are added in float32, and rounded once. Results are the
    same bits in every run with the same ranks (on a GPU with ``deterministic``).
    """
    given = Given(
        method,
        layout,
        seqlen,
        bool(causal),
        window,
        _pair(cu_seqlens_q, cu_seqlens_k),
        softmax_scale,
        dropout_p,
        seed,
        offset,
        generator,
        scale_rule,
        shard,
        bool(deterministic),
        softcap,
        _joined(alibi_slopes, bias, mask, sinks),
    )
    if dtensors.are(q, k, v):
        if group is not None or mesh is not None:
            raise ValueError("q is a DTensor, which has a mesh of its own; leave group and mesh out")
        out, lse = dtensors.attention(_attention, (q, k, v), given, debug)
    else:
        out, lse = _attention((q, k, v), Ranks.of(group, mesh, method), given, debug)
    return (out, lse) if return_lse else out


@torch.compiler.disable
def _attention(tensors: Tuple, ranks: Ranks, given: Given, debug: bool) -> Tuple:
    if not debug:
        return _run(*_prepared(tensors, ranks, given))
    try:
        prepared = _prepared(tensors, ranks, given)
    except (ValueError, TypeError, NotImplementedError) as error:
        compare.refuse_everywhere(ranks, error)
        raise
    q, k, v, bias, sinks, job = prepared
    compare.all_alike(ranks, compare.description(q, k, v, bias, sinks, job, given))
    return _run(*prepared)


def _run(q, k, v, bias, sinks, job: Job) -> Tuple:
    return Distributed.apply(job, bias, sinks, q, k, v)


def _prepared(tensors: Tuple, ranks: Ranks, given: Given) -> Tuple:
    """Everything judged, and the state drawn."""
    q, k, v = tensors
    settings = judged(
        given.dropout_p,
        given.softmax_scale,
        given.causal,
        given.window,
        given.scale_rule,
        given.softcap,
        None,
        given.shard,
    )
    starts = None if given.cu_seqlens is None else [_numbers(x) for x in given.cu_seqlens]
    q, k, v = checks.autocast(q, k, v)
    _refuse_recorders(q, k, v)
    checks.check_kinds(q, k, v, None if starts is None else _no_starts(q))
    checks.check_shapes(*(x if starts is None else x.unsqueeze(0) for x in (q, k, v)))
    totals = _totals(given.seqlen, (q.shape[-3], k.shape[-3]), ranks.size)
    of_q, of_k = layouts_of("zigzag" if given.layout is None else given.layout, totals, ranks.size)
    for name, x, layout in (("q", q, of_q), ("k", k, of_k), ("v", v, of_k)):
        _check_length(name, x.shape[-3], layout, ranks)
    geometry = _geometry(settings, totals, starts, given.joined)
    alibi_slopes, bias, mask, sinks = _scores(given.joined, q, totals, starts)
    num_heads, num_heads_k = q.shape[-2], k.shape[-2]
    shard = settings.shard or Shard()
    heads_total = num_heads if shard.num_heads_total is None else shard.num_heads_total
    sequences = q.shape[0] if starts is None else len(starts[0]) - 1
    state = seeds.drawn(
        q, ranks.group, given.seed, given.offset, given.generator, (sequences, heads_total), settings.dropout_p
    )
    arguments = dict(
        dropout_p=settings.dropout_p,
        causal=settings.causal,
        window=(settings.window_left, settings.window_right),
        softmax_scale=settings.softmax_scale,
        scale_rule=given.scale_rule,
        softcap=settings.softcap,
        seed=state[0],
        offset=state[1],
    )
    deterministic = given.deterministic or torch.are_deterministic_algorithms_enabled()
    call = Call(geometry, arguments, shard, num_heads, num_heads_k, deterministic, alibi_slopes, mask)
    method = method_of(given.method, ranks, of_q, of_k, (num_heads, num_heads_k))
    return q, k, v, bias, sinks, Job(method, call, state, settings.dropout_p)


def _refuse_recorders(q, k, v) -> None:
    if not all(isinstance(x, torch.Tensor) for x in (q, k, v)):
        return  # refused by name
    if paths.needs_operator((q, k, v)):
        raise NotImplementedError(
            "signflash.distributed.attention cannot be recorded by tracers, dispatch modes (FlopCounterMode) and transforms of "
            "torch.func, and takes no meta or fake tensors, and no subclasses but DTensors; call it outside of them"
        )


def _numbers(starts) -> Tuple[int, ...]:
    return tuple(int(x) for x in (starts.tolist() if isinstance(starts, torch.Tensor) else starts))


def _no_starts(q):
    """cu_seqlens of no sequences: what checks of packed tensors ask for."""
    none = torch.zeros(1, dtype=torch.int32, device=q.device)
    return none, none


def _totals(seqlen, local: Tuple[int, int], ranks: int) -> Tuple[int, int]:
    if seqlen is None:
        return local[0] * ranks, local[1] * ranks
    if isinstance(seqlen, int):
        return seqlen, seqlen
    try:
        of_q, of_k = seqlen
    except (TypeError, ValueError):
        raise TypeError(f"seqlen must be an int, or a pair for queries and keys, got {seqlen!r}") from None
    return int(of_q), int(of_k)


def _check_length(name: str, length: int, layout: Layout, ranks: Ranks) -> None:
    expected = layout.length(ranks.rank)
    if length != expected:
        raise ValueError(
            f"{name} must have the {expected} positions that rank {ranks.rank} of {ranks.size} has of {layout.total}, got "
            f"{length}; cut it with shard_sequence, and give seqlen where ranks have unequally many"
        )


def _geometry(settings, totals: Tuple[int, int], starts, joined) -> Geometry:
    left, right = (None if side < 0 else side for side in (settings.window_left, settings.window_right))
    if starts is not None:
        for name, of, total in zip("qk", starts, totals):
            if len(of) != len(starts[0]) or of[0] != 0 or list(of) != sorted(of) or of[-1] > total:
                raise ValueError(
                    f"cu_seqlens_{name} must begin with 0, not fall, end at {total} at most and have as many numbers as the "
                    f"other, got {list(of)[:8]}{'...' if len(of) > 8 else ''}"
                )
    slopes, bias, mask, _ = joined or (None,) * 4
    has_positions = settings.dropout_p > 0 or bias is not None or mask is not None
    right = 0 if settings.causal else right
    return Geometry(*totals, left, right, slopes is not None, *(starts or (None, None)), has_positions)


def _scores(joined, q, totals, starts) -> scores.Scores:
    """alibi_slopes, bias, mask and sinks, judged: rows are this rank's, and columns all."""
    if joined is None:
        return scores.NONE
    alibi_slopes, bias, *rest = joined
    if isinstance(bias, torch.Tensor) and bias.requires_grad and torch.is_grad_enabled():
        bias = bias.float()  # the gradients of its pieces have its dtype, and are added
    joined = (alibi_slopes, bias, *rest)
    if starts is None:
        keys = q.new_empty((1, totals[1], 1, 1), device="meta")
        return scores.judged(joined, q, keys, None)
    numbers = torch.empty(len(starts[0]), dtype=torch.int32, device="meta")
    return scores.judged(joined, q, q, (numbers, numbers))
