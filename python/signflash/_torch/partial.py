"""Partial results: out, dq, dk and dv in float32 of 16-bit tensors, to be added to others before anything is rounded."""

from __future__ import annotations

import torch


def room(x, shape):
    """Where a wide result that belongs to x is written."""
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def room_for_out(q, v):
    return room(q, (*q.shape[:-1], v.shape[-1]))


def not_recorded(argument: str) -> NotImplementedError:
    return NotImplementedError(
        f"{argument} cannot be recorded by torch.compile and other tracers, and is not there for subclasses of tensors; "
        "leave it out there"
    )


def no_gradient() -> NotImplementedError:
    return NotImplementedError(
        "out_dtype is for partial results, which autograd does not know: call within torch.no_grad(), and get their "
        "gradients from signflash.attention_backward(..., grad_dtype=torch.float32)"
    )
