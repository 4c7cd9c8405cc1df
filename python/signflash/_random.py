"""The random state of dropout: a seed, and an offset that advances so that no two calls share a dropout mask."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from contextvars import ContextVar
from typing import Iterator, Optional, Tuple

from ._settings import U64, check_u64

LANES = 32  # counters that one (batch, head) uses, as in FlashAttention-2


class Generator:
    """Hands out (seed, offset) to call after call, on any device.

    The offset advances by ``batch * num_heads * 32`` a call, as FlashAttention-2's does.

    >>> import signflash
    >>> generator = signflash.Generator(42)
    >>> generator.next(batch=2, num_heads=4), generator.next(batch=2, num_heads=4)
    ((42, 0), (42, 256))
    """

    def __init__(self, seed: int, offset: int = 0) -> None:
        self._lock = threading.Lock()
        _generators.add(self)
        self._seed = check_u64("seed", seed)
        self._offset = check_u64("offset", offset)

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def offset(self) -> int:
        return self._offset

    def get_state(self) -> Tuple[int, int]:
        """(seed, offset): all there is to save."""
        with self._lock:
            return self._seed, self._offset

    def set_state(self, state: Tuple[int, int]) -> None:
        """Goes on where ``state`` was saved."""
        seed, offset = state
        with self._lock:
            self._seed, self._offset = check_u64("seed", seed), check_u64("offset", offset)

    def next(self, batch: int, num_heads: int) -> Tuple[int, int]:
        """The (seed, offset) of the next call on so many batches and query heads."""
        with self._lock:
            drawn = self._seed, self._offset
            self._offset = (self._offset + batch * num_heads * LANES) & U64
            return drawn

    def __reduce__(self):
        return Generator, self.get_state()  # copies and pickles go on from here, each on its own

    def __repr__(self) -> str:
        return f"signflash.Generator(seed={self._seed}, offset={self._offset})"


_generators: "weakref.WeakSet[Generator]" = weakref.WeakSet()
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


def _begin_child() -> None:
    """A forked process has dropout masks of its own on arrays: the n-th child's follow from the parent's seed and n."""
    for generator in _generators:  # another thread of the parent's may have held it
        generator._lock = threading.Lock()
    state = repr((*_arrays.get_state(), _forks)).encode()
    _arrays.set_state((int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little"), 0))


_scoped: ContextVar[Optional[Generator]] = ContextVar("signflash_random_state", default=None)
_arrays = Generator(int.from_bytes(os.urandom(8), "little"))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork, after_in_child=_begin_child)


@contextlib.contextmanager
def random_state(seed: int, offset: int = 0) -> Iterator[Generator]:
    """Within it, calls that are given neither seed nor generator draw from (seed, offset) on.

    PyTorch's generators are then neither read nor advanced. Threads that start within it do not see it (it is a
    ``contextvars`` variable): run their work in ``contextvars.copy_context()``.

    >>> import signflash
    >>> with signflash.random_state(42) as generator:
    ...     pass  # calls of signflash.attention
    """
    generator = Generator(seed, offset)
    token = _scoped.set(generator)
    try:
        yield generator
    finally:
        _scoped.reset(token)


def manual_seed(seed: int) -> Generator:
    """Seeds the generator that calls on NumPy and DLPack arrays draw from; PyTorch tensors use PyTorch's generators.

    It starts with a seed of the operating system's. A forked process goes on with a seed of its own, which follows
    from this one and the number of the fork.
    """
    _arrays.set_state((seed, 0))
    return _arrays


#: The generator of the innermost :func:`random_state`, or None.
scoped = _scoped.get


def of_arrays() -> Generator:
    return _arrays
