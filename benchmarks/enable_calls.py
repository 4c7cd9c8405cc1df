"""What the attention of a training step is: PyTorch's fused calls, caught to be called again alone, and softmaxes that drop."""

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
            shape = "".join("1" if mask.stride(i) == 0 or n == 1 else "BHQK"[4 - mask.dim() :][i] for i, n in enumerate(mask.shape))
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


class Watch:
    """While it is entered, `calls` grows by what is called of PyTorch's attention, `own` by other dropouts of a softmax."""

    def __init__(self):
        self.calls: typing.List[Call] = []
        self.own: typing.List[float] = []

    @contextlib.contextmanager
    def watching(self):
        fused, dropout = F.scaled_dot_product_attention, F.dropout

        def seen(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
            tensors = tuple((None if x is None else x.detach(), bool(x is not None and x.requires_grad)) for x in (query, key, value, attn_mask))
            self.calls.append(Call(tensors, dict(dropout_p=dropout_p, is_causal=is_causal, **more)))
            return fused(query, key, value, attn_mask, dropout_p, is_causal, **more)

        def dropped(input, p=0.5, training=True, inplace=False):
            if training and p > 0 and is_softmax(input):
                self.own.append(p)
            return dropout(input, p, training, inplace)

        F.scaled_dot_product_attention, F.dropout = seen, dropped
        try:
            yield self
        finally:
            F.scaled_dot_product_attention, F.dropout = fused, dropout


def is_softmax(x):
    """Whether x is what a softmax returned, or a view of it."""
    function = x.grad_fn
    for _ in range(5):
        if function is None:
            return False
        if "Softmax" in function.name():
            return x.dim() >= 3
        function = next((before for before, _ in function.next_functions if before is not None), None)
    return False
