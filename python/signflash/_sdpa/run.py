"""A call of ``F.scaled_dot_product_attention``, computed by ours."""

from __future__ import annotations

from .._settings import Settings
from .._torch import attention
from . import takes
from .call import Call
from .masks import Seen


def run(call: Call, seen: Seen):
    """(out (..., num_heads, seqlen_q, head_dim_v), lse (batch, num_heads, seqlen_q)) of a call that is ours.

    The memory of out lies as PyTorch's flash attention has it: (batch, seqlen_q, num_heads, head_dim_v).
    """
    leading = takes.leading(call)
    of_keys = _leading_of_keys(call, leading)
    q = _of_four(call.query, leading)
    k, v = _of_four(call.key, of_keys), _of_four(call.value, of_keys)
    # PyTorch's causal begins in the top left corner, where a square begins anyway.
    diagonal = 0 if seen.causal and k.shape[2] != q.shape[2] else None
    settings = Settings(call.dropout_p, call.scale, seen.causal, nominal=True, diagonal=diagonal)
    rows_first = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    out, lse, _, _ = attention.attention(rows_first, settings, joined=_joined(seen, leading))
    out = out.transpose(1, 2)
    return (out if len(leading) == 2 else out.reshape(*leading, *out.shape[2:])), lse


def _leading_of_keys(call, leading):
    """The same of key and value, whose heads may be fewer: they are not copied for each that reads them."""
    if not leading:
        return leading
    of_key, of_value = call.key.shape[-3], call.value.shape[-3]
    fewer = of_key == of_value and (call.enable_gqa or of_key == 1)
    return (*leading[:-1], of_key) if fewer else leading


def _of_four(x, leading):
    """x as (batch, num_heads, seqlen, head_dim), where num_heads is the last of its leading dimensions."""
    if x.shape[:-2] != leading:
        x = x.expand(*leading, *x.shape[-2:])
    for _ in range(2 - len(leading)):
        x = x.unsqueeze(0)
    return x.flatten(0, -4) if x.dim() > 4 else x


def _joined(seen, leading):
    """(alibi_slopes, bias, mask, sinks), or None."""
    if seen.bias is None and seen.mask is None:
        return None
    return (None, _entries(seen.bias, leading), _entries(seen.mask, leading), None)


def _entries(x, leading):
    """A mask or a bias of at most four dimensions."""
    if x is None or x.dim() <= 4:
        return x
    batch = x.shape[:-3]
    if all([size == 1 for size in batch]):
        return x.flatten(0, -4)
    return x.expand(*leading[:-1], *x.shape[-3:]).flatten(0, -4)
