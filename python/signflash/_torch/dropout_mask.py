"""The dropout mask as a tensor."""

from __future__ import annotations

import contextlib

import torch

from .. import _native
from .paths import HAS_OPERATORS


def dropout_mask_tensor(shape, state, settings, device):
    """bool (batch, num_heads, seqlen_q, seqlen_k) on ``device``."""
    with _nobody_watching():
        keep = torch.empty(shape, dtype=torch.bool, device="cpu")
        _native.dropout_mask(keep.data_ptr(), shape, state, settings)
    # For tracers it is a constant, as what torch.tensor makes is.
    return (torch.ops.aten.lift_fresh(keep) if HAS_OPERATORS else keep).to(device)


@contextlib.contextmanager
def _nobody_watching():
    """Real memory, whatever modes, transforms and tracers are active."""
    with contextlib.ExitStack() as stack:
        try:
            from torch.utils._python_dispatch import _disable_current_modes
        except ImportError:
            pass
        else:
            stack.enter_context(_disable_current_modes())
        if hasattr(getattr(torch._C, "_DisableFuncTorch", None), "__enter__"):
            stack.enter_context(torch._C._DisableFuncTorch())
        traced = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # torch.jit.trace would record the allocation, and not what is written into it
        try:
            yield
        finally:
            torch._C._set_tracing_state(traced)
