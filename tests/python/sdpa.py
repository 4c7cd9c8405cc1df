"""What the tests of ``F.scaled_dot_product_attention`` share: calls, whether ours computed them, and the formula."""

import contextlib
import math

import reference
import signflash
import torch
from signflash._sdpa import notes

SEED, OFFSET = 7, 32
attend = getattr(torch.nn.functional, "scaled_dot_product_attention", None)
#: What PyTorch 1.13 does not have is skipped there.
HAS_SDPA = attend is not None


class Listener(list):
    """(call, reason or None) of each call that PyTorch would compute by its formula."""

    def note(self, call, reason, seen):
        self.append((call, reason, seen))

    @property
    def taken(self):
        return [reason is None for _, reason, _ in self]


@contextlib.contextmanager
def listening():
    listener = Listener()
    notes.listeners.append(listener)
    try:
        yield listener
    finally:
        notes.listeners.remove(listener)


def taken(function, *args, **kwargs):
    """Whether each call in it was ours, and what the function returned."""
    with listening() as listener:
        result = function(*args, **kwargs)
    return listener.taken, result


def make(*shape, dtype=torch.float32, seed=0, of_keys=None, head_dim_v=None):
    """q, k, v (..., heads, seqlen, head_dim) that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    of_keys = shape if of_keys is None else of_keys
    shapes = (shape, of_keys, (*of_keys[:-1], head_dim_v or of_keys[-1]))
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in shapes]


def expected(q, k, v, p, attn_mask=None, is_causal=False, scale=None):
    """The formula in float64, of (batch, heads, seqlen, head_dim) and the dropout mask of (SEED, OFFSET)."""
    shape = (*q.shape[:3], k.shape[2])
    keep = reference.keep(shape, p, SEED, OFFSET) if p > 0 else None
    mask = bias = None
    if is_causal:
        mask = torch.ones(shape[2:], dtype=torch.bool).tril().expand(shape)
    elif attn_mask is not None and attn_mask.dtype is torch.bool:
        mask = attn_mask.expand(shape)
    elif attn_mask is not None:
        bias = attn_mask.expand(shape)
    out, _, _ = reference.attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        keep=keep,
        scale=reference.keep_scale(p, nominal=True),
        softmax_scale=scale,
        bias=bias,
        mask=mask,
    )
    out = out.transpose(1, 2)
    if mask is not None:
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # a query that sees no key: zeros, as PyTorch's
    elif bias is not None:
        out = out.masked_fill((bias == -math.inf).all(-1, keepdim=True), 0.0)
    return out


def check(q, k, v, p, attn_mask=None, is_causal=False, scale=None, **settings):
    """That a call is ours, and its result and gradients are the formula's."""
    if scale is not None:
        settings["scale"] = scale
    with listening() as listener, signflash.random_state(SEED, OFFSET):
        out = attend(q, k, v, attn_mask=attn_mask, dropout_p=p, is_causal=is_causal, **settings)
    assert listener.taken == [True], [str(reason) for _, reason, _ in listener]
    wanted = [x for x in (q, k, v, attn_mask) if x is not None and x.requires_grad]
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    got = torch.autograd.grad(out, wanted, dout)
    return out, got, dout, listener[0][2]
