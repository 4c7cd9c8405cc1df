"""PyTorch's operators for attention on CUDA, computed by ours: below its autograd, which saves and differentiates as ever.

``F.scaled_dot_product_attention`` chooses one of three operators there, for flash, efficient and cuDNN's kernels, whose
arguments differ in names alone. What is theirs of results - how they lie in memory, in which shape lse and the state of the
generator come - is in `flash.py` and `fused.py`; the rest is here. PyTorch's tracing knows the shapes and strides of all
results in advance, and compiled code relies on them.
"""

from __future__ import annotations

import array
from typing import Any, NamedTuple, Optional

import torch

from .._settings import Settings, signed
from .._torch import checks, native, random
from .._torch.scores import Scores
from . import masks, notes, rings
from .call import Call


class Given(NamedTuple):
    """query (batch, num_heads, seqlen_q, head_dim), key and value of a call, and what it sees."""

    query: Any
    key: Any
    value: Any
    attn_bias: Any
    dropout_p: float
    is_causal: bool
    scale: Optional[float]

    def rows_first(self):
        return self.query.transpose(1, 2), self.key.transpose(1, 2), self.value.transpose(1, 2)

    def settings(self) -> Settings:
        # PyTorch's causal begins in the top left corner, where a square begins anyway.
        off = self.is_causal and self.query.shape[2] != self.key.shape[2]
        return Settings(self.dropout_p, self.scale, bool(self.is_causal), nominal=True, diagonal=0 if off else None)

    def scores(self) -> Optional[Scores]:
        bias, seqlen_k = self.attn_bias, self.key.shape[2]
        if bias is None:
            return None
        if bias.dim() < 4:
            bias = bias[(None,) * (4 - bias.dim())]
        return Scores(bias=bias if bias.shape[3] == seqlen_k else bias.expand(*bias.shape[:3], seqlen_k))


class Drawn(NamedTuple):
    """The random state of a call: numbers, or, while a graph is captured, a tensor that each run fills anew."""

    seed: int = 0
    offset: int = 0
    state: Any = None

    def for_kernels(self):
        return (self.seed, self.offset) if self.state is None else self.state

    def as_one(self):
        """A uint64 tensor of both; on the CPU where they are known, so that the backward reads it without waiting for the
        GPU."""
        if self.state is not None:
            return self.state.view(torch.uint64)
        return torch.frombuffer(array.array("Q", (self.seed, self.offset)), dtype=torch.uint64)

    def as_two(self):
        """int64 tensors (seed, offset) of no dimension; on a GPU in one memory."""
        if self.state is not None:
            return self.state.unbind()
        pair = (signed(self.seed), signed(self.offset))
        return tuple([torch.scalar_tensor(x, dtype=torch.int64, device="cpu") for x in pair])


def forward(given: Given, out=None, return_probs=False):
    """(out, lse (batch, num_heads, seqlen_q), probs or None, Drawn); out (batch, seqlen_q, num_heads, head_dim_v) is
    written to if there is one.
    """
    q, k, v = given.rows_first()
    checks.check_qkv(q, k, v)
    if given.dropout_p > 0.0:
        rings.refuse_in_a_ring()
    if notes.listeners:
        seen = masks.CAUSAL if given.is_causal else masks.ALL
        seen = seen if given.attn_bias is None else masks.Seen(bias=given.attn_bias)
        notes.taken(Call(*given), seen)
    drawn = Drawn() if given.dropout_p == 0.0 else Drawn(*random.draw_now(q))
    of_kernels = drawn.for_kernels()
    out, lse, probs = native.forward(
        q, k, v, given.settings(), of_kernels, return_probs, out, scores=given.scores()
    )
    return out, lse, probs, drawn


def backward(given: Given, grad_out, out, lse, state, into, wants_dbias=False):
    """dbias or None; dq, dk and dv are written to ``into``, rows first."""
    q, k, v = given.rows_first()
    o, dout = out.transpose(1, 2), grad_out.transpose(1, 2)
    deterministic = torch.are_deterministic_algorithms_enabled()
    state = state if given.dropout_p > 0.0 else (0, 0)
    *_, dbias, _ = native.backward(
        dout, q, k, v, o, lse, None, given.settings(), state, deterministic, into,
        scores=given.scores(), wanted=(wants_dbias, False),
    )  # fmt: skip
    return dbias


class Like:
    """An empty tensor as another (batch, num_heads, seqlen, head_dim) lies, and what kernels write for it, rows first."""

    def __init__(self, x, head_dim=None) -> None:
        if head_dim is None or head_dim == x.shape[3]:
            self.result = torch.empty_like(x)
        else:
            self.result = _in_order_of(x, (*x.shape[:3], head_dim))
        fits = self.result.stride(-1) == 1 or self.result.shape[-1] == 1
        self._written = self.result if fits else torch.empty(self.result.shape, dtype=x.dtype, device=x.device)

    @property
    def rows_first(self):
        return self._written.transpose(1, 2)

    def filled(self):
        if self._written is not self.result:
            self.result.copy_(self._written)
        return self.result


def _in_order_of(x, shape):
    """Empty, of another shape, its dimensions in memory in the order of x's."""
    order = sorted(range(4), key=lambda dim: (x.stride(dim) == 0, -x.stride(dim)))
    made = torch.empty([shape[dim] for dim in order], dtype=x.dtype, device=x.device)
    return made.permute([order.index(dim) for dim in range(4)])
