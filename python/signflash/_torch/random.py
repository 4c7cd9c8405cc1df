"""Seeds and offsets from PyTorch's generators, read and advanced as PyTorch's FlashAttention does."""

from __future__ import annotations

import threading

import torch

from .. import _random
from .._settings import U64, signed
from . import replay, sequences
from .paths import HAS_OPERATORS, needs_operator

#: Between reading a generator and advancing it no other thread may read it.
_lock = threading.Lock()

STATE = "an int64 tensor of 2 elements (seed, offset) on q's device"


def draw(q):
    """(seed, offset, rng_state) of the next call on q (batch, seqlen, num_heads, head_dim), for calls that share it.

    rng_state is None but where numbers are not to be known yet: while a graph is traced, or captured on a GPU. Then
    it is a tensor that each run of the graph fills anew.
    """
    if HAS_OPERATORS and needs_operator((q,)):
        return 0, 0, torch.ops.signflash.draw_state(q.detach())
    return draw_now(q)


def draw_now(q, generator=None, dropout_p=1.0, cu_seqlens=None):
    """The same where nothing is traced; rng_state is None but while a CUDA graph is captured."""
    streams = (q.shape[0] if cu_seqlens is None else sequences.count(cu_seqlens), q.shape[-2])
    if generator is not None and not isinstance(generator, _random.Generator):
        check_generator(q, generator)
    drawn = draw_on(q.get_device() if q.is_cuda else -1, *streams, dropout_p, generator)
    if drawn is not None:
        return (*drawn, None)
    # The generator's numbers are the replay's to know: a kernel draws them, so each drops entries of its own.
    return 0, 0, torch.randint(0, (1 << 63) - 1, (2,), dtype=torch.int64, device=q.device, generator=generator)


def draw_on(index, batch, num_heads, dropout_p, generator=None):
    """(seed, offset) of the next call on the GPU of this number, or on the CPU at -1; None while a CUDA graph is captured."""
    own = _random.scoped() if generator is None else generator
    if isinstance(own, _random.Generator):
        drawn = own.next(batch, num_heads)
    elif index < 0:
        # PyTorch's CPU generator has no counter: the seed comes from it, and each call advances it.
        seed = int(torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64, device="cpu", generator=generator))
        drawn = (seed & U64, 0)
    elif _is_capturing():
        return None
    else:
        generator = torch.cuda.default_generators[index] if generator is None else generator
        with _lock:
            drawn = _advance(generator, batch * num_heads * _random.LANES)
    if replay.may_be_checkpointed():
        replay.watch(*drawn, dropout_p)
    return drawn


def usual():
    """For native code that draws on a GPU as :func:`draw_on` does, but keeps the interpreter's lock meanwhile: what is answered
    where nothing but PyTorch's default generator is asked for and nobody is at it, and where that is."""
    answers = [(_random.scoped, None), (_is_capturing, False), (_lock.locked, False), *replay.UNCHECKPOINTED]
    return {"answers": answers, "cuda": torch.cuda, "lanes": _random.LANES}


def check_generator(q, generator) -> None:
    if not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator or a signflash.Generator, got {kind}")
    of = generator.device
    if of.type != q.device.type or (of.index is not None and of.index != q.device.index):
        raise ValueError(f"generator must be of q's device {q.device}, got {of}; use torch.Generator(q.device)")


def check_rng_state(q, rng_state) -> None:
    if not isinstance(rng_state, torch.Tensor):
        raise TypeError(f"rng_state must be {STATE}, got {type(rng_state).__name__}")
    fits = rng_state.dtype is torch.int64 and tuple(rng_state.shape) == (2,) and rng_state.device == q.device
    if not fits or not rng_state.is_contiguous():
        got = f"{rng_state.dtype} of shape {tuple(rng_state.shape)} on {rng_state.device}"
        raise ValueError(f"rng_state must be {STATE}, contiguous; got {got}")


#: PyTorch's without its wrapper, which asks whether CUDA is there.
_is_capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", torch.cuda.is_current_stream_capturing)


def _advance_by_offset(generator, increment):
    """(seed, offset) of a CUDA generator, which then goes on."""
    offset = generator.get_offset()
    generator.set_offset(offset + increment)
    return generator.initial_seed() & U64, offset


def _advance_by_state(generator, increment):
    """The same before PyTorch 2.1: the state's last 16 bytes are seed and offset."""
    state = generator.get_state()
    seed, offset = (int(x) for x in state[-16:].clone().view(torch.int64))
    state[-8:] = torch.tensor([signed((offset + increment) & U64)], dtype=torch.int64).view(torch.uint8)
    generator.set_state(state)
    return seed & U64, offset & U64


_advance = _advance_by_offset if hasattr(torch.Generator, "set_offset") else _advance_by_state
