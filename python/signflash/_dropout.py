"""The dropout mask, and the sign-bit code, to look at."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

from . import _native
from ._kinds import is_torch
from ._settings import Settings, check_dropout_p, check_shard, check_u64


def dropout_mask(
    shape: Sequence[int],
    dropout_p: float,
    seed: int,
    offset: int = 0,
    *,
    shard: Optional[Sequence] = None,
    device: Any = None,
) -> Any:
    """Which entries a call keeps: bool (batch, num_heads, seqlen_q, seqlen_k), True where kept.

    It is FlashAttention-2's, bit for bit: a function of seed, offset and position alone, the same on every device.
    A NumPy array; with ``device`` (such as ``"cpu"`` or ``"cuda"``) a PyTorch tensor there.

    >>> import signflash
    >>> signflash.dropout_mask((1, 1, 2, 5), 0.5, seed=42).shape
    (1, 1, 2, 5)
    """
    shape = tuple(int(size) for size in shape)
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"shape must be (batch, num_heads, seqlen_q, seqlen_k), got {shape}")
    seed, offset = check_u64("seed", seed), check_u64("offset", offset)
    settings = Settings(check_dropout_p(dropout_p), shard=check_shard(shard))
    state = (seed, offset, 0)
    if device is not None:
        from ._torch.dropout_mask import dropout_mask_tensor

        return dropout_mask_tensor(shape, state, settings, device)
    from ._arrays import numpy

    keep = numpy().empty(shape, dtype=bool)
    _native.dropout_mask(keep.ctypes.data, shape, state, settings)
    return keep


def decode(probs: Any) -> Tuple[Any, Any]:
    """(probability, dropped) of probs (batch, num_heads, seqlen_q, seqlen_k): the magnitude, and the sign bit.

    The sign *bit*: a dropped probability that underflowed is -0.0, and ``-0.0 < 0`` is false.
    """
    if is_torch(probs):
        import torch

        return probs.abs(), torch.signbit(probs)
    from ._arrays import back, numpy, to_numpy

    array = to_numpy("probs", probs)
    return back(probs, numpy().abs(array)), back(probs, numpy().signbit(array))


def keep_scale(dropout_p: float, scale_rule: str = "unbiased") -> float:
    """The factor of kept probabilities: ``out = keep_scale * (kept probabilities) @ v``."""
    from ._settings import check_scale_rule

    return _native.keep_scale(check_dropout_p(dropout_p), check_scale_rule(scale_rule))
