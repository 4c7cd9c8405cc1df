"""A rank's share of a call: its pieces computed one by one, and added in float32."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch

from .._attention import _joined, _pair, attention_backward
from .._attention import attention as attention_of_one
from .._settings import Shard, judged
from .._torch import attention as of_one
from .merge import Partial, add_sinks, gradient_of_sinks
from .pieces import Geometry, pieces


class Call(NamedTuple):
    """Everything but q, k, v and what is differentiated beside them."""

    geometry: Geometry
    #: Arguments of ``signflash.attention`` that are the same for each piece.
    settings: dict
    #: Where the tensors of all ranks together lie in something larger still.
    shard: Shard
    num_heads: int
    num_heads_k: int
    deterministic: bool = False
    alibi_slopes: Any = None
    mask: Any = None

    def of_heads(self, heads: slice, mask) -> "Call":
        """The call of some query heads, whose tensors are theirs alone; mask is theirs already."""
        shard = self.shard._replace(first_head=self.shard.first_head + heads.start, num_heads_total=self.heads_total)
        slopes = None if self.alibi_slopes is None else self.alibi_slopes[..., heads].contiguous()
        return self._replace(shard=shard, alibi_slopes=slopes, mask=mask)

    @property
    def heads_total(self) -> int:
        """Query heads of the whole."""
        return self.num_heads if self.shard.num_heads_total is None else self.shard.num_heads_total


class Operands(NamedTuple):
    """Of a rank: q and what comes with its queries."""

    q: Any
    bias: Any = None
    sinks: Any = None


class Results(NamedTuple):
    """Of a forward, and the gradient of out and of lse: what the backward of a piece reads of the queries."""

    out: Any
    lse: Any
    dout: Any
    dlse: Any = None


class Wanted(NamedTuple):
    """Of a backward."""

    dbias: bool = False
    dsinks: bool = False
    #: dk and dv in float32, since they are to be added to others'.
    wide: bool = False

    def dtypes(self, q, k, v) -> Tuple:
        """Of dq, dk and dv."""
        return (q.dtype, *(torch.float32 if self.wide else x.dtype for x in (k, v)))


def rows_of(x, rows: slice):
    """Some rows of (..., rows, heads, head_dim)."""
    return x[..., rows, :, :]


def adds_in_kernels(x) -> bool:
    """Whether kernels add what they find to what was found before, as a GPU's do."""
    return x.is_cuda


def _entries(x, piece, packed: bool):
    """A bias's or a mask's share of a piece: four dimensions, all keys, and either these rows or one for all."""
    if x is None:
        return None
    if piece.starts is not None:
        count = len(piece.starts[0]) - 1
        return x[piece.sequence : piece.sequence + count] if x.shape[0] > 1 else x
    height, width = (s.stop - s.start for s in (piece.rows, piece.columns))
    rows = piece.rows
    if packed:
        x = x[piece.sequence : piece.sequence + 1] if x.shape[0] > 1 else x
        rows = slice(piece.first_row, piece.first_row + height)
    columns = slice(piece.first_column, piece.first_column + width)
    return x[:, :, rows if x.shape[2] > 1 else slice(None), columns if x.shape[3] > 1 else slice(None)]


def _slopes(x, piece):
    if x is None or x.dim() == 1 or piece.sequence is None:
        return x
    count = 1 if piece.starts is None else len(piece.starts[0]) - 1
    return x[piece.sequence : piece.sequence + count]


def _arguments(call: Call, piece, q, bias, device) -> dict:
    """What both directions of a piece are given beside tensors."""
    shard = call.shard._replace(num_heads_total=call.heads_total)
    if piece.sequence is not None:
        shard = shard._replace(first_batch=shard.first_batch + piece.sequence)
    if piece.starts is None:
        shard = shard._replace(
            first_row=shard.first_row + piece.first_row, first_column=shard.first_column + piece.first_column
        )
    arguments = dict(call.settings, shard=shard, diagonal=piece.diagonal)
    if piece.starts is not None:
        of_q, of_k = (torch.tensor(x, dtype=torch.int32).to(device, non_blocking=True) for x in piece.starts)
        arguments.update(cu_seqlens_q=of_q, cu_seqlens_k=of_k, diagonal=None)
    packed = call.geometry.is_packed
    arguments["alibi_slopes"] = _slopes(call.alibi_slopes, piece)
    arguments["bias"], arguments["mask"] = (_entries(x, piece, packed) for x in (bias, call.mask))
    return arguments


def _is_alone(piece, call: Call) -> bool:
    """Whether a sequence of packed ones is computed as a batch of one."""
    return call.geometry.is_packed and piece.starts is None


def forward_of(call: Call, spans, operands: Operands, k, v, into: Partial) -> None:
    """Adds what the queries of some spans see of the keys of others."""
    q, bias, _ = operands
    for piece in pieces(call.geometry, *spans):
        read = [rows_of(q, piece.rows), rows_of(k, piece.columns), rows_of(v, piece.columns)]
        alone = _is_alone(piece, call)
        room = into.room(piece.rows) if adds_in_kernels(q) else None
        if alone:
            read, room = [x.unsqueeze(0) for x in read], None if room is None else [x.unsqueeze(0) for x in room]
        out, lse = _forward(read, _arguments(call, piece, q, bias, q.device), room)
        if room is None:
            into.add(piece.rows, *((out[0], lse[0]) if alone else (out, lse)))


def backward_of(call: Call, spans, operands: Operands, k, v, results: Results, into, which=slice(None)) -> None:
    """Adds the gradients of some of the pieces to those of ``into``: sums of dq, dk and dv, and dbias in float32 or None."""
    q, bias, _ = operands
    *sums, dbias = into
    for piece in list(pieces(call.geometry, *spans))[which]:
        rows, columns, alone = piece.rows, piece.columns, _is_alone(piece, call)
        read = [rows_of(results.dout, rows), rows_of(q, rows), rows_of(k, columns), rows_of(v, columns)]
        read += [rows_of(results.out, rows), results.lse[..., rows].contiguous()]
        dlse = None if results.dlse is None else results.dlse[..., rows].contiguous()
        rooms = [one.room(of) if adds_in_kernels(q) else None for one, of in zip(sums, (rows, columns, columns))]
        written = [torch.empty(x.shape, dtype=torch.float32, device=x.device) if room is None else room
                   for room, x in zip(rooms, read[1:4])]  # fmt: skip
        given = written
        if alone:
            read, dlse = [x.unsqueeze(0) for x in read], None if dlse is None else dlse.unsqueeze(0)
            given = [x.unsqueeze(0) for x in written]
        adds = tuple(room is not None for room in rooms[:2])
        arguments = _arguments(call, piece, q, bias, q.device)
        of_bias = _backward(read, dlse, arguments, (call.deterministic, dbias is not None), (given, adds))
        for one, of, room, part in zip(sums, (rows, columns, columns), rooms, written):
            if room is None:
                one.add(of, part)
        if dbias is not None:
            _entries(dbias, piece, call.geometry.is_packed).add_(of_bias)


def _judged(arguments: dict):
    """(settings, cu_seqlens, joined, state) of a piece's arguments."""
    named = ("dropout_p", "softmax_scale", "causal", "window", "scale_rule", "softcap", "diagonal", "shard")
    starts = _pair(arguments.get("cu_seqlens_q"), arguments.get("cu_seqlens_k"))
    joined = _joined(arguments["alibi_slopes"], arguments["bias"], arguments["mask"], None)
    return judged(*(arguments[name] for name in named)), starts, joined, (arguments["seed"], arguments["offset"])


def _forward(read, arguments: dict, room):
    """(out, lse) in float32, added to those of ``room`` if there are some."""
    settings, starts, joined, (seed, offset) = _judged(arguments)
    given = dict(cu_seqlens=starts, seed=seed, offset=offset, generator=None, rng_state=None, deterministic=False)
    given.update(return_probs=False, joined=joined, wide=True, wants_lse=True, room=room)
    return of_one.attention(tuple(read), settings, **given)[:2]


def _backward(read, dlse, arguments: dict, asked, room):
    """dbias or None; dq, dk and dv are written to the tensors of ``room``, or added to them, where it says so."""
    settings, starts, joined, state = _judged(arguments)
    (deterministic, wants_dbias), (into, adds) = asked, room
    given = (settings, state, deterministic, starts, joined, (wants_dbias, False))
    return of_one.backward(*read, dlse, *given, wide=True, into=into, adds=adds)[3]


def forward_alone(call: Call, piece, operands: Operands, k, v) -> Tuple:
    """(out, lse) where one piece is all: nothing is added, and nothing rounded twice."""
    q, bias, sinks = operands
    return attention_of_one(q, k, v, **_arguments(call, piece, q, bias, q.device), sinks=sinks, return_lse=True)


def backward_alone(call: Call, piece, operands: Operands, k, v, results: Results, wanted: "Wanted") -> Tuple:
    """The same of (dq, dk, dv, dbias, dsinks)."""
    q, bias, sinks = operands
    found = attention_backward(
        results.dout,
        q,
        k,
        v,
        results.out,
        results.lse,
        dlse=results.dlse,
        **_arguments(call, piece, q, bias, q.device),
        sinks=sinks,
        deterministic=call.deterministic,
        return_dbias=wanted.dbias,
        return_dsinks=wanted.dsinks,
        grad_dtype=torch.float32 if wanted.wide else None,
    )
    dq, dk, dv, *rest = found
    dbias = rest.pop(0) if wanted.dbias else None
    return dq.to(q.dtype), dk, dv, dbias, rest[0] if wanted.dsinks else None


def finish(call: Call, spans, total: Partial, operands: Operands) -> Tuple:
    """(out, lse) of all that was added to the queries of some spans; sinks count once, and not behind the last sequence."""
    if operands.sinks is None:
        return total.rounded(operands.q.dtype)
    out, lse = add_sinks(*total.whole(), operands.sinks)
    at, end = 0, call.geometry.starts_q[-1] if call.geometry.is_packed else call.geometry.seqlen_q
    for begin, stop in spans:
        lse[..., at + max(begin, end) - begin : at + max(stop, end) - begin] = float("-inf")
        at += stop - begin
    return out.to(operands.q.dtype), lse


def dsinks_of(operands: Operands, results: Results, wanted: bool) -> Optional[torch.Tensor]:
    return gradient_of_sinks(operands.sinks, results) if wanted else None


def room_for_dbias(bias, wanted: bool):
    """Zeros in float32."""
    return torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if wanted else None
