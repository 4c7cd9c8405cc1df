"""Operators between the two products of attention that a model writes out: what is known behind each."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch

from .mask import Mask
from .nodes import HANDLERS, Meaning, Node, changed, is_softmax, like, numbers
from .products import einsum_of_values, of_values

#: What is at least so far down hides a key, whatever its score is.
HIDES = -1e4
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _is_open(x: Any) -> bool:
    return isinstance(x, Node) and x.meaning is not None and x.meaning.is_open


def _is_scores(x: Any) -> bool:
    return isinstance(x, Node) and x.meaning is not None and not x.meaning.is_softmax


def _number(x: Any) -> Optional[float]:
    """Of a number, or of a tensor of one."""
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return float(x)
    is_one = isinstance(x, torch.Tensor) and not isinstance(x, Node) and x.numel() == 1 and not x.requires_grad
    return float(x) if is_one else None


def _times(function: Any, x: Any, other: Any, **rest: Any) -> Any:
    node, factor = (x, other) if isinstance(x, Node) else (other, x)
    if rest or not _is_open(node):
        return None
    step = (lambda y: function(y, other)) if node is x else (lambda y: function(x, y))
    if _number(factor) is not None:
        return _scaled(function, node, _number(factor), step)
    if not isinstance(factor, torch.Tensor) or isinstance(factor, Node) or factor.dim() < 2 or factor.shape[-1] != 1:
        return None
    if not _broadcasts(factor, node) or node.dim() != node.meaning.q.dim():
        return None
    # One for each query, or each head: the queries may as well have it.
    added = tuple(y * factor for y in node.meaning.added)
    return changed(function, node, step, q=node.meaning.q * factor, added=added)


def _divided(function: Any, x: Any, other: Any, **rest: Any) -> Any:
    divisor = _number(other)
    if rest or not divisor or not _is_open(x):
        return None
    return _scaled(function, x, 1.0 / divisor, lambda y: function(y, other))


def _scaled(function: Any, node: Node, factor: float, step: Callable) -> Any:
    meaning = node.meaning
    if not factor > 0.0:
        return None
    added = tuple(x * factor for x in meaning.added)
    return changed(function, node, step, scale=meaning.scale * factor, added=added)


def _plus(function: Any, x: Any, other: Any, **rest: Any) -> Any:
    node, more = (x, other) if _is_scores(x) else (other, x)
    if rest or not _is_scores(node):
        return None
    if isinstance(more, Mask):
        return _with_mask(function, node, more)
    step = (lambda y: function(y, more)) if node is x else (lambda y: function(more, y))
    if isinstance(more, (int, float)):
        return changed(function, node, step)  # a softmax does not see it
    more = numbers(more)
    if not isinstance(more, torch.Tensor) or not _broadcasts(more, node):
        return None
    return changed(function, node, step, added=(*node.meaning.added, _of_node(more, node)))


def _minus(function: Any, x: Any, other: Any, **rest: Any) -> Any:
    if (
        rest
        or not _is_scores(x)
        or not isinstance(other, torch.Tensor)
        or isinstance(other, Node)
        or not _broadcasts(other, x)
    ):
        return None
    return changed(function, x, lambda y: function(y, other), added=(*x.meaning.added, _of_node(-other, x)))


def _broadcasts(x: torch.Tensor, node: Node) -> bool:
    shape = tuple(node.shape)
    sizes = zip(reversed(x.shape), reversed(shape))
    return x.dim() <= len(shape) and all(size in (1, whole) for size, whole in sizes)


def _of_node(x: torch.Tensor, node: Node) -> torch.Tensor:
    if node.dim() == 5:  # batch in two
        lead = tuple(node.shape[:2])
        x = x.reshape(*(1,) * (5 - x.dim()), *x.shape)
        return x.expand(*lead, *x.shape[2:]).reshape(-1, *x.shape[2:])
    return _placed(x, node.meaning) if node.dim() == 3 else x


def _placed(x: torch.Tensor, meaning: Meaning) -> torch.Tensor:
    """What broadcasts to a node, for the queries: of those (batch, num_heads, ...) is known, of the node batch * num_heads."""
    lead = tuple(meaning.q.shape[:-2])
    if len(lead) == 1 or x.dim() != 3:
        return x
    return x.unsqueeze(0) if x.shape[0] == 1 else x.reshape(*lead, *x.shape[1:])


def _with_mask(function: Any, node: Node, mask: Mask) -> Any:
    """Eager attention adds it: floats, the least number where a key is hidden."""
    if node.meaning.mask is not None or node.dim() != 4 or mask.values is None:
        return None
    least = torch.finfo(node.dtype).min
    return changed(function, node, lambda y: y.masked_fill(~mask._calculated(), least), mask=mask)


def _hidden(function: Any, x: Any, mask: Any, value: Any) -> Any:
    """masked_fill."""
    value = _number(value)
    if not _is_scores(x) or value is None or value > HIDES or isinstance(mask, Node):
        return None
    mask = ~(~mask) if isinstance(mask, Mask) else mask
    if mask.dtype is not torch.bool or not _broadcasts(mask, x):
        return None
    return changed(function, x, lambda y: function(y, mask, value), hidden=(*x.meaning.hidden, _of_node(mask, x)))


def _where(function: Any, condition: Any, x: Any, value: Any) -> Any:
    low = _number(value)
    if not _is_scores(x) or low is None or low > HIDES or isinstance(condition, Node):
        return None
    if condition.dtype is not torch.bool or not _broadcasts(condition, x):
        return None
    return changed(
        function, x, lambda y: function(condition, y, value), hidden=(*x.meaning.hidden, _of_node(~condition, x))
    )


def _at_least(function: Any, x: Any, other: Any = None, **named: Any) -> Any:
    """torch.max and clamp, where they take -inf to the least number."""
    bound = _number(named["min"] if other is None and set(named) == {"min"} else other)
    if not _is_scores(x) or bound is None or bound > torch.finfo(torch.float16).min or len(named) > (other is None):
        return None
    return changed(function, x, lambda y: function(y, *(() if other is None else (other,)), **named))


def _softmax(function: Any, x: Any, dim: Any = None, *rest: Any, **named: Any) -> Any:
    if not _is_scores(x) or dim not in (-1, x.dim() - 1):
        return None
    dtype = named.get("dtype") or next((y for y in rest if isinstance(y, torch.dtype)), None)
    return changed(function, x, lambda y: function(y, dim, *rest, **named), dtype=dtype, is_softmax=True)


def _cast(function: Any, x: Any, *args: Any, **named: Any) -> Any:
    if not isinstance(x, Node) or x.meaning is None or named:
        return None
    args = [like(y) if isinstance(y, Node) else y for y in args]
    cast = function(like(x), *args)
    if not isinstance(cast, torch.Tensor) or cast.device != x.device or cast.dtype not in _FLOATS:
        return None
    return changed(function, x, lambda y: y.to(cast.dtype), dtype=cast.dtype)


def _shaped(function: Any, x: Any, *args: Any, **named: Any) -> Any:
    """Whatever leaves (seqlen_q, seqlen_k) as the last two, and batch and heads before them, one behind the other or together."""
    if not isinstance(x, Node) or x.meaning is None:
        return None
    shape = tuple(function(torch.empty(tuple(x.shape), device="meta"), *args, **named).shape)
    meaning = x.meaning
    if shape[-2:] != tuple(x.shape[-2:]) or not _may_lead(shape[:-2], tuple(meaning.q.shape[:-2])):
        return None
    if meaning.q.dim() == 3 and len(shape) == 4:
        q, k = (y.reshape(*shape[:-2], *y.shape[-2:]) for y in (meaning.q, meaning.k))
        meaning = meaning._replace(q=q, k=k)
        placed = {name: tuple(_placed(y, meaning) for y in getattr(meaning, name)) for name in ("added", "hidden")}
        meaning = meaning._replace(**placed)
    x.has_views = True
    return Node.of(meaning, shape, x.dtype, (lambda _: function(x.raw(), *args, **named),), has_views=True)


def _may_lead(lead: Tuple, known: Tuple) -> bool:
    """Whether this is what queries have before (seqlen, head_dim): batch and heads in one, in two, or the batch in two more."""
    if len(known) == 1:
        return len(lead) in (1, 2)
    return lead in (known, (known[0] * known[1],)) or (
        len(lead) == 3 and lead[0] * lead[1] == known[0] and lead[2] == known[1]
    )


def _dropout(function: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if not is_softmax(x) or x.meaning.dropout_p > 0.0:
        return None
    if not training or p == 0.0:
        return x
    return Node.of(x.meaning._replace(dropout_p=p), x.shape, x.dtype, ())


HANDLERS.update(
    {
        **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_"), _times),
        **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__", "div_"), _divided),
        **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "add_"), _plus),
        **dict.fromkeys(("sub", "__sub__", "__isub__", "sub_"), _minus),
        **dict.fromkeys(("masked_fill", "masked_fill_"), _hidden),
        **dict.fromkeys(("to", "float", "half", "bfloat16", "type", "type_as"), _cast),
        **dict.fromkeys(("view", "reshape", "unflatten", "flatten", "unsqueeze", "squeeze", "contiguous"), _shaped),
        **dict.fromkeys(("matmul", "bmm", "__matmul__"), of_values),
        **dict.fromkeys(("max", "maximum", "clamp", "clamp_min"), _at_least),
        "einsum": einsum_of_values,
        "where": _where,
        "softmax": _softmax,
        "dropout": _dropout,
    }
)
