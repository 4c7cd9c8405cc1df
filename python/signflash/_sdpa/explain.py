"""What becomes of each attention in a function: a table for whoever asks."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from . import masks, notes, switch, takes
from .call import Call

ATTENTION = "scaled_dot_product_attention"
#: Autograd's keys, and those below, where calls of inference_mode arrive.
_KEYS = ("AutogradCPU", "CPU", "AutogradCUDA", "CUDA")
_OWN = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)

INFERENCE = takes.Reason("torch.inference_mode is at work")
OTHER_KERNEL = takes.Reason("PyTorch chose a fused kernel of its own (cuDNN's, say)")
OWN_CODE = takes.Reason("softmax and dropout in code of its own, which calls no scaled_dot_product_attention")
NEED_WEIGHTS = takes.Reason("nn.MultiheadAttention with need_weights=True, which calls no scaled_dot_product_attention")


class Attention(NamedTuple):
    """One attention of a function; equal ones are counted."""

    #: Whether ours computed it.
    taken: bool
    #: Why not, or what its mask was found to say.
    why: str
    dropout_p: float
    query: Tuple[int, ...]
    key: Optional[Tuple[int, ...]]
    #: The line that called it: the innermost outside of PyTorch.
    where: str

    def cells(self, count) -> List[str]:
        shapes = [str(x).replace(" ", "") if x else "" for x in (self.query, self.key)]
        return ["ours" if self.taken else "PyTorch", str(count), f"{self.dropout_p:g}", *shapes, self.why, self.where]


class Explanation:
    """What :func:`signflash.explain` found; ``str()`` is a table.

    Attributes:
        attentions: each :class:`Attention`, and how often it was called.
        result: what the function returned.
    """

    def __init__(self, attentions: Dict[Attention, int], result: Any) -> None:
        self.attentions, self.result = attentions, result

    @property
    def all_taken(self) -> bool:
        """Whether all attention with dropout was ours."""
        return all([x.taken or x.dropout_p == 0.0 for x in self.attentions])

    def __str__(self) -> str:
        if not self.attentions:
            return "no attention was called"
        head = ["by", "calls", "p", "query", "key", "why", "where"]
        lines = [head, *[x.cells(count) for x, count in self.attentions.items()]]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines])

    __repr__ = __str__


def explain(function, *args, **kwargs) -> Explanation:
    with switch.block(), _uncompiled(), _Recorder() as recorder:
        result = function(*args, **kwargs)
    return Explanation(recorder.found, result)


def _uncompiled():
    """Compiled code calls nothing that could be seen: it runs as it was written."""
    stance = getattr(getattr(torch, "compiler", None), "set_stance", None)
    return contextlib.nullcontext() if stance is None else stance("force_eager")


class _Recorder:
    """Is told of each call that ours decides on, and looks at those that PyTorch does not ask us about."""

    def __init__(self) -> None:
        self.found: Dict[Attention, int] = {}
        self._lock = threading.Lock()
        self._told = threading.local()

    def __enter__(self):
        self._library = torch.library.Library("aten", "IMPL")
        watched = {ATTENTION: self._attention, "dropout": self._dropout}
        for name, kernel in watched.items():
            if not hasattr(torch.ops.aten, name):
                continue
            for key in _KEYS if torch.version.cuda is not None else _KEYS[:2]:
                self._library.impl(name, kernel, key)
        self._watched = watched
        notes.listeners.append(self)
        return self

    def __exit__(self, *_):
        notes.listeners.remove(self)
        library, self._library = self._library, None
        if hasattr(library, "_destroy"):
            library._destroy()
        for name in self._watched:
            operator = getattr(getattr(torch.ops.aten, name, None), "default", None)
            if hasattr(operator, "_dispatch_cache"):
                operator._dispatch_cache.clear()

    def note(self, call, reason, seen) -> None:
        self._told.count = getattr(self._told, "count", 0) + 1
        why = _words(seen) if reason is None else reason.text
        self._add(reason is None, why, call)

    def _add(self, taken, why, call) -> None:
        key = None if call.key is None else _shape(call.key)
        found = Attention(taken, why, float(call.dropout_p), _shape(call.query), key, _caller())
        with self._lock:
            self.found[found] = self.found.get(found, 0) + 1

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        before = getattr(self._told, "count", 0)
        operator = getattr(torch.ops.aten, ATTENTION).default
        self._told.is_within = True  # PyTorch's formula drops, too
        try:
            out = operator.decompose(query, key, value, attn_mask, dropout_p, is_causal, **rest)
        finally:
            self._told.is_within = False
        if getattr(self._told, "count", 0) == before:
            call = Call(query, key, value, attn_mask, dropout_p, is_causal, rest.get("scale"))
            reason = takes.NO_DROPOUT
            if dropout_p > 0.0:
                inference = getattr(torch, "is_inference_mode_enabled", lambda: False)()
                reason = INFERENCE if inference else OTHER_KERNEL
            self._add(False, reason.text, call)
        return out

    def _dropout(self, x, p, train):
        if train and p > 0.0 and not getattr(self._told, "is_within", False) and _are_probabilities(x):
            frame, needs_weights = sys._getframe(1), False
            while frame is not None and not needs_weights:
                needs_weights = frame.f_code.co_name == "multi_head_attention_forward"
                frame = frame.f_back
            reason = NEED_WEIGHTS if needs_weights else OWN_CODE
            self._add(False, reason.text, Call(x, None, None, dropout_p=p))
        return torch.ops.aten.dropout.default.decompose(x, p, train)


def _shape(x):
    """A compiler's symbols as words, which can be compared without deciding on them."""
    return tuple([size if type(size) is int else str(size) for size in x.shape])


def _words(seen) -> str:
    """What a call computes beside queries and keys."""
    if seen is masks.CAUSAL:
        return "causal"
    words = ["causal"] if seen.causal else []
    for name, x in (("mask", seen.mask), ("bias", seen.bias)):
        if x is not None:
            words.append(f"{name} {str(_shape(x)).replace(' ', '')}")
    return " and ".join(words)


def _are_probabilities(x) -> bool:
    """Whether rows of it add up to 1, as those of attention."""
    if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point() or type(x) is not torch.Tensor:
        return False
    row = x.detach().flatten(0, -2)[:: max(x.numel() // x.shape[-1] // 64, 1)].double()
    return bool((row >= 0).all()) and bool(((row.sum(-1) - 1).abs() < 0.02).all())


def _caller() -> str:
    """The innermost line outside of PyTorch and this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
