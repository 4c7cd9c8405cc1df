"""Attention of sequences that lie on several ranks of torch.distributed, with the dropout mask of one device.

    from signflash import distributed
    q, k, v = (distributed.shard_sequence(x) for x in (q, k, v))  # this rank's positions
    out = distributed.attention(q, k, v, causal=True, dropout_p=0.1, seed=step)

docs/distributed.md says who holds and sends what.
"""

import torch as _torch
import torch.distributed as _dist

if not _dist.is_available() or tuple(int(x) for x in _torch.__version__.split(".")[:2]) < (2, 2):
    raise ImportError(
        f"signflash.distributed needs PyTorch 2.2 or newer, built with torch.distributed; this one is {_torch.__version__}"
    )

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
