"""What is to be computed, judged: everything that is not a tensor."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple, Optional, Sequence, Tuple

from . import _native

U64 = 0xFFFF_FFFF_FFFF_FFFF
I64_MAX = 0x7FFF_FFFF_FFFF_FFFF

SCALE_RULES = ("unbiased", "nominal")


class Shard(NamedTuple):
    """Where a call's tensors lie in a larger problem, so that a piece draws the dropout mask of the whole.

    Only dropout depends on it. ``num_heads_total`` is the number of query heads of the whole; None means the call's.
    """

    first_batch: int = 0
    first_head: int = 0
    first_row: int = 0
    first_column: int = 0
    num_heads_total: Optional[int] = None


class Settings(NamedTuple):
    """What is to be computed, but for tensors and the random state.

    The native half takes it as it is: ``crates/python/src/settings.rs`` has the same fields, and says what they mean.
    """

    dropout_p: float = 0.0
    softmax_scale: Optional[float] = None
    causal: bool = False
    #: How many keys a query sees before, and behind, the one that it faces; a negative number is all.
    window_left: int = -1
    window_right: int = -1
    nominal: bool = False
    #: Scores become ``softcap * tanh(score / softcap)``; 0 for none.
    softcap: float = 0.0
    #: The key that the first query faces; None is seqlen_k - seqlen_q.
    diagonal: Optional[int] = None
    shard: Optional[Shard] = None  # stays the last


#: The same as arguments of an operator of ``torch.library``, as :func:`to_operator` gives them.
OPERATOR_ARGUMENTS = (
    "float dropout_p, float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, bool nominal, "
    "float softcap, SymInt? diagonal, SymInt[] shard"
)

for _place, _names in (
    ("the native half", _native.SETTINGS),
    ("OPERATOR_ARGUMENTS", tuple(argument.split()[-1] for argument in OPERATOR_ARGUMENTS.split(", "))),
):
    if Settings._fields != _names:
        raise ImportError(f"{_place} has the settings {_names}, expected {Settings._fields}; reinstall signflash")


def to_operator(settings: Settings) -> Tuple:
    """Numbers and lists of numbers: nobody's shard is an empty one."""
    shard = settings.shard
    if shard is None:
        return (*settings[:-1], [])
    return (*settings[:-1], [*shard[:4], -1 if shard[4] is None else shard[4]])


def from_operator(values: Sequence) -> Settings:
    """The inverse."""
    *values, shard = values
    return Settings(*values, Shard(*shard[:4], None if shard[4] < 0 else shard[4]) if shard else None)


def dropout_p_of(values: Sequence) -> float:
    """The same of the arguments of an operator, whose numbers may be a compiler's symbols."""
    return values[Settings._fields.index("dropout_p")]


UNBOUNDED = (-1, -1)


def judged(dropout_p, softmax_scale, causal, window, scale_rule, softcap, diagonal, shard) -> Settings:
    """As :func:`signflash.attention` takes them; no function is called to judge a default."""
    return Settings(
        check_dropout_p(dropout_p),
        None if softmax_scale is None else check_softmax_scale(softmax_scale),
        causal if type(causal) is bool else check_causal(causal),
        *(window if type(window) is tuple and window == UNBOUNDED else check_window(window)),
        scale_rule != "unbiased" and check_scale_rule(scale_rule),
        0.0 if softcap is None else check_softcap(softcap),
        None if diagonal is None else check_diagonal(diagonal),
        None if shard is None else check_shard(shard),
    )


def check_dropout_p(dropout_p) -> float:
    if type(dropout_p) is float and 0.0 <= dropout_p < 1.0:
        return dropout_p
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, numbers.Real):
        raise TypeError(f"dropout_p must be a float in [0, 1), got {type(dropout_p).__name__}; pass float(p)")
    p = float(dropout_p)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {p}; it is the probability of dropping, 0 turns it off")
    return p


def check_causal(causal) -> bool:
    """Whoever says "no", or gives a number for another argument, does not mean True."""
    if type(causal).__name__ in ("bool", "bool_") or (isinstance(causal, int) and causal in (0, 1)):
        return bool(causal)
    raise TypeError(f"causal must be a bool, got {type(causal).__name__}; a mask is given as mask, a window as window")


def check_softmax_scale(softmax_scale) -> Optional[float]:
    if softmax_scale is None:
        return None
    if isinstance(softmax_scale, (bool, str)):
        raise TypeError(
            f"softmax_scale must be a number or None, got {softmax_scale!r}; None is 1 / sqrt(head_dim), and causal is "
            "another argument"
        )
    if getattr(softmax_scale, "requires_grad", False):
        raise NotImplementedError(
            "softmax_scale must not require a gradient, which is not there; use a float, or multiply q by what is learned"
        )
    try:
        return float(softmax_scale)
    except (TypeError, ValueError):
        kind = type(softmax_scale).__name__
        raise TypeError(f"softmax_scale must be a number or None, got {kind}; None is 1 / sqrt(head_dim)") from None


#: The least and the largest number that a softcap can be: those of float32.
_SOFTCAPS = (2.0**-126, (2.0 - 2.0**-23) * 2.0**127)


def check_softcap(softcap) -> float:
    """0 is none."""
    if softcap is None or (type(softcap) is float and softcap == 0.0):
        return 0.0
    if isinstance(softcap, bool) or not isinstance(softcap, numbers.Real):
        raise TypeError(f"softcap must be a positive float, or None or 0.0 for none, got {type(softcap).__name__}")
    cap = float(softcap)
    if cap == 0.0 or _SOFTCAPS[0] <= cap <= _SOFTCAPS[1]:
        return cap
    finite = ", finite as float32, too" if cap > 0.0 and math.isfinite(cap) else ""
    raise ValueError(f"softcap must be positive and finite{finite}, got {cap}; None or 0.0 is none")


def check_diagonal(diagonal) -> int:
    if isinstance(diagonal, bool) or not isinstance(diagonal, numbers.Integral):
        raise TypeError(f"diagonal must be an int or None, got {type(diagonal).__name__}; None is seqlen_k - seqlen_q")
    if not -I64_MAX <= diagonal <= I64_MAX:
        raise ValueError(f"diagonal must fit into 64 bits, got {diagonal}; beyond seqlen_k every query sees all keys")
    return int(diagonal)


def check_window(window) -> Tuple[int, int]:
    """(left, right)."""
    try:
        left, right = window
    except (TypeError, ValueError):
        raise TypeError(f"window must be a pair (left, right) of ints, got {window!r}; -1 is no bound") from None
    for side, value in (("left", left), ("right", right)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"window's {side} side must be an int, got {type(value).__name__}; -1 is no bound")
        if not -1 <= value <= I64_MAX:
            raise ValueError(f"window's {side} side must be from 0 to 2^63 - 1, or -1 for no bound, got {value}")
    return (left if type(left) is int else int(left)), (right if type(right) is int else int(right))


def check_scale_rule(scale_rule) -> bool:
    """Whether it is the nominal one."""
    if scale_rule not in SCALE_RULES:
        raise ValueError(
            f"scale_rule must be 'unbiased' or 'nominal', got {scale_rule!r}; unbiased is exact in expectation, nominal "
            "is 1 / (1 - p) as FlashAttention-2's"
        )
    return scale_rule == "nominal"


def check_shard(shard: Optional[Sequence]) -> Optional[Shard]:
    if shard is None:
        return None
    try:
        shard = Shard(*shard)
    except TypeError:
        raise TypeError(f"shard must be a signflash.Shard, got {shard!r}") from None
    for name, value in zip(shard._fields, shard):
        if value is None and name == "num_heads_total":
            continue
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"shard.{name} must be an int, got {type(value).__name__}")
        if not 0 <= value <= I64_MAX:
            raise ValueError(f"shard.{name} must be from 0 to 2^63 - 1, got {value}")
    return shard


def check_u64(name: str, value) -> int:
    """Seeds may be negative, as PyTorch's: they are taken modulo 2^64."""
    if type(value) is int and 0 <= value <= U64:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}; for a tensor use rng_state")
    if not -(1 << 63) <= value <= U64:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")
    # No bits are masked here: a compiler that knows the seed only as a symbol can add, and compare.
    value = value if type(value) is int else int(value)
    return value + (1 << 64) if value < 0 else value


def signed(value: int) -> int:
    """The int64 with the bits of a u64."""
    return value - (1 << 64) if value > I64_MAX else value
