"""Stands in for flash_attn, so that FlashAttention-2's own test file runs unchanged.

The functions are signflash's. Where the tests ask for S_dmask they expect FlashAttention-2's unnormalised one, so the
probabilities are multiplied by what the tests then divide by: exp(lse - the row's largest score).
"""

import functools
import math

import signflash
import torch
from signflash import flash_attn_with_kvcache  # noqa: F401


def _unnormalised(probs, lse, q, k, window, softcap, slopes):
    """Of q (batch, seqlen_q, num_heads, head_dim), k (batch, seqlen_k, num_heads_k, head_dim)."""
    q, k = (x.detach().float().transpose(1, 2) for x in (q, k))
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) / math.sqrt(q.shape[-1])
    rows, columns = scores.shape[-2:]
    if columns == 0:
        return probs.float()
    away = torch.arange(columns, device=q.device) - torch.arange(rows, device=q.device)[:, None] - (columns - rows)
    left, right = (columns + rows if x < 0 else x for x in window)
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores - slopes[..., None, None] * away.abs()
    scores = scores.masked_fill((away < -left) | (away > right), -math.inf)
    factor = torch.exp(lse - scores.amax(-1))
    # A row that sees nothing has no largest score.
    factor = torch.where(torch.isfinite(factor), factor, torch.ones_like(factor))
    return probs.float() * factor[..., None]


def _unnormalised_packed(probs, lse, q, k, window, softcap, slopes, cu_seqlens_q, cu_seqlens_k):
    """Of packed sequences; probs are (sequences, num_heads, the most queries, the most keys)."""
    found, starts = probs.float(), list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist()))
    for i, ((q0, k0), (q1, k1)) in enumerate(zip(starts, starts[1:])):
        piece = found[i : i + 1, :, : q1 - q0, : k1 - k0]
        own = slopes if slopes is None or slopes.dim() == 1 else slopes[i : i + 1]
        piece.copy_(_unnormalised(piece, lse[None, :, q0:q1], q[None, q0:q1], k[None, k0:k1], window, softcap, own))
    return found


class _OnceUsed:
    """The tensor that `make` makes, when something is asked of it: most tests look at S_dmask in a few cases only."""

    def __init__(self, make):
        self._make = make

    @functools.cached_property
    def _tensor(self):
        return self._make()

    def __getattr__(self, name):
        return getattr(self._tensor, name)

    def __getitem__(self, index):
        return self._tensor[index]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [x._tensor if isinstance(x, cls) else x for x in args]
        return function(*args, **(kwargs or {}))


def _window(window_size=(-1, -1), causal=False, **_):
    left, right = (int(x) for x in window_size)
    return left, 0 if causal else right


def _wrap(function, unpack, packed=0):
    """A function of signflash's; unpack finds q and k, and packed says how many cu_seqlens stand behind the tensors."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        results = function(*args, **kwargs)
        if not isinstance(results, tuple):
            return results
        out, lse, probs = results
        q, k = unpack(args)
        scores = (_window(**kwargs), kwargs.get("softcap", 0.0), kwargs.get("alibi_slopes"))
        if not packed:
            return out, lse, _OnceUsed(lambda: _unnormalised(probs, lse, q, k, *scores))
        starts = [x for x in args if isinstance(x, torch.Tensor) and x.dim() == 1][:packed]
        return out, lse, _OnceUsed(lambda: _unnormalised_packed(probs, lse, q, k, *scores, starts[0], starts[-1]))

    return call


flash_attn_func = _wrap(signflash.flash_attn_func, lambda a: (a[0], a[1]))
flash_attn_kvpacked_func = _wrap(signflash.flash_attn_kvpacked_func, lambda a: (a[0], a[1][:, :, 0]))
flash_attn_qkvpacked_func = _wrap(signflash.flash_attn_qkvpacked_func, lambda a: (a[0][:, :, 0], a[0][:, :, 1]))
flash_attn_varlen_func = _wrap(signflash.flash_attn_varlen_func, lambda a: (a[0], a[1]), 2)
flash_attn_varlen_kvpacked_func = _wrap(signflash.flash_attn_varlen_kvpacked_func, lambda a: (a[0], a[1][:, 0]), 2)
flash_attn_varlen_qkvpacked_func = _wrap(signflash.flash_attn_varlen_qkvpacked_func, lambda a: (a[0][:, 0], a[0][:, 1]), 1)
