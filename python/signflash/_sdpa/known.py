"""What was found out about a tensor's numbers, while it lives and nobody has written it."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict

#: Of so many tensors, the latest: a model has one mask, or one a kind of layer.
_MOST = 8


class Known:
    """Remembers ``find(tensor, *arguments)``.

    A tensor is known again by its memory, by how it lies there and by PyTorch's count of writes (``_version``), not by
    the object, which views of a layer make anew. Memory that somebody else can write without being counted (NumPy,
    DLPack, other processes) and tensors without a count (of inference_mode) are looked at every time.
    """

    def __init__(self, find: Callable) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._found: Dict[Any, Any] = {}

    def __call__(self, x, *arguments):
        key = _key_of(x)
        if key is None:
            return self._find(x, *arguments)
        key = (*key, *arguments)
        with self._lock:
            weak, found = self._found.get(key, (None, None))
        if weak is not None:
            return found
        found = self._find(x, *arguments)
        self._remember(key, _weak(x), found)
        return found

    def _remember(self, key, weak, found) -> None:
        with self._lock:
            # A storage's address is not given away again while a weak reference to it is kept.
            alive = {k: v for k, v in self._found.items() if not v[0].expired()}
            while len(alive) >= _MOST:
                del alive[next(iter(alive))]
            alive[key] = (weak, found)
            self._found = alive


def _key_of(x):
    if not hasattr(x, "untyped_storage") or x.is_inference():
        return None
    storage = x.untyped_storage()
    if not storage.resizable() or storage.is_shared():
        return None
    return storage._cdata, x._version, x.storage_offset(), x.shape, x.stride(), x.dtype


def _weak(x):
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(x.untyped_storage())
