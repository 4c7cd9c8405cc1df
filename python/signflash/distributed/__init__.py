"""Attention of sequences that lie on several ranks of torch.distributed, with the dropout mask of one device.

    from signflash import distributed
    q, k, v = (distributed.shard_sequence(x) for x in (q, k, v))  # this rank's positions
    out = distributed.attention(q, k, v, causal=True, dropout_p=0.1, seed=step)

docs/distributed.md says who holds and sends what.
"""

from .. import _torch as _half  # PyTorch itself, or an error that says so

try:
    import torch.distributed as _dist
except ImportError:  # pragma: no cover - PyTorch without it
    _dist = None
if _dist is None or not _dist.is_available() or not hasattr(_dist, "get_global_rank"):
    raise ImportError("signflash.distributed needs PyTorch 2.1 or newer with torch.distributed; this one lacks it")

from .attention import attention
from .context import context_parallel
from .layout import Layout
from .merge import merge
from .seeds import manual_seed
from .sequence import shard_sequence, unshard_sequence

__all__ = [
    "Layout",
    "attention",
    "context_parallel",
    "manual_seed",
    "merge",
    "shard_sequence",
    "unshard_sequence",
]
