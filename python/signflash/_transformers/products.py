"""The two products of attention that a model writes out: the first makes a node, the second is ours."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .names import NAME
from .nodes import Meaning, Node, current, is_softmax


def product(function: Any, q: Any, other: Any) -> Any:
    """Perhaps of queries and keys: what becomes of it will tell."""
    fits = (
        all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in (q, other))
        and q.dim() == other.dim() in (3, 4)
        and q.shape[:-2] == other.shape[:-2]
        and q.dtype is other.dtype
    )
    if not fits:
        return function(q, other)
    shape = (*q.shape[:-1], other.shape[-1])
    return Node.of(Meaning(q, other.transpose(-1, -2)), shape, q.dtype, (lambda _: function(q, other),))


def product_and_sum(function: Any, args: Tuple, kwargs: Dict) -> Any:
    given = dict(zip(("input", "batch1", "batch2"), args), **kwargs)
    node = product(lambda *_: function(*args, **kwargs), given["batch1"], given["batch2"])
    if not isinstance(node, Node):
        return node
    beta, x = given.get("beta", 1), given["input"]
    node.meaning = node.meaning._replace(scale=float(given.get("alpha", 1)), added=() if beta == 0 else (x * beta,))
    return node


def einsum(function: Any, equation: Any, *operands: Any) -> Any:
    """Of queries and keys of four dimensions: "ibnd,jbnd->bnij"."""
    pair = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    names = equation.replace(" ", "").replace("->", ",").split(",") if isinstance(equation, str) else ()
    if len(pair) == 2 and [len(set(x)) for x in names] == [4, 4, 4] and "." not in equation:
        of_q, of_k, (*lead, row, column) = names
        summed = [x for x in of_q if x not in (*lead, row)]
        if len(summed) == 1 and set(of_q) == {*lead, row, *summed} and set(of_k) == {*lead, column, *summed}:
            q = pair[0].permute([of_q.index(x) for x in (*lead, row, *summed)])
            k = pair[1].permute([of_k.index(x) for x in (*lead, *summed, column)])
            return product(lambda *_: function(equation, *operands), q, k)
    return function(equation, *operands)


def of_values(function: Any, x: Any, v: Any) -> Any:
    if not is_softmax(x) or not isinstance(v, torch.Tensor) or isinstance(v, Node) or v.shape[:-2] != x.shape[:-2]:
        return None
    return attend(x, v, current().module)


def einsum_of_values(function: Any, equation: Any, *operands: Any) -> Any:
    """Of a softmax and values of four dimensions: "bnij,jbnd->ibnd"."""
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    names = equation.replace(" ", "").replace("->", ",").split(",")
    if len(operands) != 2 or not is_softmax(operands[0]) or [len(x) for x in names] != [4, 4, 4] or "." in equation:
        return None
    (node, v), (of_node, of_v, of_out) = operands, names
    lead, row, column = of_node[:2], of_node[2], of_node[3]
    width = [x for x in of_v if x not in of_node]
    if len(width) != 1 or set(of_v) != {*lead, column, *width} or set(of_out) != {*lead, row, *width}:
        return None
    found = attend(node, v.permute([of_v.index(x) for x in (*lead, column, *width)]), current().module)
    return found.permute([(*lead, row, *width).index(x) for x in of_out])


def attend(node: Node, v: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """(..., seqlen_q, head_dim of v), by our attention function."""
    meaning = node.meaning
    q, k = meaning.q, meaning.k
    values = v.reshape(*q.shape[:-2], *v.shape[-2:])
    if q.dim() == 3:  # batch and heads, which nobody told apart
        q, k, values = (x.unsqueeze(1) for x in (q, k, values))
    mask, learned = joined(meaning)
    given = dict(dropout=meaning.dropout_p, scaling=meaning.scale, is_causal=False, position_bias=learned)
    out, _ = ALL_ATTENTION_FUNCTIONS[NAME](module, q, k, values, mask, **given)
    return out.transpose(1, 2).reshape(*v.shape[:-2], *out.shape[1:2], out.shape[-1]).to(v.dtype)


def joined(meaning: Meaning) -> Tuple[Any, Optional[torch.Tensor]]:
    """(what hides and is added, what is added and has a gradient), (batch or 1, num_heads or 1, seqlen_q or 1, seqlen_k)."""
    seqlen_k = meaning.k.shape[-2]

    def whole(x):
        if meaning.q.dim() == 3 and x.dim() == 3:
            x = x.unsqueeze(1)
        x = x.reshape(*(1,) * (4 - x.dim()), *x.shape) if x.dim() < 4 else x
        return x if x.shape[-1] == seqlen_k else x.expand(*x.shape[:-1], seqlen_k)

    learned = [whole(x) for x in meaning.added if x.requires_grad]
    fixed = [whole(x) for x in meaning.added if not x.requires_grad]
    hidden = [whole(x) for x in meaning.hidden]
    mask = meaning.mask
    if mask is not None and (fixed or hidden):
        hidden, mask = [*hidden, ~mask._calculated()], None
    if mask is None and fixed:
        mask = fixed[0] if len(fixed) == 1 else sum(fixed[1:], fixed[0])
        for x in hidden:
            mask = mask.masked_fill(x, -torch.inf)
    elif mask is None and hidden:
        visible = ~hidden[0]
        for x in hidden[1:]:
            visible = visible & ~x
        mask = visible
    return mask, sum(learned[1:], learned[0]) if learned else None
