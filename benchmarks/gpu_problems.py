"""What gpu.py measures: problems, lengths and probabilities."""

import dataclasses
import itertools

TOKENS, WIDTH = 16384, 2048
LENGTHS, HEAD_DIMS = (2048, 8192, 16384), (128, 64)
# Also measured, at fewer lengths.
LARGE_HEAD_DIM, LARGE_LENGTHS = 256, (2048, 8192)
SHORT_LENGTHS, SHORT_BATCH, SHORT_HEADS, SHORT_CALLS = (128, 256, 512, 1024), 4, 16, 20
README_LENGTH = F16_LENGTH = 8192
WARM_UP, REPS = 5, 20
DROPOUT = 0.1
CUDNN_DROPOUT = 0.125
# About 2 ms, longer than PyTorch's host code takes for SHORT_CALLS calls.
HOLD_CYCLES = 4_000_000

# (head_dim, seqlen, causal): TFLOP/s of FlashAttention-3 and of cuDNN, both measured on an H200, bf16, p = 0.
FA3_AND_CUDNN = {
    "fwd": {
        (128, 2048, False): (698, 659),
        (128, 2048, True): (614, 521),
        (128, 8192, False): (740, 681),
        (128, 8192, True): (729, 612),
        (128, 16384, False): (697, 634),
        (128, 16384, True): (722, 633),
        (64, 2048, False): (500, 470),
        (64, 2048, True): (434, 400),
        (64, 8192, False): (580, 492),
        (64, 8192, True): (549, 461),
        (64, 16384, False): (527, 463),
        (64, 16384, True): (518, 472),
    },
    "bwd": {
        (128, 2048, False): (572, 525),
        (128, 2048, True): (482, 416),
        (128, 8192, False): (587, 531),
        (128, 8192, True): (566, 523),
        (128, 16384, False): (608, 539),
        (128, 16384, True): (594, 555),
        (64, 2048, False): (500, 432),
        (64, 2048, True): (424, 331),
        (64, 8192, False): (512, 440),
        (64, 8192, True): (511, 423),
        (64, 16384, False): (524, 448),
        (64, 16384, True): (537, 427),
    },
}
# Of the backward, ours in one order of additions is timed as well.
DETERMINISTIC_LENGTHS = (2048, 8192)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A problem, and how many calls a measurement makes."""

    dtype: str
    batch: int
    heads: int
    head_dim: int
    seqlen: int
    causal: bool
    dropout_p: float
    calls: int = 1

    def flops(self, direction):
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim / (2 if self.causal else 1)
        return forward * (2.5 if direction == "bwd" else 1.0)

    def tflops(self, direction, ms):
        return None if ms is None else self.flops(direction) / ms / 1e9


def long_cell(dtype, head_dim, seqlen, causal, p):
    return Cell(dtype, TOKENS // seqlen, WIDTH // head_dim, head_dim, seqlen, causal, p)


def plan(quick):
    """Cells and their passes. Short ones come first: a binary without --calls is found out at once."""
    lengths, short = ((2048, 8192), (256, 1024)) if quick else (LENGTHS, SHORT_LENGTHS)
    masks = (False, True)
    for head_dim, seqlen, causal, p in itertools.product(HEAD_DIMS, short, masks, (0.0, DROPOUT)):
        yield Cell("bf16", SHORT_BATCH, SHORT_HEADS, head_dim, seqlen, causal, p, SHORT_CALLS), ("fwd",)
    long = [*itertools.product(HEAD_DIMS, lengths), *((LARGE_HEAD_DIM, seqlen) for seqlen in LARGE_LENGTHS)]
    for (head_dim, seqlen), causal, p in itertools.product(long, masks, (0.0, DROPOUT, CUDNN_DROPOUT)):
        yield long_cell("bf16", head_dim, seqlen, causal, p), ("fwd", "bwd")
    for head_dim, causal, p in itertools.product(HEAD_DIMS, masks, (0.0, DROPOUT)):
        yield long_cell("f16", head_dim, F16_LENGTH, causal, p), ("fwd",)
