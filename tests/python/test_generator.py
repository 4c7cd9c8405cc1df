"""CUDA generators as PyTorch keeps them, without a GPU: what is read and written is a seed and an offset."""

import pytest

torch = pytest.importorskip("torch")

from signflash._torch import random


class Counting:
    """A CUDA generator of PyTorch 2.1 and later."""

    def __init__(self, seed, offset):
        self.seed, self.offset = seed, offset

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        assert offset % 4 == 0, "PyTorch refuses other offsets"
        self.offset = offset


class Bytes:
    """One of before: its state ends with seed and offset."""

    def __init__(self, seed, offset, before=0):
        numbers = torch.tensor([seed, offset], dtype=torch.int64).view(torch.uint8)
        self.state = torch.cat([torch.zeros(before, dtype=torch.uint8), numbers])

    def get_state(self):
        return self.state.clone()

    def set_state(self, state):
        assert state.shape == self.state.shape and state.dtype == torch.uint8
        self.state = state


@pytest.mark.parametrize("make", [Counting, Bytes, lambda *a: Bytes(*a, before=800)], ids=["2.1", "2.0", "1.13"])
def test_generators_are_read_and_advanced(make):
    generator = make(42, 8)
    advance = random._advance_by_offset if hasattr(generator, "set_offset") else random._advance_by_state
    assert advance(generator, 256) == (42, 8)
    assert advance(generator, 256) == (42, 264)
    assert advance(make(-1, 0), 4) == (2**64 - 1, 0)
