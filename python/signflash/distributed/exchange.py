"""What ranks send each other, asynchronously: as bytes, so that every backend takes every dtype."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence

import torch
import torch.distributed as dist


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
        operations, got = (
            [],
            [torch.empty(shape, dtype=x.dtype, device=x.device) for x, shape in zip(what.sent, what.shapes)],
        )
        for tag, x in enumerate(what.sent):
            if x.numel():
                operations.append(dist.P2POp(dist.isend, _bytes(x), self.peer(what.to), self.group, what.tag + tag))
        for tag, x in enumerate(got):
            if x.numel():
                operations.append(dist.P2POp(dist.irecv, _bytes(x), self.peer(what.source), self.group, what.tag + tag))
        doing = f"{what.doing} to rank {what.to} and from rank {what.source}"
        with self.named(doing):
            works = dist.batch_isend_irecv(operations) if operations else []
        return Pending(self, works, got, what.sent, doing)

    def all_to_all(self, sent: Sequence[Sequence], shapes: Sequence[Sequence], doing: str, together=True) -> "Pending":
        """Of each of some tensors one part to each rank, and parts of these shapes from each: tensor by tensor, rank by rank.

        In one message ``together``, which takes the host less time; each in one of its own, parts of one tensor come to lie one
        behind the other. On all ranks alike.
        """
        numbers = range(len(sent))
        groups = [list(numbers)] if together else [[number] for number in numbers]
        works, got, kept = [], [None] * len(sent), []
        for group in groups:
            of_ranks = [[sent[number][rank] for number in group] for rank in range(self.size)]
            flat, in_splits, places = _packed([[(x.shape, x) for x in parts] for parts in of_ranks])
            for place, x in zip(places, (x for parts in of_ranks for x in parts)):
                place.copy_(x)
            expected = [[(shapes[number][rank], sent[number][0]) for number in group] for rank in range(self.size)]
            room, out_splits, places = _packed(expected)
            with self.named(doing):
                works.append(dist.all_to_all_single(room, flat, out_splits, in_splits, self.group, async_op=True))
            for at, number in enumerate(group):
                got[number] = places[at :: len(group)]
            kept += [flat, room]
        return Pending(self, works, got, kept, doing)

    def all_gather(self, x, shapes: Sequence, doing: str) -> "Pending":
        """The tensor of every rank, whose shapes may differ: the shorter ones are padded on their way."""
        longest = max(_count(shape) for shape in shapes)
        flat = x.reshape(-1)
        if flat.numel() < longest:
            flat = torch.cat([flat, flat.new_zeros(longest - flat.numel())])
        flat = flat.contiguous()
        room = torch.empty(longest * self.size, dtype=x.dtype, device=x.device)
        with self.named(doing):
            work = (
                dist.all_gather_into_tensor(_bytes(room), _bytes(flat), self.group, async_op=True) if longest else None
            )
        parts = [room.narrow(0, r * longest, _count(shape)).view(shape) for r, shape in enumerate(shapes)]
        return Pending(self, [work] if work else [], parts, [flat, room], doing)

    def named(self, doing: str) -> "_Named":
        return _Named(f"{self.name}, {doing}")


class Parcel(NamedTuple):
    """Tensors on their way along a ring: to whom, what comes from whom and of which shapes, and why."""

    sent: Sequence
    to: int
    source: int
    shapes: Sequence
    #: The first of as many tags as there are tensors.
    tag: int
    doing: str


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


#: Where parts of a buffer begin: at multiples of so many bytes.
_ALIGNED = 16


def _packed(parts: Sequence[Sequence]):
    """Room for (shape, a tensor of its dtype) of each rank, one behind the other: a buffer of bytes, how many of them are
    each rank's, and the parts as tensors within it.
    """
    like = parts[0][0][1]
    sizes = [[_count(shape) * x.element_size() for shape, x in of_rank] for of_rank in parts]
    steps = [[-(-size // _ALIGNED) * _ALIGNED for size in of_rank] for of_rank in sizes]
    room = torch.empty(sum(map(sum, steps)), dtype=torch.uint8, device=like.device)
    places, at = [], 0
    for of_rank, sizes_of, steps_of in zip(parts, sizes, steps):
        for (shape, x), size, step in zip(of_rank, sizes_of, steps_of):
            places.append(room[at : at + size].view(x.dtype).view(shape))
            at += step
    return room, [sum(of_rank) for of_rank in steps], places


def _bytes(x):
    return x.view(-1).view(torch.uint8)


def _count(shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
