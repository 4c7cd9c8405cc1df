"""Attention that a model writes out, read while it runs: product, scale, masks, softmax, dropout, product.

The first product gives no numbers but a node that knows what they would be, and so does each operator that follows, until
the product with the values is ours. Any other operator gets the numbers, made by the very operators that the model called.
What no operator gets is probabilities that PyTorch computes and drops: those raise, by name.
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch.overrides import TorchFunctionMode

from . import operators  # noqa: F401  (which tells nodes of them)
from .nodes import Node, Unrecognised, at_work, current, of_nodes, unrecognised
from .products import einsum, product, product_and_sum

__all__ = ["Node", "Recognising", "Unrecognised", "current"]
_FUSED = frozenset("scaled_dot_product_attention multi_head_attention_forward _native_multi_head_attention".split())


class Recognising(TorchFunctionMode):
    """At work while a module runs that attends in code of its own."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def __enter__(self):
        at_work().append(self)
        return super().__enter__()

    def __exit__(self, *error):
        at_work().remove(self)
        return super().__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if any(issubclass(x, Node) for x in types):
            return of_nodes(function, args, kwargs)
        if name in ("matmul", "bmm", "__matmul__") and len(args) == 2 and not kwargs:
            return product(function, *args)
        if name == "baddbmm":
            return product_and_sum(function, args, kwargs)
        if name == "einsum" and not kwargs:
            return einsum(function, *args)
        if name in _FUSED:
            raise unrecognised(f"calls {name}")
        if name == "softmax":
            raise unrecognised("has a softmax of something else than a product of queries and keys")
        return function(*args, **kwargs)
