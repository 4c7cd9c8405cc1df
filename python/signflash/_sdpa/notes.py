"""What became of each call: told to who asked (:func:`signflash.explain`), and once a reason to the log."""

from __future__ import annotations

import logging
import threading

_logger = logging.getLogger("signflash")
_told = set()
_lock = threading.Lock()

#: Those who want to know of every call.
listeners = []


def taken(call, seen) -> None:
    for listener in listeners:
        listener.note(call, None, seen)


def left(call, reason) -> None:
    """A call stays with PyTorch."""
    for listener in listeners:
        listener.note(call, reason, None)
    if reason.silent or reason.text in _told:
        return
    with _lock:
        if reason.text in _told:
            return
        _told.add(reason.text)
    _logger.warning(
        "scaled_dot_product_attention with dropout_p=%s stays with PyTorch, which stores all probabilities: %s "
        "(query %s; told once; signflash.explain tells of each call)",
        call.dropout_p,
        reason.text,
        tuple(call.query.shape),
    )


def forget() -> None:
    """What was told is told again."""
    with _lock:
        _told.clear()
