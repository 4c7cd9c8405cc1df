"""The attention mask that models carry from our mask function to our attention function, and nobody else can use."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch

from .names import ALIAS

REMEDY = "use attn_implementation='eager' or 'sdpa' for this model"


class MaskNotImplementedError(NotImplementedError, AttributeError):
    """The model's own code reached into the mask. (hasattr() answers False: hence the AttributeError.)"""


class Seen(NamedTuple):
    """What one call of attention sees."""

    causal: bool
    seqlen_k: int
    keys: Optional[torch.Tensor]


class Mask:
    """Which keys each query sees, said in words instead of batch * seqlen_q * seqlen_k numbers.

    It has the shape (batch, 1, seqlen_q, seqlen_k) of the mask that it stands for, can be moved and cut, and raises
    in any arithmetic: a model that computes attention in code of its own fails by a sentence instead of seeing too
    much.

    Attributes:
        causal: whether query i sees keys up to ``first + i`` only; else each query sees all keys.
        first: the key at the first query's own position.
        keys: bool (batch, as many keys as a query can see), which of them count, or None if all do.
        padding: the bool (batch, seqlen) that the model was called with, or None.
        problem: why this mask cannot be computed, or None. It is raised when the mask is used.
    """

    def __init__(
        self, batch, seqlen_q, seqlen_k, *, causal, first=0, keys=None, padding=None, problem=None, device=None
    ):
        self.batch, self.seqlen_q, self.seqlen_k = batch, seqlen_q, seqlen_k
        self.causal, self.first = causal, first
        self.keys, self.padding = keys, padding
        self.problem = problem
        self.device = device

    def _with(self, **changes: Any) -> "Mask":
        """A copy in which some attributes are others."""
        copy = Mask.__new__(Mask)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def of(self, seqlen_q: int, seqlen_k: int) -> Seen:
        """What attention of so many queries and keys sees.

        Raises:
            NotImplementedError: there is no kernel for it, or the mask is of another shape.
        """
        if self.problem is not None:
            raise NotImplementedError(self.problem)
        if seqlen_k > self.seqlen_k or (self.causal and seqlen_q != self.seqlen_q):
            raise NotImplementedError(
                f"attention_mask must be None or of ({seqlen_q}, {seqlen_k}) queries and keys, got shape {self.shape}; {REMEDY}"
            )
        causal = self.causal
        if causal:
            if self.first >= seqlen_k - 1:
                causal = False
            elif self.first + seqlen_q > seqlen_k or self.first < 0:
                raise NotImplementedError(
                    f"the model asks for causal attention of {seqlen_q} queries from position {self.first} on and "
                    f"{seqlen_k} keys; the last query must be at the last key, {REMEDY}"
                )
            else:
                seqlen_k = self.first + seqlen_q
        keys = self.keys
        if keys is not None:
            seqlen_k = min(seqlen_k, keys.shape[1])
            keys = keys if keys.shape[1] == seqlen_k else keys[:, :seqlen_k]
        return Seen(causal, seqlen_k, keys)

    # What says something about the mask and changes nothing.

    @property
    def shape(self) -> Tuple[int, int, int, int]:
        return torch.Size((self.batch, 1, self.seqlen_q, self.seqlen_k))

    dtype = torch.bool
    ndim = 4
    requires_grad = False

    def dim(self) -> int:
        return 4

    def size(self, dim: Optional[int] = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __repr__(self) -> str:
        kind = "refused" if self.problem else "causal" if self.causal else "full"
        return f"<{ALIAS}'s attention mask: {kind}, {tuple(self.shape)}>"

    # What keeps the meaning.

    def to(self, *args: Any, device: Any = None, **kwargs: Any) -> "Mask":
        """On another device; a dtype changes nothing."""
        for x in args:
            device = (
                x.device if isinstance(x, torch.Tensor) else x if isinstance(x, (str, int, torch.device)) else device
            )
        if device is None:
            return self
        moved = {
            name: None if x is None else x.to(device) for name, x in (("keys", self.keys), ("padding", self.padding))
        }
        return self._with(device=torch.device(device), **moved)

    def contiguous(self, *args: Any, **kwargs: Any) -> "Mask":
        return self

    clone = detach = contiguous

    def __getitem__(self, index: Any) -> "Mask":
        """Ranges of batch, queries and keys."""
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in [x for x in index if not isinstance(x, (torch.Tensor, Mask))]:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (5 - len(index)) + index[at + 1 :]
        index = index + (slice(None),) * (4 - len(index))
        if len(index) != 4 or any(not isinstance(x, slice) or x.step not in (None, 1) for x in index):
            raise misused("Tensor.__getitem__")
        (b0, b1), (h0, h1), (q0, q1), (k0, k1) = (x.indices(n)[:2] for x, n in zip(index, self.shape))
        if h1 - h0 != 1 or k0 != 0 or min(b1 - b0, q1 - q0, k1) < 1:
            raise misused("Tensor.__getitem__")
        cut = dict(batch=b1 - b0, seqlen_q=q1 - q0, seqlen_k=k1, first=self.first + q0)
        for name in ("keys", "padding"):
            x = getattr(self, name)
            whole = x is None or (b0, b1) == (0, self.batch)
            cut[name] = x if whole else x[b0:b1]
        if cut["keys"] is not None and k1 < cut["keys"].shape[1]:
            cut["keys"] = cut["keys"][:, :k1]
        return self._with(**cut)

    def repeat(self, *sizes: Any) -> torch.Tensor:
        """Numbers, bool with True for what is seen, as Transformers makes them for PyTorch: some pooling heads, which
        attend by themselves and never drop, ask for them like this."""
        if self.causal or self.problem is not None:
            raise misused("Tensor.repeat")
        keys = self.keys
        if keys is None:
            keys = torch.ones((self.batch, self.seqlen_k), dtype=torch.bool, device=self.device)
        return keys[:, None, None].expand(self.shape).repeat(*sizes)

    # Everything else is a use that would read numbers which are not there.

    def __getattr__(self, name: str) -> Any:
        raise misused(f"Tensor.{name}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise misused(torch.overrides.resolve_name(function) or getattr(function, "__name__", str(function)))


def misused(what: str) -> MaskNotImplementedError:
    """The error of a model that reads our mask itself."""
    return MaskNotImplementedError(
        f"the model asks for {what} of the attention mask, which it therefore uses in attention of its own; the mask of "
        f"attn_implementation='{ALIAS}' can be used by {ALIAS} only, {REMEDY}"
    )


def _raising(name: str) -> Any:
    def method(self: Mask, *args: Any) -> Any:
        raise misused(f"Tensor.{name}")

    return method


_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
for _name in [f"__{side}{x}__" for x in _OPERATORS for side in ("", "r", "i")] + [
    f"__{x}__" for x in "eq ne lt le gt ge bool len iter contains float int index neg pos invert abs setitem".split()
]:
    setattr(Mask, _name, _raising(_name))
Mask.__hash__ = object.__hash__
