"""Scores and probabilities that nobody has computed yet: what they are, and the numbers for whoever asks for them."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch

from .mask import Mask
from .names import ALIAS

#: What is asked of a tensor and not of its entries.
_ASKING = frozenset("dim ndimension size numel __len__ is_floating_point".split())
_ATTRIBUTES = frozenset(
    "shape dtype device ndim layout is_cuda is_meta requires_grad is_sparse is_nested is_quantized".split()
)
#: What takes a shape, a dtype and a device from a tensor.
_ALIKE = frozenset(
    "expand_as view_as reshape_as zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty new_tensor".split()
)
#: What follows from an operator of nodes, by its name: a node, a tensor, or None for the numbers' own.
HANDLERS: Dict[str, Callable] = {}
_active = threading.local()


class Unrecognised(NotImplementedError):
    """Attention in code of a model's own that is not the formula."""


def unrecognised(what: str) -> Unrecognised:
    mode = current()
    name = "the model" if mode is None else type(mode.module).__name__
    return Unrecognised(
        f"{name} computes attention in code of its own, of which attn_implementation='{ALIAS}' takes over product, scale, mask, "
        f"softmax, dropout and product, one behind the other; but it {what}. Use attn_implementation='eager' for this model"
    )


class Meaning(NamedTuple):
    """What the entries of a node are: scores of queries and keys, or a softmax of them."""

    q: torch.Tensor
    k: torch.Tensor
    scale: float = 1.0
    #: Added to scores: tensors that broadcast, and a mask of ours.
    added: Tuple[torch.Tensor, ...] = ()
    mask: Optional[Mask] = None
    #: bool, True where a key is hidden.
    hidden: Tuple[torch.Tensor, ...] = ()
    is_softmax: bool = False
    dropout_p: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether all entries are still scores, none of them hidden."""
        return not (self.is_softmax or self.hidden or self.mask is not None)


class Node(torch.Tensor):
    """Entries (..., seqlen_q, seqlen_k) that nobody has computed yet.

    Attributes:
        meaning: what they are, or None if somebody wrote into the numbers.
        steps: the model's operators, each of which takes what the one before it made.
        has_views: whether it shares its numbers with another node.
    """

    @staticmethod
    def of(meaning: Meaning, shape: Any, dtype: Any, steps: Tuple[Callable, ...], has_views: bool = False) -> "Node":
        node = torch.Tensor._make_wrapper_subclass(Node, shape, dtype=dtype, device=meaning.q.device)
        node.meaning, node.steps, node.has_views, node.made = meaning, steps, has_views, None
        return node

    def raw(self) -> torch.Tensor:
        if self.made is None:
            x = None
            for step in self.steps:
                x = step(x)
            self.made = x
        return self.made

    def value(self) -> torch.Tensor:
        """The numbers, for whoever may have them."""
        if self.meaning is not None and self.meaning.dropout_p > 0.0:
            raise unrecognised("reads probabilities behind their dropout, which nobody keeps")
        if self.meaning is not None and self.meaning.is_softmax and current() is not None:
            raise unrecognised("does something else with probabilities than to multiply values")
        return self.raw()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Tuple = (), kwargs: Any = None) -> Any:
        return of_nodes(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Tuple = (), kwargs: Any = None) -> Any:
        return function(*map(numbers, args), **{name: numbers(x) for name, x in (kwargs or {}).items()})


def numbers(x: Any) -> Any:
    """A node as its numbers, also within a list; all else as it is."""
    if isinstance(x, Node):
        return x.value()
    return type(x)(map(numbers, x)) if type(x) in (list, tuple) else x


def current() -> Any:
    """The innermost :class:`Recognising` that is at work in this thread, or None."""
    modes = at_work()
    return modes[-1] if modes else None


def at_work() -> List[Any]:
    """All of them in this thread."""
    if not hasattr(_active, "modes"):
        _active.modes = []
    return _active.modes


def of_nodes(function: Any, args: Tuple, kwargs: Dict) -> Any:
    """An operator of arguments among which nodes are."""
    name = getattr(function, "__name__", "")
    if name in _ASKING or (name == "__get__" and function.__self__.__name__ in _ATTRIBUTES):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)
    handler, node = HANDLERS.get(name), args[0] if args else None
    if name in _ALIKE or (name in ("type_as", "to") and not isinstance(node, Node)):
        return function(*(like(x).expand(tuple(x.shape)) if isinstance(x, Node) else x for x in args), **kwargs)
    if handler is not None and current() is not None:
        result = handler(function, *args, **kwargs)
        if result is not None:
            return result
        if name == "softmax":
            raise unrecognised("has a softmax of something else than scores of all keys")
    result = function(*map(numbers, args), **{key: numbers(x) for key, x in kwargs.items()})
    if isinstance(node, Node) and writes(name):
        node.meaning = None  # its numbers are what they are from now on
    return result


def writes(name: str) -> bool:
    """Whether an operator changes its first argument."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def changed(function: Any, node: Node, step: Callable, dtype: Any = None, **changes: Any) -> Optional[Node]:
    """The node behind an operator; None if that writes where others may look."""
    meaning = node.meaning._replace(**changes)
    if writes(function.__name__):
        if node.has_views or node.made is not None or dtype is not None:
            return None
        node.meaning, node.steps = meaning, (*node.steps, step)
        return node
    return Node.of(meaning, node.shape, node.dtype if dtype is None else dtype, (*node.steps, step))


def like(x: Node) -> torch.Tensor:
    return torch.empty((), dtype=x.dtype, device=x.device)


def is_softmax(x: Any) -> bool:
    return isinstance(x, Node) and x.meaning is not None and x.meaning.is_softmax
