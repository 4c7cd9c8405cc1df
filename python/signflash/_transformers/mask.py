"""The attention mask that models carry from our mask function to our attention function, and nobody else can use."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch

from . import layout
from .calculated import REMEDY, Entries, MaskNotImplementedError, is_answered, misused, tell
from .names import ALIAS
from .values import Pattern

__all__ = ["REMEDY", "Mask", "MaskNotImplementedError", "Seen", "misused", "uncompiled", "window_of"]
#: What looks into numbers of a mask is not for the compiler.
uncompiled = torch.compiler.disable if hasattr(torch, "compiler") else lambda function: function


class Seen(NamedTuple):
    """What one call of attention sees."""

    #: How many keys before and behind its own position a query sees; None is all.
    left: Optional[int]
    right: Optional[int]
    seqlen_k: int
    #: The sequences of a call that is more than one a row, or less.
    packed: Optional[layout.Packed] = None
    #: What else is hidden, bool as :func:`signflash.attention` takes it, and what is added to scores.
    mask: Optional[torch.Tensor] = None
    bias: Optional[torch.Tensor] = None


class Mask:
    """Which keys each query sees, said in words instead of batch * seqlen_q * seqlen_k numbers.

    It has the shape (batch, 1, seqlen_q, seqlen_k) of the mask that it stands for, and can be moved and cut. A model that
    calculates with it gets :class:`Entries`, and with them an error where it would see too much.

    Attributes:
        pattern: what a query sees of its sequence, and the sequences (on the CPU).
        first: the key at the first query's own position.
        keys: bool (batch, as many keys as a query can see) on the CPU, which of them count, or None if all do.
        entries: what no pattern says, entry by entry: bool (batch or 1, 1 or num_heads, 1 or seqlen_q, seqlen_k or more),
            True where a query sees a key; or what is added to scores, alike; or None.
        device: where attention is computed.
        values: makes it entry by entry, bool as Transformers makes it for PyTorch's attention; None if nobody can.
    """

    def __init__(
        self, batch, seqlen_q, seqlen_k, pattern=None, *, first=0, keys=None, entries=None, device=None, values=None
    ):
        self.batch, self.seqlen_q, self.seqlen_k = batch, seqlen_q, seqlen_k
        self.pattern = Pattern() if pattern is None else pattern
        self.first, self.keys, self.entries = first, keys, entries
        self.device = device
        self.values: Optional[Callable[[], torch.Tensor]] = values
        self._made: Optional[torch.Tensor] = None
        #: What was asked last, and the answer: all layers ask the same.
        self._known: Optional[Tuple[int, int, Seen]] = None
        self._known_dense: Optional[Tuple[int, int, Seen]] = None
        #: Sequences that were given, and found to be this mask's.
        self._agreed: Optional[layout.Packed] = None

    def _with(self, **changes: Any) -> "Mask":
        """A copy in which some attributes are others."""
        copy = Mask.__new__(Mask)
        copy.__dict__.update(self.__dict__, _known=None, _known_dense=None, _agreed=None, _made=None)
        copy.__dict__.update(changes)
        return copy

    def __getstate__(self) -> Dict[str, Any]:
        """Copies know what the mask says, and no function that makes it entry by entry: some of those cannot be copied."""
        return dict(self.__dict__, values=None, _made=None)

    def of(self, seqlen_q: int, seqlen_k: int) -> Seen:
        """What attention of so many queries and keys sees.

        Raises:
            NotImplementedError: there is no kernel for it, or the mask is of another shape.
        """
        known = self._known
        if known is not None and known[0] == seqlen_q and known[1] == seqlen_k:
            return known[2]
        return self._look(seqlen_q, seqlen_k)

    def dense(self, seqlen_q: int, seqlen_k: int) -> Seen:
        """The same with nothing packed: what sequences and keys that do not count hide is in the mask, so that each query
        and key has its own place, as in a bias.
        """
        known = self._known_dense
        if known is not None and known[0] == seqlen_q and known[1] == seqlen_k:
            return known[2]
        return self._look_dense(seqlen_q, seqlen_k)

    @uncompiled
    def _look_dense(self, seqlen_q: int, seqlen_k: int) -> Seen:
        if self.entries is not None:
            return self.of(seqlen_q, seqlen_k)
        seen = self._bounds(seqlen_q, seqlen_k)
        hides = None if self.keys is None else self.keys[:, None, None, : seen.seqlen_k]
        if self.pattern.sequences is not None:
            of_keys = self.pattern.sequences[:, : seen.seqlen_k]
            of_queries = self.pattern.sequences[:, self.first : self.first + seqlen_q]
            alike = of_queries[:, None, :, None] == of_keys[:, None, None]
            hides = alike if hides is None else alike & hides
        if hides is not None:
            seen = seen._replace(mask=hides.to(self.device))
        self._known_dense = seqlen_q, seqlen_k, seen
        return seen

    def with_sequences(self, seqlen_q: int, seqlen_k: int, given: layout.Packed) -> Seen:
        """The same with sequences that the caller gives, and that this mask may know, too.

        Raises:
            NotImplementedError: also if it knows others, or keys that do not count.
        """
        seen = self.of(seqlen_q, seqlen_k)
        if self.entries is not None:
            raise NotImplementedError(
                "cu_seq_lens_q and cu_seq_lens_k were given together with an attention_mask of single entries; give one of "
                f"them, or {REMEDY}"
            )
        if seen.packed is None:
            # They may go from one row into the next: what hides nothing in a row may hide something in them.
            return Seen(self.pattern.left, self.pattern.right, seqlen_k, given)
        if self._agreed is None or not all(a is b for a, b in zip(self._agreed, given)):
            self._compare(seen.packed, given)
        return seen

    @uncompiled
    def _compare(self, packed: layout.Packed, given: layout.Packed) -> None:
        """The mask may cut sequences that are given into chunks; it must not say something else."""
        ours, theirs = ({*zip(x.cu_seqlens_q.tolist(), x.cu_seqlens_k.tolist())} for x in (packed, given))
        if self.keys is not None or not theirs <= ours:
            raise NotImplementedError(
                "cu_seq_lens_q and cu_seq_lens_k were given, and attention_mask or position_ids say something else: sequences "
                f"that begin elsewhere, or keys that do not count; give one of them, or {REMEDY}"
            )
        self._agreed = given

    @uncompiled
    def _look(self, seqlen_q: int, seqlen_k: int) -> Seen:
        if self.entries is None:
            seen = self._packed(seqlen_q, self._bounds(seqlen_q, seqlen_k))
        else:
            seen = self._of_entries(seqlen_q, seqlen_k)
        self._known = seqlen_q, seqlen_k, seen
        return seen

    def _of_entries(self, seqlen_q: int, seqlen_k: int) -> Seen:
        entries = self.entries[..., :seqlen_k]
        if entries.shape[2] not in (1, seqlen_q) or entries.shape[3] != seqlen_k:
            raise NotImplementedError(
                f"attention_mask must be None or of ({seqlen_q}, {seqlen_k}) queries and keys, got shape {self.shape}; {REMEDY}"
            )
        kind = "mask" if entries.dtype is torch.bool else "bias"
        return Seen(None, None, seqlen_k)._replace(**{kind: entries})

    def _bounds(self, seqlen_q: int, seqlen_k: int) -> Seen:
        """The window, where it hides something, and how many keys the last query can see."""
        left, right, first = self.pattern.left, self.pattern.right, self.first
        if left is not None and left >= first + seqlen_q - 1:
            left = None
        if right is not None and right >= seqlen_k - 1 - first:
            right = None
        bounded = left is not None or right is not None
        by_position = bounded or self.pattern.sequences is not None
        if seqlen_k > self.seqlen_k or (by_position and seqlen_q != self.seqlen_q):
            raise NotImplementedError(
                f"attention_mask must be None or of ({seqlen_q}, {seqlen_k}) queries and keys, got shape {self.shape}; {REMEDY}"
            )
        if bounded:
            end = first + seqlen_q
            if first < 0 or end > seqlen_k or (end < seqlen_k and right != 0):
                raise NotImplementedError(
                    f"the model asks for attention up to a distance of {seqlen_q} queries from position {first} on and "
                    f"{seqlen_k} keys; the last query must be at the last key, {REMEDY}"
                )
            seqlen_k = end  # a cache may have room to spare
            right = None if seqlen_q == 1 and right == 0 else right
        return Seen(left, right, seqlen_k if self.keys is None else min(seqlen_k, self.keys.shape[1]))

    def _packed(self, seqlen_q: int, seen: Seen) -> Seen:
        """The same, with its sequences."""
        keys = None if self.keys is None else self.keys[:, : seen.seqlen_k]
        sequences = self.pattern.sequences
        sequences = None if sequences is None else sequences[:, : seen.seqlen_k]
        if (keys is None or bool(keys.all())) and sequences is None:
            return seen
        rows = layout.Rows(self.batch, seqlen_q, seen.seqlen_k, self.first, keys, sequences)
        bounded = seen.left is not None or seen.right is not None
        try:
            packed = layout.packed(rows, bounded, seen.left is not None or bool(seen.right))
        except layout.Scattered:
            return self._look_dense(seqlen_q, seen.seqlen_k)
        return seen._replace(packed=packed if self.device is None else packed.to(self.device))

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
        kind = window_of(self.pattern) if self.entries is None else "single entries"
        return f"<{ALIAS}'s attention mask: {kind}, {tuple(self.shape)}>"

    # What keeps the meaning.

    def to(self, *args: Any, device: Any = None, **kwargs: Any) -> "Mask":
        """For attention on another device; a dtype changes nothing."""
        for x in args:
            device = (
                x.device if isinstance(x, torch.Tensor) else x if isinstance(x, (str, int, torch.device)) else device
            )
        if device is None:
            return self
        entries = None if self.entries is None else self.entries.to(device)
        values = None if self.values is None else (lambda: self._calculated().to(device))
        return self._with(device=torch.device(device), entries=entries, values=values)

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
            return self._entries("Tensor.__getitem__")[index]
        (b0, b1), (h0, h1), (q0, q1), (k0, k1) = (x.indices(n)[:2] for x, n in zip(index, self.shape))
        if h1 - h0 != 1 or k0 != 0 or min(b1 - b0, q1 - q0, k1) < 1:
            return self._entries("Tensor.__getitem__")[index]
        cut = dict(batch=b1 - b0, seqlen_q=q1 - q0, seqlen_k=k1, first=self.first + q0)
        cut["values"] = None if self.values is None else (lambda: self._calculated()[index])
        if self.keys is not None:
            cut["keys"] = self.keys[b0:b1, :k1]
        if self.pattern.sequences is not None:
            cut["pattern"] = self.pattern._replace(sequences=self.pattern.sequences[b0:b1, :k1])
        if self.entries is not None:
            batch, _, queries, _ = self.entries.shape
            rows = slice(b0, b1) if batch > 1 else slice(None)
            cut["entries"] = self.entries[rows, :, slice(q0, q1) if queries > 1 else slice(None), :k1]
        return self._with(**cut)

    def repeat(self, *sizes: Any) -> torch.Tensor:
        """Numbers, bool with True for what is seen, as Transformers makes them for PyTorch: some pooling heads, which
        attend by themselves and never drop, ask for them like this."""
        if any(x is not None for x in (*self.pattern, self.entries)):
            raise misused("Tensor.repeat")
        keys = torch.ones((self.batch, self.seqlen_k), dtype=torch.bool) if self.keys is None else self.keys
        return keys.to(self.device)[:, None, None].expand(self.shape).repeat(*sizes)

    # What calculates with it: entry by entry, or not at all.

    @uncompiled
    def _calculated(self) -> torch.Tensor:
        """bool (batch, 1, seqlen_q, seqlen_k), made once for all layers."""
        if self._made is None:
            self._made = self.values().to(torch.bool).expand(self.shape)
        return self._made

    @uncompiled
    def _entries(self, what: str) -> Entries:
        if self.values is None:
            raise misused(what)
        tell(what, self.shape)
        return Entries.of(self._calculated())

    def __getattr__(self, name: str) -> Any:
        if is_answered(name):
            return getattr(self._entries(f"Tensor.{name}"), name)
        raise misused(f"Tensor.{name}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        what = torch.overrides.resolve_name(function) or getattr(function, "__name__", str(function))
        if not is_answered(getattr(function, "__name__", "")):
            raise misused(what)

        def made(x):
            if isinstance(x, (list, tuple)) and any(isinstance(y, Mask) for y in x):
                return [made(y) for y in x]
            return x._entries(what) if isinstance(x, Mask) else x

        return function(*map(made, args), **{name: made(x) for name, x in (kwargs or {}).items()})


def window_of(seen: Any) -> str:
    """In words, of something that has a left and a right side."""
    if seen.left is None:
        return "full attention" if seen.right is None else "causal attention" if seen.right == 0 else "a window"
    return f"a window of {seen.left} keys before and {'all' if seen.right is None else seen.right} behind a query"


def _calculating(name: str) -> Any:
    def method(self: Mask, *args: Any) -> Any:
        if not is_answered(name):
            raise misused(f"Tensor.{name}")
        args = [x._entries(f"Tensor.{name}") if isinstance(x, Mask) else x for x in args]
        return getattr(self._entries(f"Tensor.{name}"), name)(*args)

    return method


_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
for _name in [f"__{side}{x}__" for x in _OPERATORS for side in ("", "r", "i")] + [
    f"__{x}__" for x in "eq ne lt le gt ge bool len iter contains float int index neg pos invert abs setitem".split()
]:
    setattr(Mask, _name, _calculating(_name))
Mask.__hash__ = object.__hash__
