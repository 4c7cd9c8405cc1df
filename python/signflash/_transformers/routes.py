"""How the modules of a model attend: through the registry of Transformers, or by arithmetic of their own.

Read from the code of their classes, since a model does not say it: a class that Transformers' registry never sees
takes any ``attn_implementation`` and does not use it.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from typing import Any, Dict, Iterator, NamedTuple, Set, Tuple

import torch
from transformers import AttentionInterface, PreTrainedModel

PRODUCTS = {"matmul", "bmm", "einsum", "baddbmm"}
#: PyTorch's own attention, a product and a softmax in one.
FUSED = {"scaled_dot_product_attention", "multi_head_attention_forward"}


class Route(NamedTuple):
    """What the code of a class does about attention."""

    asks: bool
    computes: bool
    drops: bool
    #: Whether it computes by F.scaled_dot_product_attention, which is ours after signflash.enable(). (The other function of
    #: PyTorch's is so only where nobody asks it for probabilities, which no name says.)
    calls_pytorchs: bool = False


NOTHING = Route(False, False, False)


@functools.lru_cache(maxsize=None)
def route_of(kind: type) -> Route:
    """Whether modules of this class ask the registry, compute attention themselves, and use dropout in that."""
    names: Set[str] = set()
    for function in _reached(kind):
        names |= {name for name, _ in _uses(function)}
        if _asks(function):
            return Route(True, False, False)
    weights = any("softmax" in name.lower() for name in names) and not names.isdisjoint(PRODUCTS)
    computes = weights or not names.isdisjoint(FUSED)
    drops = computes and any("drop" in name.lower() for name in names)
    return Route(False, computes, drops, "scaled_dot_product_attention" in names)


def route_of_module(module: torch.nn.Module) -> Route:
    if isinstance(module, torch.nn.MultiheadAttention):
        return Route(False, True, module.dropout > 0.0)
    return NOTHING if type(module).__module__.startswith("torch.") else route_of(type(module))


def table_of(kind: type) -> Tuple[str, Dict[str, type]]:
    """The table from which this model's layers take a class for each attention implementation, and its name, or "".

    Making the model with a name that is not in the table is a KeyError.
    """
    seen: Set[type] = set()
    todo = [kind]
    while todo:
        kind = todo.pop()
        if kind in seen:
            continue
        seen.add(kind)
        for name, value in _globals_of(vars(kind).get("__init__")):
            if _is_table(value):
                return name, value
            if (
                isinstance(value, type)
                and issubclass(value, torch.nn.Module)
                and not issubclass(value, PreTrainedModel)
            ):
                todo.append(value)
        todo += [base for base in kind.__mro__[1:] if _is_a_models(base)]
    return "", {}


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "eager" in value
        and all(isinstance(x, type) and issubclass(x, torch.nn.Module) for x in value.values())
    )


def _is_a_models(kind: type) -> bool:
    """Whether a class is of a model and not of the libraries below it."""
    if kind in (object, PreTrainedModel):
        return False
    return not kind.__module__.startswith(("torch.", "transformers.modeling_", "transformers.generation", "builtins"))


def _functions(kind: type) -> Iterator[types.FunctionType]:
    """The methods that modules of a class have, without those that another overrides."""
    found: Set[str] = set()
    for base in filter(_is_a_models, kind.__mro__):
        for name, value in vars(base).items():
            function = _function(value)
            if function is not None and name not in found:
                found.add(name)
                yield function


def _function(value: Any) -> Any:
    """The plain function behind a method, decorated or not; None if there is none."""
    value = getattr(value, "__func__", value)
    if isinstance(value, type) or not callable(value):
        return None
    value = inspect.unwrap(value)
    return value if isinstance(value, types.FunctionType) else None


def _reached(kind: type) -> Iterator[types.FunctionType]:
    """The methods of a class, and the functions of the same file that they name."""
    seen = set()
    todo = list(_functions(kind))
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        yield function
        for _, value in _globals_of(function):
            if isinstance(value, type) and issubclass(value, torch.autograd.Function):
                todo += [x for x in map(_function, vars(value).values()) if x is not None]
            elif getattr(value, "__module__", None) == function.__module__ and not isinstance(value, type):
                value = _function(value)
                todo += [] if value is None else [value]


def _globals_of(function: Any) -> Iterator[Tuple[str, Any]]:
    function = _function(function)
    if function is not None:
        for name, _ in _uses(function):
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _asks(function: types.FunctionType) -> bool:
    """Whether it takes an attention function out of a registry. getattr() of a registry never finds one: by that a
    model of Transformers means to ask, and always computes itself."""
    return any(
        before != "getattr" and isinstance(function.__globals__.get(name), AttentionInterface)
        for name, before in _uses(function)
    )


@functools.lru_cache(maxsize=None)
def _uses(function: types.FunctionType) -> Tuple[Tuple[str, str], ...]:
    """The names that a function's code uses, each with the name before it; "matmul" for the operator."""
    found, before = [], ""
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [x for x in code.co_consts if isinstance(x, types.CodeType)]
        for instruction in dis.get_instructions(code):
            name = instruction.argval if instruction.opcode in _NAMED else None
            if instruction.opname == "BINARY_MATRIX_MULTIPLY" or instruction.argrepr == "@":
                name = "matmul"
            if isinstance(name, str):
                found.append((name, before))
                before = name
    return tuple(found)


_NAMED = frozenset(dis.hasname)
