"""Messages between GPUs of one host by their copy engines, which take no multiprocessor from the kernels beside them.

A rank writes what it sends to memory that its peers have mapped, and says so; they copy their part from there, each into
memory of its own, and say that they have. PyTorch's symmetric memory maps it, and its signals, kernels of one warp, say it.
NCCL's kernels hold multiprocessors while they send, and send more slowly (benchmarks/distributed.md).

All ranks have to agree on whether this is used, for which message, and how large the mapped memory is: :meth:`Copies.of` asks
them once for each group and each growth, of which all know, since sizes are those of the largest part that any rank sends.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_log = logging.getLogger("signflash.distributed")
#: Set to 0 where NCCL is to send everything: one rank is enough.
VARIABLE = "SIGNFLASH_DISTRIBUTED_COPIES"
#: Messages of a rank that others may not have copied yet: while one is copied the next is written.
_SLOTS = 2
#: From this version of PyTorch on: where symmetric memory was tried.
_LEAST_TORCH = (2, 11)
_DEVICES, _BACKENDS = ("cuda",), ("nccl",)
#: Mapped memory is a multiple of this, so that it seldom grows.
_GROWS_BY_BYTES = 16 << 20
#: Where parts of a message begin.
_ALIGNED_BYTES = 16


class Message(NamedTuple):
    """What a rank sends to others at once, and what it receives."""

    #: For each rank the tensors that it is sent, or None.
    parts: Sequence[Optional[Sequence]]
    #: For each rank where the tensors are to be that it sends, or None.
    rooms: Sequence[Optional[Sequence]]
    #: Of the largest part that any rank sends another one.
    largest_bytes: int
    #: Whether parts are the same for all that have one.
    shared: bool = False


class Copies:
    """What one rank of a group knows of the memory that its peers have mapped."""

    _known: "WeakKeyDictionary" = WeakKeyDictionary()

    def __init__(self, group, device) -> None:
        self._device = device
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._beside = Beside(device)
        self._timeout_ms = _timeout_ms(group, device)
        #: Of one slot.
        self._room_bytes, self._number = 0, 0
        self._handle: Any = None
        self._own: Any = None
        self._peers: List[Any] = []
        #: Of each slot, who has yet to say that it has copied what it was sent.
        self._readers: List[List[int]] = [[] for _ in range(_SLOTS)]

    @classmethod
    def of(cls, group, device, part_bytes: int, shared: bool) -> Optional["Copies"]:
        """For messages whose largest part has so many bytes; None where the group's backend sends them.

        The first time, and when the mapped memory has to grow, all ranks are asked, and all of them have to call it.
        """
        if device.type not in _DEVICES or part_bytes == 0:
            return None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # a replay would not know which slot is free
        group = dist.group.WORLD if group is None else group
        known: Dict[Any, Optional[Copies]] = cls._known.setdefault(group, {})
        if device not in known:
            known[device] = cls._agreed(group, device)
        copies = known[device]
        if copies is None:
            return None
        needed = step_of(part_bytes) * (1 if shared else copies._size)
        if needed > copies._room_bytes:
            reason = copies._grow(group, needed)
            if reason is not None:
                known[device] = None
                _log.warning(
                    "NCCL sends what ranks exchange from now on: %d bytes could not be mapped: %s", needed, reason
                )
        return known[device]

    @classmethod
    def _agreed(cls, group, device) -> Optional["Copies"]:
        if group._get_backend(device).name() not in _BACKENDS:
            return None
        reason = _reason_of_places(_all(_Place.of(device), group), device)
        reason = _first(_all(reason, group))
        if reason is None:
            copies = cls(group, device)
            reason = copies._grow(group, _GROWS_BY_BYTES) or copies._tried(group)
            if reason is None:
                return copies
        _log.info("NCCL sends what ranks exchange, and not the GPUs' copy engines: %s", reason)
        return None

    def send(self, message: Message) -> "Arriving":
        """Starts to, beside the current stream. Whoever sends keeps what is sent until it waits for what comes."""
        slot = self._number % _SLOTS
        self._number += 1
        others = [rank for rank in range(self._size) if rank != self._rank]
        step = 0 if message.shared else step_of(message.largest_bytes)
        with self._beside.after_current():
            self._wait_for_readers(slot)
            self._readers[slot] = [rank for rank in others if message.parts[rank] is not None]
            self._write(slot, step, message)
            for rank in self._readers[slot]:
                self._handle.put_signal(rank, _written(slot), self._timeout_ms)
            for rank in others:
                if message.rooms[rank] is not None:
                    self._copy(slot, step, rank, message.rooms[rank])
            return self._beside.arriving()

    def _write(self, slot: int, step: int, message: Message) -> None:
        for rank in self._readers[slot][: 1 if message.shared else None]:
            for place, x in _placed(self._own, slot * self._room_bytes + rank * step, message.parts[rank]):
                place.copy_(x)

    def _copy(self, slot: int, step: int, rank: int, rooms: Sequence) -> None:
        """What a rank has written for this one."""
        self._handle.wait_signal(rank, _written(slot), self._timeout_ms)
        for place, x in _placed(self._peers[rank], slot * self._room_bytes + self._rank * step, rooms):
            x.copy_(place)
        self._handle.put_signal(rank, _read(slot), self._timeout_ms)

    def _wait_for_readers(self, slot: int) -> None:
        for rank in self._readers[slot]:
            self._handle.wait_signal(rank, _read(slot), self._timeout_ms)
        self._readers[slot] = []

    def _grow(self, group, needed: int) -> Optional[str]:
        """Maps memory of so many bytes a slot; for all ranks the same reason why it cannot be had."""
        with self._beside.after_current():
            for slot in range(_SLOTS):
                self._wait_for_readers(slot)
        self._beside.synchronize()
        self._room_bytes, self._handle, self._own, self._peers = 0, None, None, []
        room_bytes = -(-needed // _GROWS_BY_BYTES) * _GROWS_BY_BYTES
        shape, own, reason = (_SLOTS * room_bytes,), None, None
        try:
            own = _symmetric().empty_strided_p2p(shape, (1,), torch.uint8, self._device)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        reason = _first(_all(reason, group))
        if reason is None:
            self._own, self._handle = own, _symmetric().rendezvous(own, group.group_name)
            self._peers = [self._handle.get_buffer(rank, shape, torch.uint8) for rank in range(self._size)]
            self._room_bytes = room_bytes
        return reason

    def _tried(self, group) -> Optional[str]:
        """Sends a message to each rank; for all ranks the same reason why it did not arrive as it was."""
        parts = [[torch.full((48,), 1 + self._rank, dtype=torch.uint8, device=self._device)] for _ in range(self._size)]
        rooms = [[torch.zeros_like(of[0])] for of in parts]
        for _ in range(2 * _SLOTS):
            self.send(Message(parts, rooms, 48)).wait()
        wrong = [rank for rank, (x,) in enumerate(rooms) if rank != self._rank and int(x.min()) != 1 + rank]
        return _first(_all(f"a trial message of ranks {wrong} did not arrive as it was" if wrong else None, group))


class Beside:
    """A stream beside the current one."""

    def __init__(self, device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device, priority=-1)

    def after_current(self):
        """What is done within this is done there, when all is done that the current stream was given."""
        self._stream.wait_event(torch.cuda.current_stream(self._device).record_event())
        return torch.cuda.stream(self._stream)

    def arriving(self) -> "Arriving":
        return Arriving(self._device, self._stream.record_event())

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


class Arriving(NamedTuple):
    """Copies that were started."""

    device: Any
    copied: Any

    def wait(self) -> None:
        """The current stream waits, and not the host."""
        torch.cuda.current_stream(self.device).wait_event(self.copied)


class _Place(NamedTuple):
    """Where a rank is, and why it cannot take part."""

    host: str
    #: The number of its GPU.
    index: int
    reason: Optional[str]

    @classmethod
    def of(cls, device) -> "_Place":
        started = Path("/proc/sys/kernel/random/boot_id")
        host = f"{socket.gethostname()} {started.read_text().strip() if started.exists() else ''}"
        reason = None
        if os.environ.get(VARIABLE) == "0":
            reason = f"{VARIABLE} is 0"
        elif tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < _LEAST_TORCH:
            reason = f"PyTorch is older than {'.'.join(map(str, _LEAST_TORCH))}"
        else:
            try:
                backend = _symmetric().get_backend(device)
                reason = None if backend == "CUDA" else f"symmetric memory's backend is {backend}"
            except (ImportError, AttributeError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
        return cls(host, device.index, reason)


def _reason_of_places(every: Sequence[_Place], device) -> Optional[str]:
    reason = _first([place.reason for place in every])
    if reason is not None:
        return reason
    if len({place.host for place in every}) > 1:
        return "ranks are on several hosts"
    indices = [place.index for place in every]
    if len(set(indices)) < len(indices):
        return "ranks number their GPUs differently (CUDA_VISIBLE_DEVICES), or share one"
    for index in indices:
        if index != device.index and not (
            index < torch.cuda.device_count() and torch.cuda.can_device_access_peer(device.index, index)
        ):
            return f"GPU {device.index} does not reach the memory of GPU {index}"
    return None


def _all(mine: Any, group) -> List[Any]:
    """Of all ranks."""
    every: List[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, mine, group)
    return every


def _first(reasons: Sequence[Optional[str]]) -> Optional[str]:
    return next((f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None), None)


def _symmetric():
    from torch._C._distributed_c10d import _SymmetricMemory

    return _SymmetricMemory


def _timeout_ms(group, device) -> int:
    """The group's own."""
    try:
        return int(1e3 * group._get_backend(device).options._timeout.total_seconds())
    except (AttributeError, RuntimeError):
        return 600_000


def _placed(memory, at: int, tensors: Sequence):
    """(bytes of memory as a tensor of the same shape, tensor) of each that is not empty."""
    for x in tensors:
        size = x.numel() * x.element_size()
        if size:
            yield memory[at : at + size].view(x.dtype).view(x.shape), x
        at += step_of(size)


def step_of(size_bytes: int) -> int:
    """How far behind the beginning of a tensor of so many bytes the next one begins."""
    return -(-size_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _written(slot: int) -> int:
    """The channel on which a rank is told that its part is there."""
    return slot


def _read(slot: int) -> int:
    """The one on which a rank is told that a peer has copied its part."""
    return _SLOTS + slot
