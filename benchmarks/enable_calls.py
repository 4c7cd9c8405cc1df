"""PyTorch's attention in a training step, caught to be called again alone."""

import contextlib
import dataclasses
import typing

import torch
from torch.nn import functional as F


@dataclasses.dataclass
class Call:
    """One call of F.scaled_dot_product_attention, with tensors of the same values, strides and gradients."""

    tensors: typing.Tuple  # query, key, value, mask or None: detached, and whether each requires a gradient
    settings: typing.Dict

    def words(self):
        """What a reader wants to know of it."""
        (q, _), (k, _), _, (mask, needs_gradient) = self.tensors
        said = f"p={self.settings['dropout_p']:g}"
        said += ", causal" if self.settings["is_causal"] else ""
        if mask is not None:
            names = "BHQK"[4 - mask.dim() :]
            repeated = [stride == 0 or size == 1 for stride, size in zip(mask.stride(), mask.shape)]
            shape = "".join("1" if is_one else name for name, is_one in zip(names, repeated))
            kind = "bool" if mask.dtype == torch.bool else "float"
            said += f", {kind} mask ({shape})" + (" with its gradient" if needs_gradient else "")
        return said + ("" if q.shape[-3] == k.shape[-3] else f", {q.shape[-3]} heads of {k.shape[-3]}")

    def prepare(self):
        """A function of a forward and a backward on tensors of their own: a mask is new to whoever remembers masks."""
        query, key, value, mask = (None if x is None else fresh(x).requires_grad_(needs) for x, needs in self.tensors)
        wanted = [x for x in (query, key, value, mask) if x is not None and x.requires_grad]
        dout = torch.randn(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)

        def run():
            out = F.scaled_dot_product_attention(query, key, value, mask, **self.settings)
            if wanted:
                torch.autograd.grad(out, wanted, dout)

        return run


def fresh(x):
    """A copy that lies in memory as x does, expanded where x is."""
    narrow = x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
    return narrow.detach().clone().expand(x.shape)


@contextlib.contextmanager
def watched():
    """A list that grows by what is called of PyTorch's attention."""
    calls, fused = [], F.scaled_dot_product_attention

    def seen(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
        given = (query, key, value, attn_mask)
        tensors = tuple((None, False) if x is None else (x.detach(), x.requires_grad) for x in given)
        calls.append(Call(tensors, dict(dropout_p=dropout_p, is_causal=is_causal, **more)))
        return fused(query, key, value, attn_mask, dropout_p, is_causal, **more)

    F.scaled_dot_product_attention = seen
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = fused
