"""What scores are made of besides q and k: alibi_slopes, bias, mask and sinks, judged by name.

A call has a :class:`Scores`, or None where nothing joins. Bias and mask have four dimensions there, (1 or batch, 1 or
num_heads, 1 or seqlen_q, seqlen_k), and any strides.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch

from .. import _joined
from .._joined import NAMES
from . import sequences


class Scores(NamedTuple):
    """Tensors, or None for what is not there."""

    alibi_slopes: Any = None
    bias: Any = None
    mask: Any = None
    sinks: Any = None


NONE = Scores()
COUNT, BIAS, SINKS = len(NAMES), NAMES.index("bias"), NAMES.index("sinks")
#: The same as arguments of an operator of ``torch.library``, and how many tensors that of the forward reads: before
#: these q, k, v and cu_seqlens.
OPERATOR_ARGUMENTS = ", ".join(f"Tensor? {name}" for name in NAMES)
READ = 5 + COUNT


def of_operator(tensors) -> Optional[Scores]:
    """Of the arguments of an operator."""
    return None if all([x is None for x in tensors]) else Scores(*tensors)


def present(scores: Optional[Scores]) -> Tuple:
    """The tensors that are there."""
    return () if scores is None else tuple([x for x in scores if x is not None])


def wanted_by(needed) -> Tuple[bool, bool]:
    """Whether dbias is asked for, and dsinks: of what autograd says of the forward's arguments."""
    return needed[5 + BIAS], needed[5 + SINKS]


def only_wanted(found, wanted) -> Tuple:
    """(dbias, dsinks) as the operator of the backward returns them: None for what nobody wanted."""
    return tuple([x if wants else None for x, wants in zip(found, wanted)])


def gradients_of_inputs(found, wanted, inputs: int) -> Tuple:
    """What the operator of the backward returns, as gradients of all arguments of the forward's."""
    dq, dk, dv, *rest = found
    dbias, dsinks = only_wanted(rest, wanted)
    return (dq, dk, dv, None, None, None, dbias, None, dsinks, *(None,) * (inputs - READ))


def judged(given, q, k, cu_seqlens) -> Optional[Scores]:
    """The four of a call on q and k, which have the right dimensions; None if there are none of them.

    A bias of fewer dimensions joins as PyTorch broadcasts it, and so does one column for all keys.
    """
    if given is None:
        return None
    for name, x in zip(NAMES, given):
        if x is not None:
            _check(name, x, q)
    alibi_slopes, bias, mask, sinks = given
    sizes = _sizes(q, k, cu_seqlens)
    if alibi_slopes is not None:
        _joined.check_slopes(alibi_slopes.shape, sizes)
        if alibi_slopes.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                "alibi_slopes must not require a gradient, which is not there; use alibi_slopes.detach(), or a bias where "
                "slopes are learned"
            )
    if sinks is not None:
        _joined.check_sinks(sinks.shape, sizes)
        sinks = sinks.to(torch.float32)
    bias, mask = _of_entries("bias", bias, sizes), _of_entries("mask", mask, sizes)
    return Scores(alibi_slopes, bias, mask, sinks)


def _check(name, x, q) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor as q is, got {type(x).__name__}; convert it with torch.as_tensor")
    if x.layout is not torch.strided or getattr(x, "is_nested", False):
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}; use to_dense()")
    _joined.check_dtype(name, str(x.dtype)[len("torch.") :])
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}; use {name}.to(q.device)")


def _sizes(q, k, cu_seqlens) -> _joined.Sizes:
    if cu_seqlens is not None:
        return _joined.Sizes(sequences.count(cu_seqlens), q.shape[-2])
    return _joined.Sizes(q.shape[0], q.shape[-2], q.shape[1], k.shape[1])


def _of_entries(name, x, sizes):
    """x with four dimensions."""
    if x is None:
        return None
    _joined.check_entries(name, x.shape, sizes)
    while x.dim() < 4:
        x = x.unsqueeze(0)
    one_for_all = sizes.seqlen_k is not None and x.shape[3] != sizes.seqlen_k
    return x.expand(*x.shape[:3], sizes.seqlen_k) if one_for_all else x


def check_again(q, scores) -> None:
    """What the native half takes for granted of these in a backward: their dtypes, and q's device."""
    for name, x in zip(NAMES, scores or NONE):
        if x is None:
            continue
        if name == "sinks":
            fits = x.dtype is torch.float32  # they were converted
        else:
            fits = str(x.dtype)[len("torch.") :] in _joined.DTYPES[name][0]
        if not fits or x.get_device() != q.get_device() or x.is_cuda != q.is_cuda:
            raise ValueError(f"{name} must be on q's device {q.device}, as in the forward, got {x.dtype} on {x.device}")
