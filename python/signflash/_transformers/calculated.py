"""The attention mask entry by entry, for models that calculate with it in code of their own.

Such code must know what a mask is made of: eager attention's are floats to be added, PyTorch's are bool, True where a
query sees a key. Ours are the latter. So what a model may do with one is what shows that it knows: operators that only
take bool, and whatever looks at no entry. A sum or a product of the same entries would give numbers that mean nothing,
without an error, and raises.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, Tuple

import torch

from .names import ALIAS

REMEDY = "use attn_implementation='eager' or 'sdpa' for this model"
_logger = logging.getLogger("signflash")
_told = set()

#: Operators that take bool and refuse floats. Of a model that asks for one of them we know that it knows bool.
_OF_BOOL = frozenset(
    "__invert__ bitwise_not __and__ __rand__ bitwise_and __or__ __ror__ bitwise_or __xor__ __rxor__ bitwise_xor".split()
)
#: Those that take bool as one of their arguments, and which one; what else they are given are other numbers.
_CONDITION = {"where": (0, "condition"), "masked_fill": (1, "mask"), "masked_fill_": (1, "mask")}
#: What moves entries and looks at none.
_MOVING = frozenset(
    "__getitem__ reshape view flatten unflatten squeeze unsqueeze expand expand_as broadcast_to transpose permute movedim flip "
    "narrow select chunk split unbind cat concat concatenate stack repeat tile index_select clone contiguous detach to cpu "
    "cuda".split()
)
_JOINING = frozenset("cat concat concatenate stack".split())
#: What says something about a tensor, and nothing about its entries.
_ASKING = frozenset("__get__ __repr__ __len__ dim ndimension size numel stride is_contiguous is_floating_point".split())


class MaskNotImplementedError(NotImplementedError, AttributeError):
    """The model's own code reached into the mask. (hasattr() answers False: hence the AttributeError.)"""


def misused(what: str) -> MaskNotImplementedError:
    """The error of a model that reads our mask itself."""
    return MaskNotImplementedError(
        f"the model asks for {what} of the attention mask, which it therefore uses in attention of its own; the mask of "
        f"attn_implementation='{ALIAS}' can be used by {ALIAS} only, {REMEDY}"
    )


def is_answered(name: str) -> bool:
    """Whether a model may ask this of a mask."""
    return name in _OF_BOOL or name in _CONDITION or name in _MOVING


def tell(name: str, shape: Tuple) -> None:
    """Once an operator: nobody else would notice that the mask takes memory now."""
    if name not in _told:
        _told.add(name)
        _logger.warning(
            "the model calculates with its attention mask (%s), which is therefore made entry by entry, a byte for each query "
            "and key of %s (told once)",
            name,
            tuple(shape),
        )


class Entries(torch.Tensor):
    """bool, True where a query sees a key. Results of operators of bool are tensors as any other."""

    @staticmethod
    def of(values: torch.Tensor) -> "Entries":
        return values.as_subclass(Entries)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Tuple = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if not _is_meant(name, args, kwargs):
            raise misused(torch.overrides.resolve_name(function) or name)
        with torch._C.DisableTorchFunction():
            result = function(*args, **kwargs)
        return _wrapped(result) if name in _MOVING or name == "__get__" else result


def _is_meant(name: str, args: Tuple, kwargs: Dict) -> bool:
    if name in _CONDITION:
        at, argument = _CONDITION[name]
        others = [x for i, x in enumerate(args) if i != at] + [x for key, x in kwargs.items() if key != argument]
        return not any(isinstance(x, Entries) for x in others)
    if name == "__getitem__":
        return isinstance(args[0], Entries)
    if name in _JOINING:
        pieces = args[0] if args else kwargs.get("tensors", ())
        return all(isinstance(x, torch.Tensor) and x.dtype is torch.bool for x in pieces)
    if name == "to":
        dtypes = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.dtype)]
        dtypes += [x.dtype for x in args[1:] if isinstance(x, torch.Tensor)]
        return all(x is torch.bool for x in dtypes)
    return name in _OF_BOOL or name in _MOVING or name in _ASKING


def _wrapped(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(map(_wrapped, result)) if type(result) in (tuple, list) else result
    return Entries.of(result) if isinstance(result, torch.Tensor) and result.dtype is torch.bool else result


def plain(mask: Any) -> Any:
    """The same entries as a tensor as any other; all else as it is."""
    if type(mask) is not Entries:
        return mask
    with torch._C.DisableTorchFunction():
        return mask.as_subclass(torch.Tensor)
