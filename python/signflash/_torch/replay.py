"""Recomputed forwards: their dropout state must be that of the forward that they repeat.

Activation checkpoints run a forward twice. PyTorch's own generators are restored for the second run (unless
``preserve_rng_state=False``); a generator of ours, or of the caller's, is not. Then the gradients would be
those of another dropout mask, so the states are compared.
"""

from __future__ import annotations

import os
import struct
import sys

import torch

from .. import _random
from .._settings import U64, signed
from . import native

REMEDY = (
    "give the call inside the checkpoint a seed, or let it draw from PyTorch's default generator with "
    "preserve_rng_state=True"
)


def states_to_save(state, dropout_p):
    """(what autograd is to save, the same to keep): what comes back of the first is compared with the second.

    (seed, offset, bits of dropout_p), int64.
    """
    bits = _bits(dropout_p)
    if dropout_p == 0.0:
        state = (0, 0)
    if type(state) is tuple:
        drawn = torch.tensor([*map(signed, state), bits], dtype=torch.int64, device="cpu")
        return drawn, drawn
    drawn = torch.cat((state.detach(), torch.full((1,), bits, dtype=torch.int64, device=state.device)))
    return drawn, drawn.clone()


def _bits(dropout_p) -> int:
    return struct.unpack("<q", struct.pack("<d", dropout_p))[0]


def check(drawn, saved) -> None:
    """That the state which came back is the one that was drawn."""
    if drawn is saved:
        return
    alike = saved is not None and saved.layout is torch.strided and saved.dtype is torch.int64
    if not alike or saved.shape != drawn.shape or saved.device != drawn.device:
        raise RuntimeError("the dropout state that autograd saved came back as something else: hooks must return it as it was")
    saved = native.dense_rows(saved)
    if drawn.is_cuda and torch.cuda.is_current_stream_capturing():
        torch._assert_async((drawn == saved).all())  # nobody may wait for the GPU now
    elif not torch.equal(drawn, saved):
        raise _differs(saved.tolist(), drawn.tolist())


def _differs(again, first) -> RuntimeError:
    """Of two that autograd saved or that calls drew: (seed, offset, bits of dropout_p)."""
    if again[2:] != first[2:]:
        p_again, p = (struct.unpack("<d", struct.pack("<q", x[2]))[0] for x in (again, first))
        return RuntimeError(
            f"a recomputed forward had dropout_p {p_again}, but the forward had {p}: the gradients would be of another dropout "
            "mask; let dropout_p be the same until the backward is done"
        )
    first, again = ([x & U64 for x in drawn[:2]] for drawn in (first, again))
    return RuntimeError(
        f"a recomputed forward drew the dropout state {tuple(again)}, but the forward had drawn {tuple(first)}: the "
        f"gradients would be of another dropout mask; {REMEDY}"
    )


def watch(seed: int, offset: int, dropout_p: float) -> None:
    """Notes what is drawn within a reentrant checkpoint's forward, and compares what is drawn when it is repeated.

    Such a checkpoint saves nothing of what is inside: its own node is the only thing that both runs share. Calls
    without dropout are noted, too: the repetition may have some.
    """
    codes = _codes()
    if codes is None:
        return
    forward, backward = codes
    drawn = (signed(seed), signed(offset), _bits(dropout_p)) if dropout_p > 0.0 else (0, 0, 0)
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is forward:
            ctx = frame.f_locals["ctx"]
            ctx.signflash_drawn = [*getattr(ctx, "signflash_drawn", ()), drawn]
        elif frame.f_code is backward:
            ctx = frame.f_locals["ctx"]
            first = getattr(ctx, "signflash_drawn", ())
            index = getattr(ctx, "signflash_repeated", 0)
            ctx.signflash_repeated = index + 1
            # A graph that is retained can be run backward again: it starts anew.
            if first and first[index % len(first)] != drawn:
                raise _differs(drawn, first[index % len(first)])
            return
        frame = frame.f_back


def refuse_compiled_repetition() -> None:
    """Where the operator draws: that it is not compiled code which repeats a forward within its backward.

    The compiler repeats what it does not want to keep: in checkpoints, where it restores PyTorch's own generator and
    nothing else, and under a memory budget, where it restores nothing. Both runs share no tensor that could be
    compared.
    """
    if _graph_task() == -1:
        return
    restored = False
    frame = sys._getframe(1)
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if file.endswith("rng_prims.py"):
            restored = True
        elif file.endswith(_CHECKPOINTS) or (file.endswith(_COMPILED) and name == "forward"):
            return  # a whole forward is run again: what it drew is compared elsewhere
        elif file.endswith(_COMPILED) and name == "backward":
            if restored and _random.scoped() is None:
                return
            raise RuntimeError(
                "compiled code repeats a forward with dropout within its backward (a checkpoint under random_state, "
                "activation_memory_budget, aggressive_recomputation), and would draw another dropout mask: give the "
                "call a seed or an rng_state"
            )
        frame = frame.f_back


_CHECKPOINTS = os.path.join("torch", "utils", "checkpoint.py")
_COMPILED = os.path.join("_aot_autograd", "runtime_wrappers.py")


_known_codes = None


def _codes():
    """(forward, backward) of reentrant checkpoints; None where nobody has imported them."""
    global _known_codes
    if _known_codes is None:
        checkpoint = sys.modules.get("torch.utils.checkpoint")
        function = getattr(checkpoint, "CheckpointFunction", None)
        if function is not None:
            _known_codes = (function.forward.__code__, function.backward.__code__)
    return _known_codes


#: Outside of a backward it is -1. Before PyTorch 2.1 it is not told, and every draw is watched.
_graph_task = getattr(torch._C, "_current_graph_task_id", lambda: 0)
#: An autograd function's forward, which a reentrant checkpoint is, runs without forward-mode derivatives; no_grad has
#: them. Where PyTorch does not tell (1.13 does not), every draw without gradients is watched.
_forward_mode_enabled = getattr(torch._C, "_is_fwd_grad_enabled", torch.is_grad_enabled)


#: What is answered where no reentrant checkpoint's forward or its repetition can be what runs now.
UNCHECKPOINTED = ((_forward_mode_enabled, True), (_graph_task, -1))


def may_be_checkpointed() -> bool:
    """Whether a reentrant checkpoint's forward or its repetition can be what runs now."""
    return not _forward_mode_enabled() or _graph_task() != -1
