"""Which calls are ours, and why the others are not."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch.autograd import forward_ad

from .._torch import checks, paths
from .call import Call


class Reason(NamedTuple):
    """Why a call stays with PyTorch."""

    text: str
    #: Whether PyTorch's own result is the same, at its own speed: nobody has to be told.
    silent: bool = False


NO_DROPOUT = Reason("dropout_p is 0, which PyTorch's own kernels compute", silent=True)
EMPTY = Reason("there is nothing to compute", silent=True)
CERTAIN = Reason("dropout_p is 1 or no probability at all, which is PyTorch's to answer", silent=True)
REFUSED = Reason("PyTorch refuses it", silent=True)
NO_FLASH = Reason("sdpa_kernel leaves SDPBackend.FLASH_ATTENTION out, which is what ours stands for")
EXPORT = Reason("torch.export: the program is to run where signflash is not installed")
TRANSFORM = Reason("a transform of torch.func is at work")
TANGENT = Reason("forward-mode derivatives are asked for, which signflash does not have")
OLD_TRACER = Reason("a tracer or a mode is at work, and signflash needs PyTorch 2.4 for that")
MASK_RANK = Reason("attn_mask has more dimensions than query")
NOTHING_SEEN = Reason("attn_mask hides all keys of a query, whose result is NaN in this PyTorch")
WEIGHTS = Reason("need_attn_weights=True asks for the probabilities")
GROUPS = Reason("enable_gqa with numbers of heads that signflash does not group")
FEW_PAIRS = Reason("there is so little to do that the host's time counts, and PyTorch's own takes less of it", silent=True)
OLD_GPU = Reason("the GPU is older than Ampere")

#: From so many scores a head on a bias that learns is faster with ours on a CPU without dropout, too: PyTorch, which has
#: kernels for all else there, stores all probabilities (docs/pytorch.md has the measurement).
MANY_SCORES = 512 * 512
HALF = (torch.float16, torch.bfloat16)
_flash_allowed = getattr(torch._C, "_get_flash_sdp_enabled", lambda: True)
_is_exporting = getattr(getattr(torch, "compiler", None), "is_exporting", lambda: False)


def why_not(call: Call) -> Optional[Reason]:
    """None for a call that is ours. What a mask says is not looked at here."""
    if call.dropout_p == 0.0 and not _learns_much(call):
        return NO_DROPOUT
    return _of_the_place(call) or _of_tensors(call) or _of_shapes(call)


def _learns_much(call) -> bool:
    """Whether the mask is to have a gradient, of many scores, on a CPU."""
    mask, q, k = call.attn_mask, call.query, call.key
    if mask is None or not mask.requires_grad or not torch.is_grad_enabled() or q.device.type != "cpu":
        return False
    return q.dim() >= 2 and k.dim() >= 2 and q.shape[-2] * k.shape[-2] >= MANY_SCORES


def _of_the_place(call) -> Optional[Reason]:
    """What is at work around the call."""
    if not _flash_allowed():
        return NO_FLASH
    if paths._functorch_level() is not None:
        return TRANSFORM
    if forward_ad._current_level >= 0 and any([forward_ad.unpack_dual(x).tangent is not None for x in call.tensors()]):
        return TANGENT
    if _is_exporting():
        return EXPORT
    if not paths.HAS_OPERATORS and paths.needs_operator(call.tensors()):
        return OLD_TRACER
    return None


def _of_tensors(call) -> Optional[Reason]:
    for x in call.tensors():
        if type(x) not in paths.PLAIN_TENSORS and not _is_plain_below(x):
            return Reason(f"a tensor is a {type(x).__name__}")
        if x.layout is not torch.strided:
            return Reason(f"a tensor has layout {x.layout}")
    q = call.query
    dtypes = checks.NAMES if q.device.type == "cpu" else HALF
    if q.dtype not in dtypes:
        return Reason(f"query is {str(q.dtype)[6:]} on {q.device.type}")
    if any([x.dtype is not q.dtype or x.device != q.device for x in (call.key, call.value)]):
        return REFUSED
    mask = call.attn_mask
    if mask is not None and (mask.device != q.device or not (mask.dtype is torch.bool or mask.dtype in checks.NAMES)):
        return Reason(f"attn_mask is {str(mask.dtype)[6:]} on {mask.device}")
    if q.device.type == "cuda" and not is_new_enough(q.device.index):
        return OLD_GPU
    return None


def _is_plain_below(x) -> bool:
    """Whether it is one of a tracer's tensors, which stand for plain ones, or of a class that only adds methods."""
    return not paths._has_own_dispatch(type(x)) or (paths.HAS_OPERATORS and paths._is_fake(x))


_new_enough = {}


def is_new_enough(index) -> bool:
    if index not in _new_enough:
        if not torch.cuda.is_available():  # a fake tensor of a GPU that is elsewhere
            return True
        _new_enough[index] = torch.cuda.get_device_capability(index) >= (8, 0)
    return _new_enough[index]


def _of_shapes(call) -> Optional[Reason]:
    q, k, v, mask = call.query, call.key, call.value, call.attn_mask
    if mask is not None and call.is_causal:
        return REFUSED
    if not 0.0 <= call.dropout_p < 1.0:
        return CERTAIN
    if min(q.dim(), k.dim(), v.dim()) < 2 or q.dim() != k.dim() or q.dim() != v.dim():
        return Reason(f"query, key and value have {q.dim()}, {k.dim()} and {v.dim()} dimensions")
    if any([0 in x.shape for x in (q, k, v)]):
        return EMPTY
    if mask is not None and mask.dim() > q.dim():
        return MASK_RANK
    if not (q.shape[-1] <= 256 and v.shape[-1] <= 256):
        return too_wide(q, v)
    if call.enable_gqa and not (q.dim() >= 3 and k.shape[-3] == v.shape[-3] and q.shape[-3] % k.shape[-3] == 0):
        return GROUPS
    return None if _fit(call) else REFUSED


def too_wide(q, v) -> Reason:
    return Reason(f"head_dim is {q.shape[-1]} and value's {v.shape[-1]}; signflash has 1 to 256")


def _fit(call) -> bool:
    """Whether sizes fit one another."""
    q, k, v, mask = call.query, call.key, call.value, call.attn_mask
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        return False
    if mask is not None:
        for size, expected in zip(reversed(mask.shape), (k.shape[-2], q.shape[-2])):
            if size != 1 and size != expected:
                return False
    try:
        leading(call)
    except RuntimeError:
        return False
    return True


def leading(call):
    """What lies before (seqlen, head_dim) in the result: (..., batch, num_heads), as PyTorch broadcasts."""
    of_query, of_key, of_value = (x.shape[:-2] for x in (call.query, call.key, call.value))
    if call.enable_gqa:
        of_key, of_value = ((*shape[:-1], of_query[-1]) for shape in (of_key, of_value))
    if call.attn_mask is None and of_query == of_key == of_value:
        return tuple(of_query)
    of_mask = () if call.attn_mask is None else call.attn_mask.shape[:-2]
    return tuple(torch.broadcast_shapes(of_query, of_key, of_value, of_mask))
