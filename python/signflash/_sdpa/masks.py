"""What an ``attn_mask`` says: nothing, causal, padding, which keys a query sees, or numbers that are added to scores.

PyTorch hands masks on as numbers: 0 where a key is seen and -inf where it is not, made anew in every call from a mask
of booleans. On the CPU they are read, which takes little beside attention itself, so that tiles are skipped of which
nothing is seen; on a GPU that would wait for it, and numbers are added as they are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from .._torch import paths
from .known import Known


class Seen(NamedTuple):
    """What a call sees, in the words of :func:`signflash.attention`; causal is from the top left corner on."""

    causal: bool = False
    mask: Any = None
    bias: Any = None


ALL = Seen()
CAUSAL = Seen(causal=True)
#: A query sees no key, and PyTorch's result of that is NaN, which is not ours.
HIDES_A_ROW = Seen()

#: Numbers that are added as they are. What is remembered of a mask has nothing of its memory, which it would keep alive.
BIAS = Seen()

#: So many entries of a dimension a first look takes: most biases are told by it.
_FEW = 8


def look(attn_mask, seqlen_q, seqlen_k) -> Seen:
    """What it says of so many queries and keys."""
    if attn_mask.requires_grad or attn_mask.device.type != "cpu" or paths.needs_operator((attn_mask,)):
        return Seen(mask=attn_mask) if attn_mask.dtype is torch.bool else Seen(bias=attn_mask)
    seen = _known(attn_mask.detach(), seqlen_q, seqlen_k)
    return Seen(bias=attn_mask) if seen is BIAS else seen


def _read(attn_mask, seqlen_q, seqlen_k) -> Seen:
    x = _distinct(attn_mask)
    if x.dtype is not torch.bool and not _hides_alone(_few(x)):
        return BIAS
    x = _of_equal_heads(x)
    if x.dtype is torch.bool:
        seen = x.clone()
    elif _hides_alone(x):
        seen = x == 0
    else:
        return BIAS
    if bool(seen.all()):
        return ALL
    if hidden_rows_are_nan() and not bool(seen.any(-1).all()):
        return HIDES_A_ROW
    return _of_rows(seen, seqlen_q, seqlen_k) or Seen(mask=seen)


#: A model has one mask, whose views all layers use.
_known = Known(_read)


def _distinct(x):
    """Without entries that expanding repeats."""
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _few(x):
    """Entries from all over it."""
    return x[tuple([slice(None, None, max(size // _FEW, 1)) for size in x.shape])]


def _are_equal(x, y) -> bool:
    return torch.equal(_few(x), _few(y)) and torch.equal(x, y)


def _of_equal_heads(x):
    """Without heads and batches that say what the first says: ``torch.nn`` writes a mask of keys out for each head, and
    comparing takes a fraction of what reading them all does."""
    for dim in range(x.dim() - 3, -1, -1):
        first = x.narrow(dim, 0, 1)
        if x.shape[dim] > 1 and _are_equal(x, first.expand_as(x)):
            x = first
    return x


def _hides_alone(x) -> bool:
    """Whether these are 0 and -inf."""
    return bool(((x == 0) | (x == float("-inf"))).all())


def _of_rows(seen, seqlen_q, seqlen_k):
    """A mask of keys alone, or what it and causal attention say together; None of any other."""
    if seen.dim() < 2 or seen.shape[-2] == 1:
        return None
    first, keys = seen[..., :1, :], seen[..., -1:, :].clone()
    if torch.equal(first, keys):
        return Seen(mask=keys) if bool((seen == keys).all()) else None
    if seen.shape[-1] != seqlen_k:
        return None
    triangle = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril()
    if not torch.equal(seen, triangle & keys):
        return None
    return CAUSAL if bool(keys[..., :seqlen_q].all()) else Seen(causal=True, mask=keys)


def of_scores(settings, scores, q, k):
    """(settings, scores) of a dense call, rows first, whose bias says no more than which keys are seen: in those words.

    For operators, which compiled code calls: while it was traced there were no numbers to read.
    """
    if scores is None or scores.bias is None or scores.mask is not None or scores.bias.device.type != "cpu":
        return settings, scores
    seen = look(scores.bias.detach(), q.shape[1], k.shape[1])
    is_bound = settings.causal or settings.diagonal is not None or max(settings.window_left, settings.window_right) >= 0
    if seen is HIDES_A_ROW or (seen.causal and is_bound):
        return settings, scores
    if seen.causal:
        settings = settings._replace(causal=True, diagonal=0 if q.shape[1] != k.shape[1] else None)
    scores = scores._replace(bias=seen.bias, mask=seen.mask)
    return settings, None if all([x is None for x in scores]) else scores


@functools.lru_cache(None)
def hidden_rows_are_nan() -> bool:
    """Whether PyTorch's result of a query that sees no key is NaN, as it was before 2.5, and not 0."""
    x = torch.zeros(1, 1, 1, 1)
    out, _ = torch.ops.aten._scaled_dot_product_attention_math.default.decompose(x, x, x, x + float("-inf"))
    return bool(out.isnan().any())
