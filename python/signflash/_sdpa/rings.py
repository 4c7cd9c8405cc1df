"""PyTorch's ``context_parallel``, which dropout must not meet: its ring gives the backward of every step the random state
that its first step drew, so that gradients are of other dropout masks than the output. (Seen with PyTorch 2.15.)
"""

from __future__ import annotations

import sys

from .._torch import paths

#: Where it is.
MODULES = (
    "torch.distributed.tensor.experimental._context_parallel._attention",
    "torch.distributed.tensor.experimental._attention",
    "torch.distributed._tensor.experimental.attention",
)


def refuse(call) -> None:
    """Raises for a call with dropout, if such a ring makes it, or would be made of it."""
    if call.dropout_p == 0.0 or not _is_there():
        return
    if hasattr(call.query, "_spec") and _rings_are_on():
        raise no_dropout()
    refuse_in_a_ring()


def refuse_in_a_ring() -> None:
    """The same for a step of a ring."""
    frame = sys._getframe(1) if _is_there() else None
    while frame is not None:
        if frame.f_code.co_name == "_templated_ring_attention":
            raise no_dropout()
        frame = frame.f_back


def _is_there() -> bool:
    return any([name in sys.modules for name in MODULES])


def _rings_are_on() -> bool:
    """Whether attention of DTensors is to become rings: within ``context_parallel``."""
    import torch

    dispatcher = getattr(paths.dtensor(), "_op_dispatcher", None)
    handlers = getattr(dispatcher, "_custom_op_handlers", ())
    return torch.ops.aten._scaled_dot_product_flash_attention.default in handlers


def no_dropout() -> NotImplementedError:
    return NotImplementedError(
        "dropout_p must be 0 under PyTorch's context_parallel while signflash is enabled: its ring hands every step of the "
        "backward the random state of the forward's first step, and gradients would be wrong; use signflash.distributed, "
        "or dropout_p=0"
    )
