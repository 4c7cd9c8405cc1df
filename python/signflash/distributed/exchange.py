"""What ranks send each other, asynchronously: as bytes, so that every backend takes every dtype."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence

import torch
import torch.distributed as dist

from .copies import Copies, Message, step_of


class Comm(NamedTuple):
    """A process group as one rank of it sees it, and the name of the call for errors."""

    group: Any
    rank: int
    size: int
    name: str

    @classmethod
    def of(cls, group, name: str) -> "Comm":
        return cls(group, dist.get_rank(group), dist.get_world_size(group), name)

    def peer(self, rank: int) -> int:
        """The number of a rank of the group among all processes."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def exchange(self, what: "Parcel") -> "Pending":
        """Sends to one rank while another one's is received."""
        doing = f"{what.doing} to rank {what.to} and from rank {what.source}"
        largest_bytes = _bytes_of((_longest(x.shape, what.longest), x) for x in what.sent)
        copies = self._copies(what.sent[0], largest_bytes, shared=True)
        got = [torch.empty(shape, dtype=x.dtype, device=x.device) for x, shape in zip(what.sent, what.shapes)]
        if copies is None:
            works = self._sent_one_by_one(what, got, doing)
        else:
            parts, rooms = [[None] * self.size for _ in range(2)]
            parts[what.to], rooms[what.source] = what.sent, got
            with self.named(doing):
                works = [copies.send(Message(parts, rooms, largest_bytes, shared=True))]
        return Pending(self, works, got, what.sent, doing)

    def _sent_one_by_one(self, what: "Parcel", got, doing: str):
        operations = []
        for tag, x in enumerate(what.sent):
            if x.numel():
                operations.append(dist.P2POp(dist.isend, _bytes(x), self.peer(what.to), self.group, what.tag + tag))
        for tag, x in enumerate(got):
            if x.numel():
                operations.append(dist.P2POp(dist.irecv, _bytes(x), self.peer(what.source), self.group, what.tag + tag))
        with self.named(doing):
            return dist.batch_isend_irecv(operations) if operations else []

    def all_to_all(self, what: "Parts") -> "Pending":
        """Of each of some tensors one part to each rank, and parts from each: tensor by tensor, rank by rank. On all ranks alike."""
        largest_bytes = max(
            _bytes_of((_longest(of[rank].shape, rows), of[rank]) for of, rows in zip(what.sent, what.longest))
            for rank in range(self.size)
        )
        copies = self._copies(what.sent[0][0], largest_bytes, shared=False)
        if copies is None:
            return self._sent_to_all(what)
        got = [_room_of([(shape, of[0]) for shape in shapes]) for of, shapes in zip(what.sent, what.shapes)]
        for of, into in zip(what.sent, got):
            into[self.rank].copy_(of[self.rank])
        parts, rooms = list(zip(*what.sent)), list(zip(*got))
        with self.named(what.doing):
            return Pending(self, [copies.send(Message(parts, rooms, largest_bytes))], got, parts, what.doing)

    def _sent_to_all(self, what: "Parts") -> "Pending":
        numbers = range(len(what.sent))
        works, got, kept = [], [None] * len(what.sent), []
        for group in [list(numbers)] if what.together else [[number] for number in numbers]:
            of_ranks = [[what.sent[number][rank] for number in group] for rank in range(self.size)]
            flat, in_splits, places = _packed([[(x.shape, x) for x in parts] for parts in of_ranks])
            for place, x in zip(places, (x for parts in of_ranks for x in parts)):
                place.copy_(x)
            expected = [
                [(what.shapes[number][rank], what.sent[number][0]) for number in group] for rank in range(self.size)
            ]
            room, out_splits, places = _packed(expected)
            with self.named(what.doing):
                works.append(dist.all_to_all_single(room, flat, out_splits, in_splits, self.group, async_op=True))
            for at, number in enumerate(group):
                got[number] = places[at :: len(group)]
            kept += [flat, room]
        return Pending(self, works, got, kept, what.doing)

    def all_gather(self, tensors: Sequence, shapes: Sequence[Sequence], doing: str) -> "Pending":
        """Of each of some tensors that of every rank, whose shapes may differ: tensor by tensor, rank by rank."""
        largest_bytes = max(_bytes_of(zip(of_rank, tensors)) for of_rank in zip(*shapes))
        copies = self._copies(tensors[0], largest_bytes, shared=True)
        if copies is None:
            return self._gathered(tensors, shapes, doing)
        got = [_room_of([(shape, x) for shape in of]) for x, of in zip(tensors, shapes)]
        for x, into in zip(tensors, got):
            into[self.rank].copy_(x)
        with self.named(doing):
            work = copies.send(Message([tensors] * self.size, list(zip(*got)), largest_bytes, shared=True))
        return Pending(self, [work], got, tensors, doing)

    def _gathered(self, tensors: Sequence, shapes: Sequence[Sequence], doing: str) -> "Pending":
        """The shorter ones are padded on their way."""
        works, got, kept = [], [], []
        for x, of in zip(tensors, shapes):
            longest, flat = max(_count(shape) for shape in of), x.reshape(-1)
            if flat.numel() < longest:
                flat = torch.cat([flat, flat.new_zeros(longest - flat.numel())])
            flat = flat.contiguous()
            room = torch.empty(longest * self.size, dtype=x.dtype, device=x.device)
            if longest:
                with self.named(doing):
                    works.append(dist.all_gather_into_tensor(_bytes(room), _bytes(flat), self.group, async_op=True))
            got.append([room.narrow(0, r * longest, _count(shape)).view(shape) for r, shape in enumerate(of)])
            kept += [flat, room]
        return Pending(self, works, got, kept, doing)

    def _copies(self, like, largest_bytes: int, shared: bool):
        """Who sends a message by copy engines; None where the group's backend does."""
        return Copies.of(self.group, like.device, largest_bytes, shared)

    def named(self, doing: str) -> "_Named":
        return _Named(f"{self.name}, {doing}")


class Parcel(NamedTuple):
    """Tensors on their way along a ring: to whom, what comes from whom and of which shapes, and why."""

    sent: Sequence
    to: int
    source: int
    shapes: Sequence
    #: The most rows of positions that any rank sends.
    longest: int
    #: The first of as many tags as there are tensors.
    tag: int
    doing: str


class Parts(NamedTuple):
    """What each rank sends each: tensor by tensor, rank by rank."""

    sent: Sequence[Sequence]
    #: Of what comes.
    shapes: Sequence[Sequence]
    #: Of each tensor, the most rows of positions that one rank sends another.
    longest: Sequence[int]
    doing: str
    #: In one message of the backend's, which takes the host less time; each tensor in one of its own, its parts come to lie one
    #: behind the other, as they do where GPUs copy them.
    together: bool = True


class Pending:
    """What is on its way. Tensors that are sent are kept until it has arrived."""

    def __init__(self, comm: Comm, works, got: List, kept, doing: str) -> None:
        self._comm, self._works, self._got, self._kept, self._doing = comm, works, got, kept, doing

    def wait(self) -> List:
        """What was received. On a GPU the current stream waits, and not the host."""
        with self._comm.named(self._doing):
            for work in self._works:
                work.wait()
        self._kept = None
        return self._got


class _Named:
    """Gives what the backend raises the name of the call: it is a rank that died, or one that does something else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, RuntimeError):
            raise RuntimeError(
                f"{self._name} failed: a rank has ended, fell behind for longer than the group's timeout, or makes another "
                f"call (debug=True compares the calls of all ranks). {type(error).__name__}: {error}"
            ) from error


def _room_of(parts: Sequence):
    """Tensors of (shape, one of its dtype) that lie one behind the other, for which nothing is written yet."""
    sizes, like = [_count(shape) for shape, _ in parts], parts[0][1]
    room = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
    return [x.view(shape) for x, (shape, _) in zip(room.split(sizes), parts)]


def _packed(parts: Sequence[Sequence]):
    """Room for (shape, a tensor of its dtype) of each rank, one behind the other: a buffer of bytes, how many of them are
    each rank's, and the parts as tensors within it.
    """
    like = parts[0][0][1]
    sizes = [[_count(shape) * x.element_size() for shape, x in of_rank] for of_rank in parts]
    steps = [[step_of(size) for size in of_rank] for of_rank in sizes]
    room = torch.empty(sum(map(sum, steps)), dtype=torch.uint8, device=like.device)
    places, at = [], 0
    for of_rank, sizes_of, steps_of in zip(parts, sizes, steps):
        for (shape, x), size, step in zip(of_rank, sizes_of, steps_of):
            places.append(room[at : at + size].view(x.dtype).view(shape))
            at += step
    return room, [sum(of_rank) for of_rank in steps], places


def _bytes_of(parts) -> int:
    """Of tensors of these shapes and dtypes, as :func:`_packed` lays them."""
    return sum(step_of(_count(shape) * x.element_size()) for shape, x in parts)


def _longest(shape, rows: int):
    """(..., rows, heads, head_dim) with so many rows."""
    return (*shape[:-3], rows, *shape[-2:])


def _bytes(x):
    return x.view(-1).view(torch.uint8)


def _count(shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
