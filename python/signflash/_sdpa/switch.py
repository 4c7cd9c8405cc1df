"""On and off, for the whole process: by :func:`signflash.enable`, or while a block of :func:`signflash.enabled` runs."""

from __future__ import annotations

import contextlib
import threading

from . import compiled, flash, override

_lock = threading.RLock()


class _State:
    """Whether ours is asked for, and what is registered for it."""

    def __init__(self) -> None:
        self.is_enabled = False
        #: Blocks of ``enabled()`` that run now, in any thread.
        self.blocks = 0
        self.registered = None


_state = _State()


def enable() -> None:
    compiled.refuse_while_compiling()
    with _lock:
        _state.is_enabled = True
        _settle()


def disable() -> None:
    compiled.refuse_while_compiling()
    with _lock:
        if _state.blocks:
            raise RuntimeError(
                "signflash.disable() was called while a block of signflash.enabled() runs; leave the block"
            )
        _state.is_enabled = False
        _settle()


@contextlib.contextmanager
def block():
    """On while it runs."""
    compiled.refuse_while_compiling()
    with _lock:
        _state.blocks += 1
        _settle()
    try:
        yield
    finally:
        with _lock:
            _state.blocks -= 1
            _settle()


def is_on() -> bool:
    return _state.registered is not None


def _settle() -> None:
    """Registers, or takes back, what the state asks for."""
    wanted = _state.is_enabled or _state.blocks > 0
    if wanted == is_on():
        return
    if wanted:
        _state.registered = override.Registered()
        flash.activate()
    else:
        flash.restore()
        _state.registered.remove()
        _state.registered = None
    compiled.switch(wanted)
