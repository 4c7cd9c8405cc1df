"""Which way a call goes: straight to native code, or through an operator of torch.library, which others can record.

All tensors of a call and all that is active around it decide, whatever function was called.
"""

from __future__ import annotations

import sys

import torch
from torch.autograd import forward_ad

#: Operators need what PyTorch 2.4 brought.
HAS_OPERATORS = hasattr(torch.library, "register_autograd")

PLAIN_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))

if hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling"):
    is_compiling = torch.compiler.is_compiling
else:

    def is_compiling():
        return False


def _none():
    return None


_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", _none)
_jit_tracer = torch._C._get_tracing_state
_functorch = getattr(torch._C, "_functorch", None)
_functorch_level = getattr(_functorch, "maybe_current_level", _none)
#: Functions that answer something false where nobody is to see an operator.
WATCHERS = [_dispatch_modes, _jit_tracer, _functorch_level]


def needs_operator(tensors) -> bool:
    """Whether somebody is to see an operator, and no memory: a tracer, a mode, a transform, a tensor that has none."""
    if is_compiling():
        return True
    if not PLAIN_TENSORS.issuperset(map(type, tensors)):
        return True
    # k and v lie where q does, which is checked.
    return tensors[0].is_meta or bool(_dispatch_modes()) or _jit_tracer() is not None or _functorch_level() is not None


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp) is at work; functionalize takes operators as they are."""
    return _functorch_level() is not None and bool(_transforms() - {_functorch.TransformType.Functionalize})


def mapped() -> bool:
    """Whether a vmap is among them."""
    return _functorch_level() is not None and _functorch.TransformType.Vmap in _transforms()


def _transforms():
    return {level.key() for level in _functorch.get_interpreter_stack() or ()}


def is_recorded(tensors) -> bool:
    """Whether what is computed now is to be computed again later, from a record: then nothing may be drawn now."""
    if is_compiling() or _jit_tracer() is not None or (HAS_OPERATORS and any(_is_fake(x) for x in tensors)):
        return True
    return bool(_dispatch_modes()) and any(hasattr(mode, "_mode_key") for mode in _modes())


def _is_fake(x) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(x, (FakeTensor, FunctionalTensor))


def _modes():
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return _get_current_dispatch_mode_stack()


def refuse_tangents(tensors) -> None:
    """There is no forward-mode derivative, and a tangent must not be lost."""
    if forward_ad._current_level >= 0:
        for x in tensors:
            if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                raise no_forward_mode()
    if not is_compiling() and _functorch_level() is not None:
        kinds = torch._C._functorch.TransformType
        levels = {level.level() for level in torch._C._functorch.get_interpreter_stack() if level.key() == kinds.Jvp}
        if levels and any(levels & set(levels_of(x)) for x in tensors):
            raise no_forward_mode()


def no_forward_mode() -> NotImplementedError:
    return NotImplementedError(
        "signflash's attention has no forward-mode derivative (jvp, jacfwd, make_dual); use reverse mode: torch.func.vjp, "
        "jacrev or backward()"
    )


def levels_of(x):
    """The levels of torch.func's transforms that x is wrapped for, from the innermost on."""
    while isinstance(x, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(x):
        yield _functorch.maybe_get_level(x)
        x = _functorch.get_unwrapped(x)


def refuse_batches(gradients, watched: bool) -> None:
    """PyTorch's own vmap of a backward, older than torch.func's and without its levels."""
    if _is_batch is None or (watched and (is_compiling() or _functorch_level() is not None)):
        return
    for x in gradients:
        if x is not None and (_is_batch(x) or _functorch.is_batchedtensor(x)):
            raise NotImplementedError(
                "signflash's attention takes no batches of gradients (is_grads_batched=True, vectorize=True); use "
                "torch.func.vmap, vjp or jacrev"
            )


_is_batch = getattr(_functorch, "is_legacy_batchedtensor", None)


def dtensor():
    """The class, if anybody has imported it: from torch.distributed.tensor, or from where it was before PyTorch 2.5."""
    for name in ("torch.distributed.tensor", "torch.distributed._tensor"):
        found = getattr(sys.modules.get(name), "DTensor", None)
        if found is not None:
            return found
    return None


def refuse_kinds(tensors) -> None:
    """Kinds of tensors that hold something else than one dense block."""
    distributed = dtensor()
    for name, x in tensors:
        if not isinstance(x, torch.Tensor):
            continue
        if getattr(x, "is_nested", False):
            raise NotImplementedError(
                f"{name} must be a dense tensor, got a nested one; call each sequence alone, with "
                "shard=Shard(first_batch=i) for dropout masks of their own, or pad and mask"
            )
        if distributed is not None and isinstance(x, distributed):
            raise NotImplementedError(
                f"{name} must be a plain tensor, got a DTensor; use signflash.distributed.attention where the sequence is sharded, "
                f"else give the pieces ({name}.to_local()), with one seed and shard=Shard(...) for their place, and wrap the result"
            )


def refuse_without_operators(tensors) -> None:
    """Before PyTorch 2.4 there is no operator to record."""
    for name, x in tensors:
        if isinstance(x, torch.Tensor) and type(x) not in PLAIN_TENSORS and _has_own_dispatch(type(x)):
            raise NotImplementedError(f"{name} must be a torch.Tensor, got {type(x).__name__}: needs PyTorch 2.4 or newer")
        if isinstance(x, torch.Tensor) and x.is_meta:
            raise NotImplementedError(f"{name} must be on the CPU or a CUDA device, got meta: needs PyTorch 2.4 or newer")
    if _dispatch_modes() or _jit_tracer() is not None or _functorch_level() is not None:
        raise NotImplementedError(
            "signflash's attention is called under a tracer, a dispatch mode or a transform of torch.func; that needs "
            "PyTorch 2.4 or newer"
        )


def _has_own_dispatch(kind) -> bool:
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def hooks_on_saved_tensors() -> bool:
    """Whether what autograd saves now may come back as something else: a checkpoint's, or the user's hooks."""
    return _top_hooks is None or _top_hooks(False) is not None


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
