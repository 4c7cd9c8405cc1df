"""``context_parallel``: within it, PyTorch's own attention is that of all ranks."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Set

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .attention import attention
from .sequence import ranks_of, shard_sequence

#: The contexts that are entered now, the innermost last.
ENTERED: List["Active"] = []


class Active(NamedTuple):
    """What calls within the context are given."""

    mesh: Any
    group: Any
    method: Any
    layout: Any
    seqlen: Optional[int]
    generator: Any
    debug: bool


@contextlib.contextmanager
def context_parallel(
    mesh: Any = None,
    *,
    buffers: Optional[Sequence] = None,
    buffer_seq_dims: Optional[Sequence[int]] = None,
    no_restore_buffers: Optional[Set] = None,
    group: Any = None,
    method: Any = "ring",
    layout: Any = "zigzag",
    seqlen: Optional[int] = None,
    generator: Any = None,
    debug: bool = False,
) -> Iterator[None]:
    """Within it ``F.scaled_dot_product_attention`` takes (batch, num_heads, this rank's positions, head_dim), and attends to
    those of all ranks. Arguments are as PyTorch's own ``context_parallel`` has them, then as :func:`attention`.

    Args:
        mesh: a ``DeviceMesh`` of one dimension, or of two for a method of two parts.
        buffers: tensors of the whole sequence, which are cut in place to this rank's positions, and whole again afterwards:
            tokens, labels, tables of positions.
        buffer_seq_dims: of each, the dimension of the sequence.
        no_restore_buffers: those of them that stay cut.
        group, method, layout, generator, debug: as of :func:`attention`.
        seqlen: how many positions there are on all ranks; None is what buffers have, or as many on each as on this one.

    Queries and keys are of the same positions; ``is_causal`` is of the whole sequence. ``attn_mask`` is (..., this rank's
    queries, all keys). Dropout is by PyTorch's scale, 1 / (1 - p), and draws from the group's generator or ``generator``, not
    from PyTorch's; a forward that a checkpoint repeats would draw another mask, and is refused: give such calls to
    :func:`attention` with a seed. A forward that is repeated must be so within the context.

    :func:`signflash.attention` stays what it is, of this rank alone, and so do FlashAttention-2's functions. Transformers'
    models take part with ``attn_implementation="sdpa"``; ``"signflash"`` is refused here.

    It holds for all threads of the process, and for calls by the name in ``torch.nn.functional``; in the thread that
    entered it, for all calls.
    """
    tensors, dims = list(buffers or ()), list(buffer_seq_dims or ())
    if len(tensors) != len(dims):
        raise ValueError(f"buffer_seq_dims must have a number for each of {len(tensors)} buffers, got {len(dims)}")
    kept = [any(x is other for other in no_restore_buffers or ()) for x in tensors]
    if seqlen is None and tensors:
        seqlen = tensors[0].shape[dims[0]]
    for x, dim in zip(tensors, dims):
        if x.shape[dim] != seqlen:
            raise ValueError(
                f"buffers must have {seqlen} positions, got {x.shape[dim]} in dimension {dim} of {tuple(x.shape)}"
            )
    active = Active(mesh, group, method, layout, seqlen, generator, debug)
    with torch.no_grad():
        originals = [None if keeps else x.clone() for x, keeps in zip(tensors, kept)]
        for x, dim in zip(tensors, dims):
            own = shard_sequence(x, group=group, mesh=mesh, layout=layout, dim=dim).clone()
            x.resize_(own.shape).copy_(own)
    try:
        with _replaced(active):
            yield
    finally:
        with torch.no_grad():
            for x, original in zip(tensors, originals):
                if original is not None:
                    x.resize_(original.shape).copy_(original)


@contextlib.contextmanager
def _replaced(active: Active):
    """For all threads by its name, and for this one by whatever name."""
    before = F.scaled_dot_product_attention

    def of_all_ranks(*arguments, **named):
        return _sdpa(active, *arguments, **named)

    F.scaled_dot_product_attention = of_all_ranks
    ENTERED.append(active)
    try:
        with _Mode(active, before):
            yield
    finally:
        ENTERED.pop()
        F.scaled_dot_product_attention = before


class _Mode(TorchFunctionMode):
    def __init__(self, active: Active, function) -> None:
        super().__init__()
        self._active, self._function = active, function

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is self._function:
            return _sdpa(self._active, *arguments, **(named or {}))
        return function(*arguments, **(named or {}))


def _sdpa(
    active: Active, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """With PyTorch's arguments."""
    if query.dim() != 4:
        raise ValueError(
            f"query must have 4 dimensions (batch, num_heads, seqlen, head_dim), got shape {tuple(query.shape)}"
        )
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask was given together with is_causal; give one of them, as PyTorch asks")
    if is_causal and query.shape[2] != key.shape[2]:
        raise NotImplementedError(
            f"is_causal within context_parallel is for queries and keys of the same positions, got {query.shape[2]} and "
            f"{key.shape[2]}; call signflash.distributed.attention"
        )
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(f"key must have query's {query.shape[1]} heads, got {key.shape[1]}; or give enable_gqa=True")
    ranks = ranks_of(active.group, active.mesh)
    seqlen_k = key.shape[2] * ranks.size if active.seqlen is None else active.seqlen
    if attn_mask is not None and attn_mask.shape[-1] not in (1, seqlen_k):
        raise ValueError(
            f"attn_mask must have a column for each of all {seqlen_k} keys, got {attn_mask.shape[-1]}. Transformers makes such a "
            "mask where position_ids jump, as zigzag's do: use layout='contiguous', or give layers attention_mask=None and "
            "is_causal=True by a hook"
        )
    is_mask = attn_mask is not None and attn_mask.dtype is torch.bool
    out = attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        mesh=active.mesh,
        group=active.group,
        method=active.method,
        layout=active.layout,
        seqlen=active.seqlen,
        causal=is_causal,
        dropout_p=dropout_p,
        softmax_scale=scale,
        scale_rule="nominal",
        generator=active.generator,
        mask=attn_mask if is_mask else None,
        bias=None if is_mask else attn_mask,
        debug=active.debug,
    )
    return out.transpose(1, 2)
