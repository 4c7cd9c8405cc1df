"""What scores are made of besides q and k: alibi_slopes, bias, mask and sinks, whose shapes are judged by name."""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple

#: In the order in which they go through all functions.
NAMES = ("alibi_slopes", "bias", "mask", "sinks")
FLOATS = ("float32", "float16", "bfloat16")
#: Of each, the dtypes that it can have, and what to do about another.
DTYPES = {
    "alibi_slopes": (("float32",), "convert it"),
    "bias": (FLOATS, "convert it, or give a bool tensor that is True where a query sees a key as mask"),
    "mask": (("bool",), "it is True where a query sees a key; convert it, or give numbers that are added to scores as bias"),
    "sinks": (FLOATS, "convert them"),
}
ENTRIES = "(1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k)"
PACKED_ENTRIES = "(1 or sequences, 1 or num_heads, 1 or the most queries of any, the most keys of any)"


class Sizes(NamedTuple):
    """Of a call."""

    sequences: Any
    num_heads: Any
    #: None of packed sequences, of which only the native half knows the longest.
    seqlen_q: Any = None
    seqlen_k: Any = None


def check_dtype(name: str, dtype: str) -> None:
    dtypes, remedy = DTYPES[name]
    if dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(dtypes)}, got {dtype}; {remedy}")


def check_slopes(shape: Tuple, sizes: Sizes) -> None:
    count, num_heads = sizes[:2]
    if not (len(shape) == 1 and shape[0] == num_heads or len(shape) == 2 and tuple(shape) == (count, num_heads)):
        raise ValueError(
            f"alibi_slopes must be (num_heads) or (batch or sequences, num_heads), here ({num_heads},) or ({count}, "
            f"{num_heads}), got shape {tuple(shape)}"
        )


def check_sinks(shape: Tuple, sizes: Sizes) -> None:
    if len(shape) != 1 or shape[0] != sizes.num_heads:
        raise ValueError(f"sinks must be (num_heads), here ({sizes.num_heads},), got shape {tuple(shape)}")


def check_entries(name: str, shape: Tuple, sizes: Sizes) -> None:
    """Of a bias or a mask: that it broadcasts to all scores as PyTorch and NumPy broadcast."""
    meaning = PACKED_ENTRIES if sizes.seqlen_k is None else ENTRIES
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"{name} must have 1 to 4 dimensions, the last of {meaning}, got shape {tuple(shape)}")
    for dim, expected, what in zip(range(-4, 0), sizes, ("sequences", "num_heads", "seqlen_q", "seqlen_k")):
        if dim < -len(shape) or expected is None or shape[dim] == expected or shape[dim] == 1:
            continue
        raise ValueError(
            f"{name} must be {meaning} or the last of these, got shape {tuple(shape)}: its dimension {dim} is {shape[dim]}, "
            f"expected {expected} ({what}) or 1"
        )
