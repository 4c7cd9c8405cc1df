"""One random state for all ranks: a dropout mask is that of one device only if all draw from the same."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
import torch.distributed as dist

from .. import _random
from .._random import Generator
from .._settings import U64, check_u64, signed
from .._torch import replay

#: Of each process group, a generator that all its ranks have alike.
_agreed: Dict[Any, Generator] = {}


def manual_seed(seed: int, group: Any = None) -> Generator:
    """Seeds the generator from which calls of a process group draw that are given no seed; call it on every rank, with the
    same seed. Nothing is sent.
    """
    generator = Generator(seed)
    _agreed[_key(group)] = generator
    return generator


def _key(group):
    return dist.group.WORLD if group is None else group


def drawn(q, group, seed: Optional[int], offset: Optional[int], generator, heads: Tuple[int, int], dropout_p: float):
    """(seed, offset) of a call: as given, or from a generator that all ranks have alike, which then goes on.

    ``heads`` are batch and query heads of all ranks together, by which a generator advances.
    """
    if seed is None and offset is not None:
        raise ValueError(f"offset was given as {offset} without seed; give both, or neither")
    if dropout_p == 0.0:
        state = (0, 0)
    elif seed is not None:
        state = check_u64("seed", seed), check_u64("offset", 0 if offset is None else offset)
    else:
        own = generator if generator is not None else _random.scoped()
        if own is None:
            own = _of_group(q, group)
        if not isinstance(own, Generator):
            raise TypeError(
                f"generator must be a signflash.Generator, which every rank has alike, got {type(own).__name__}; or give a seed"
            )
        state = own.next(*heads)
    if replay.may_be_checkpointed():
        replay.watch(*state, dropout_p)
    return state


def _of_group(q, group) -> Generator:
    """That of the group; when it is first asked for, rank 0 says what it begins with: what ``torch.manual_seed`` was given
    there.
    """
    key = _key(group)
    found = _agreed.get(key)
    if found is None:
        told = torch.tensor([signed(torch.initial_seed() & U64)], dtype=torch.int64, device=q.device)
        root = 0 if group is None else dist.get_global_rank(group, 0)
        dist.broadcast(told, root, group)
        found = _agreed[key] = Generator(int(told))
    return found
