"""Kernels of PyTorch's operators on CUDA that PyTorch calls without Python in between (PyTorch 2.10 and newer).

They do what those of `flash.py` and `fused.py` do, which older versions have. What only Python knows is asked for by the
functions here: random states, and who listens.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any, NamedTuple, Tuple

import torch

from .. import _native
from .._torch import random
from . import fused, masks, notes, rings, takes
from .call import Call

FLASH = "_scaled_dot_product_flash_attention"
_FORWARDS = (FLASH, fused.EFFICIENT, fused.CUDNN)
#: As `fused.LEAST_PAIRS`, of which the lesser holds: native kernels are faster than PyTorch's from where they were timed.
LEAST_PAIRS = 1 << 20
#: How many arguments and results operators have that the native half knows.
_KNOWN = {
    FLASH: (7, 9),
    f"{FLASH}_backward": (15, 3),
    fused.EFFICIENT: (8, 4),
    f"{fused.EFFICIENT}_backward": (13, 4),
    fused.CUDNN: (9, 9),
    f"{fused.CUDNN}_backward": (16, 3),
}


def operators(*names):
    """Those of them, forward and backward, that this PyTorch has."""
    return [name for of in names for name in (of, f"{of}_backward") if hasattr(torch.ops.aten, name)]


@functools.lru_cache(None)
def is_there() -> bool:
    """Whether this PyTorch has what it takes, and operators that we know."""
    if torch.version.cuda is None or torch.version.hip is not None:
        return False
    for name in operators(*_FORWARDS):
        schema = getattr(torch.ops.aten, name).default._schema
        if (len(schema.arguments), len(schema.returns)) != _KNOWN[name]:
            return False
    return _native.have_operators(
        path=torch._C.__file__,
        draw=draw,
        hear=hear,
        refuse=rings.refuse_in_a_ring,
        listeners=notes.listeners,
        deterministic=torch._C._get_deterministic_algorithms,
        usual={**random.usual(), "absent": rings.MODULES, "modules": sys.modules},
    )


def register(*names, key="CUDA"):
    """The kernels of operators, until they are removed."""
    _have_it_told_once()
    return _native.register_operators(key, operators(*names), min(LEAST_PAIRS, fused.LEAST_PAIRS))


@functools.lru_cache(None)
def _have_it_told_once() -> None:
    """PyTorch tells, once and to stderr, that a kernel of its own is overridden, which is what was asked for: where Python
    hears it, it can be told not to."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl(FLASH, lambda *_: None, "CUDA")
    library._destroy()


def draw(index, batch, num_heads, dropout_p):
    """(seed, offset) of the next call with dropout on this GPU, or the CPU at -1; None while a graph is captured."""
    rings.refuse_in_a_ring()
    return random.draw_on(index, batch, num_heads, dropout_p)


_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class _Told(NamedTuple):
    """What is told of a tensor."""

    shape: Tuple[int, ...]
    dtype: Any
    device: Any


def hear(reason, shapes, call) -> None:
    """Tells what became of a call: `reason` is None for one that was ours."""
    dtype, is_cuda, dropout_p, is_causal, scale = call
    device = torch.device("cuda" if is_cuda else "cpu")
    q, k, v, bias = [shape and _Told(shape, _DTYPES.get(dtype, torch.float64), device) for shape in shapes]
    call = Call(q, k, v, bias, dropout_p, is_causal, scale)
    if reason is None:
        seen = masks.CAUSAL if is_causal else masks.ALL
        notes.taken(call, seen if bias is None else masks.Seen(bias=bias))
    else:
        notes.left(call, _reason(reason, q, v))


def _reason(name, q, v) -> takes.Reason:
    if name == "dtype":
        return takes.Reason(f"query is {str(q.dtype)[6:]} on {q.device.type}")
    return takes.too_wide(q, v) if name == "wide" else getattr(takes, name)
