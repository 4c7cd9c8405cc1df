"""Attention of sequences of different lengths in one padded batch: each is computed alone, at its own length."""

from __future__ import annotations

from typing import List, Union

import torch

from .._settings import Shard
from . import random
from .attention import attention

#: Which positions of a sequence count: a range, or an index where they are scattered.
Positions = Union[slice, "torch.Tensor"]


def positions(mask) -> List[Positions]:
    """Which positions count, of each row of a bool mask (batch, seqlen). Waits for the GPU, once a mask."""
    known = getattr(mask, "_signflash_positions", None)
    # Tensors made in inference mode count no changes; nobody changes these masks.
    version = None if mask.is_inference() else mask._version
    if known is not None and known[0] == version:
        return known[1]
    found = []
    for row in mask.cpu():
        index = row.nonzero()[:, 0]
        count = len(index)
        dense = count == 0 or int(index[-1]) - int(index[0]) + 1 == count
        first = int(index[0]) if count else 0
        found.append(slice(first, first + count) if dense else index.to(mask.device))
    # A model hands the same mask to all of its layers.
    mask._signflash_positions = (version, found)
    return found


def _take(x, which: Positions):
    """Positions of one sequence (1, seqlen, heads, head_dim)."""
    return x[:, which] if isinstance(which, slice) else x.index_select(1, which)


def _put(x, which: Positions, size: int, dim: int):
    """The inverse: x among zeros, ``size`` long in ``dim``."""
    if isinstance(which, slice) and which.start == 0 and which.stop == size:
        return x
    if isinstance(which, slice):
        which = torch.arange(which.start, which.stop, device=x.device)
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape).index_copy(dim, which, x)


def padded_attention(q, k, v, mask, settings, *, return_probs):
    """(out, probs or None) of q (batch, seqlen_q, num_heads, head_dim) and k, v (batch, seqlen_k, num_heads_k,
    head_dim).

    mask is (batch, seqlen_k) bool, True for what counts. Keys that do not count are not seen. Where it is causal the
    queries are the last seqlen_q of the keys' positions, and those that do not count get zeros. The dropout mask of
    sequence i is FlashAttention-2's for sequence i of a packed batch.
    """
    batch, seqlen_q, num_heads, _ = q.shape
    seqlen_k = k.shape[1]
    seed, offset, state = (0, 0, None) if settings.dropout_p == 0.0 else random.draw(q)
    outs, maps = [], []
    for i, keys in enumerate(positions(mask)):
        queries, q_i = _queries(keys, seqlen_q, seqlen_k, settings.causal), q[i : i + 1]
        out, _, probs, _ = attention(
            (_take(q_i, queries), _take(k[i : i + 1], keys), _take(v[i : i + 1], keys)),
            settings._replace(shard=Shard(first_batch=i, num_heads_total=num_heads)),
            seed=seed if state is None else None,
            offset=offset,
            rng_state=state,
            return_probs=return_probs,
        )
        outs.append(_put(out, queries, seqlen_q, 1))
        if return_probs:
            maps.append(_put(_put(probs, keys, seqlen_k, 3), queries, seqlen_q, 2))
    return torch.cat(outs), torch.cat(maps) if return_probs else None


def _queries(keys: Positions, seqlen_q: int, seqlen_k: int, causal: bool) -> Positions:
    """Which queries are computed: all, but under causal those whose own position counts."""
    if not causal:
        return slice(0, seqlen_q)
    before = seqlen_k - seqlen_q
    if isinstance(keys, slice):
        start, stop = max(keys.start - before, 0), max(keys.stop - before, 0)
        return slice(min(start, stop), stop)
    return keys[keys >= before] - before
