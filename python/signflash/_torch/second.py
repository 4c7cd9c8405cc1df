"""Derivatives of gradients (``create_graph=True``), by the formula and PyTorch's own autograd, in float32.

A second derivative is rare and asked for late: it stores all probabilities, seqlen_q * seqlen_k of each head, which
the first never does. Gradients are a function of dout, dlse and all inputs, whose derivative is taken here, with the
dropout mask of the forward; derivatives of any higher order follow by themselves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .. import _native
from .._settings import U64
from .dropout_mask import dropout_mask_tensor


class Inputs(NamedTuple):
    """Of a call whose gradients are to be differentiated: q, k, v (batch, seqlen, num_heads, head_dim), and the scores'
    own tensors, or None."""

    q: Any
    k: Any
    v: Any
    alibi_slopes: Any
    bias: Any
    mask: Any
    sinks: Any


def outputs(given: Inputs, settings, state):
    """(out, lse) as PyTorch computes them: differentiable as often as one likes."""
    q, k, v = (x.float().transpose(1, 2) for x in (given.q, given.k, given.v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if settings.softmax_scale is None else settings.softmax_scale
    scores = q @ k.transpose(-1, -2) * scale
    if settings.softcap:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    behind, seen = _positions(*scores.shape[-2:], settings, q.device)
    if given.alibi_slopes is not None:
        scores = scores - given.alibi_slopes[..., None, None] * behind.abs()
    if given.bias is not None:
        scores, seen = scores + given.bias.float(), seen & (given.bias != -math.inf)
    if given.mask is not None:
        seen = seen & given.mask
    sees = seen.any(-1, keepdim=True)
    scores = scores.masked_fill(~seen, -math.inf).masked_fill(~sees, 0.0)
    if given.sinks is not None:
        sinks = given.sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores.masked_fill(~sees, -math.inf), sinks], -1)
    lse = torch.logsumexp(scores, -1)
    if given.sinks is None:
        lse = lse.masked_fill(~sees.expand(*scores.shape[:3], 1)[..., 0], -math.inf)
    probs = torch.softmax(scores, -1)[..., : k.shape[2]] * sees
    if settings.dropout_p > 0.0:
        keep = dropout_mask_tensor(tuple(probs.shape), _numbers(state), settings, q.device)
        probs = probs * keep * _native.keep_scale(settings.dropout_p, settings.nominal)
    return (probs @ v).transpose(1, 2), lse


def _positions(seqlen_q, seqlen_k, settings, device):
    """(how many keys each key is behind the one that the query faces, whether causality and windows show it)."""
    rows, columns = (torch.arange(size, device=device) for size in (seqlen_q, seqlen_k))
    diagonal = seqlen_k - seqlen_q if settings.diagonal is None else settings.diagonal
    behind = columns - (rows[:, None] + diagonal)
    seen = torch.ones_like(behind, dtype=torch.bool)
    left, right = settings.window_left, 0 if settings.causal else settings.window_right
    if left >= 0:
        seen &= behind >= -left
    if right >= 0:
        seen &= behind <= right
    return behind, seen


def _numbers(state):
    """(seed, offset, 0): of a tensor, they are waited for."""
    seed, offset = (int(x) & U64 for x in (state if type(state) is tuple else state.tolist()))
    return seed, offset, 0


def derivatives(call, unpack, saved, given):
    """Those of (dout, dlse, bias, sinks, *tensors), None where there is none.

    call is the backward's, saved are (dout, dlse, the four of Scores, the tensors as they were packed), and given the
    derivatives of what the backward found: (gradients of the tensors, dbias, dsinks).
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: what dout has to do with q elsewhere is not this function's.
        dout, dlse, alibi_slopes, bias, mask, sinks, *tensors = (_fresh(x) for x in saved)
        inputs = Inputs(*unpack(call.packing, tensors), alibi_slopes, bias, mask, sinks)
        out, lse = outputs(inputs, call.settings, call.state)
        found, into = zip(*[(y, dy) for y, dy in ((out, dout), (lse, dlse)) if dy is not None])
        asked = [(x, d) for x, d in zip((*tensors, bias, sinks), given) if d is not None and x is not None]
        into = [dy.to(y.dtype) for y, dy in zip(found, into)]
        first = torch.autograd.grad(found, [x for x, _ in asked], into, create_graph=True, allow_unused=True)
        asked = [(g, d) for g, (_, d) in zip(first, asked) if g is not None]
        wanted = [x for x in (dout, dlse, bias, sinks, *tensors) if x is not None]
        second = torch.autograd.grad(
            [g for g, _ in asked], wanted, [d for _, d in asked], create_graph=create_graph, allow_unused=True
        )
    second = iter(second)
    return tuple([None if x is None else next(second) for x in (dout, dlse, bias, sinks, *tensors)])


def _fresh(x):
    if x is None or not x.is_floating_point():
        return x
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
