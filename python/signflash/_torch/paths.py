"""Which way a call goes: straight to native code, or through an operator of torch.library, which tracers can record."""

from __future__ import annotations

import torch

#: Operators need what PyTorch 2.4 brought.
HAS_OPERATORS = hasattr(torch.library, "register_autograd")

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

if hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling"):
    is_compiling = torch.compiler.is_compiling
else:

    def is_compiling():
        return False


def needs_operator(tensors) -> bool:
    """Whether somebody is to see an operator, and no memory: a tracer, a mode, a kind of tensor that has none."""
    return is_compiling() or any(type(x) not in PLAIN_TENSORS for x in tensors)
