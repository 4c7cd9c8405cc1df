"""The compiled half: addresses, shapes and strides of tensors that the caller keeps alive, or such tensors themselves."""

from typing import Any, Dict, List, Optional, Tuple, Union

from ._settings import Settings

__version__: str
SETTINGS: Tuple[str, ...]

_Sizes = Tuple[int, ...]
_Four = Tuple[int, int, int, int]
_Written = Union[int, Tuple[int, _Sizes, _Sizes]]
_Lent = Union[Tuple[int, Tuple[int, ...], Tuple[int, ...], int, int], Tuple[Any, int, int]]
_Starts = Tuple[_Lent, _Lent]
_Place = Tuple[int, int]
_State = Tuple[int, int, int]
_Dtypes = Union[str, Tuple[str, str, Tuple[bool, bool]]]  # of operands, of results, and what of these is added

def exchange(cls: type, table: Any) -> bool: ...
def forward(
    at: _Place,
    dtypes: _Dtypes,
    q: _Lent,
    k: _Lent,
    v: _Lent,
    cu_seqlens: Optional[_Starts],
    out: _Written,
    lse: int,
    probs: Optional[_Written],
    workspace: int,
    state: _State,
    settings: Settings,
) -> bool: ...
def backward(
    at: _Place,
    dtypes: _Dtypes,
    read: Tuple[_Lent, _Lent, _Lent, _Lent, _Lent],
    rows: Tuple[_Lent, Optional[_Lent]],
    cu_seqlens: Optional[_Starts],
    written: Tuple[_Written, _Written, _Written],
    workspace: int,
    deterministic: bool,
    state: _State,
    settings: Settings,
) -> bool: ...

class Recorded:
    """What the short way keeps of a forward that autograd records."""

    settings: Settings
    state: Tuple[int, int]
    deterministic: bool
    wanted: List[bool]

def have_short_way(
    *, path: str, plain: List[type], watchers: List[Any], hooks: Any, deterministic: Any, stream: Optional[Any], apply: Any
) -> bool: ...
def attend(
    q: Any, k: Any, v: Any, settings: Settings, state: Tuple[int, int], deterministic: bool, wants_lse: bool
) -> Optional[Tuple[Any, Any]]: ...
def record(ctx: Any, call: Recorded, q: Any, k: Any, v: Any) -> Any: ...
def gradients(ctx: Any, given: Tuple[Any, ...]) -> Optional[Tuple[Any, ...]]: ...

class Registered:
    """Native kernels of PyTorch's operators, until they are removed."""

    def remove(self) -> None: ...

def have_operators(
    *, path: str, draw: Any, hear: Any, refuse: Any, listeners: List[Any], deterministic: Any, usual: Dict[str, Any]
) -> bool: ...
def register_operators(key: str, names: List[str], least_pairs: int) -> Registered: ...
def forward_workspace_bytes(
    ordinal: int,
    shapes: Tuple[_Sizes, _Sizes, _Sizes],
    sequences: Optional[int],
    scores: Optional[tuple],
    settings: Settings,
) -> int: ...
def workspace_bytes(
    ordinal: int,
    shapes: Tuple[_Sizes, _Sizes, _Sizes],
    sequences: Optional[int],
    scores: Optional[tuple],
    deterministic: bool,
    settings: Settings,
) -> int: ...
def packed_probs(
    at: _Place, q_shape: _Sizes, k_shape: _Sizes, cu_seqlens: _Starts, settings: Settings
) -> Optional[List[int]]: ...
def dropout_mask(to: int, shape: _Four, state: _State, settings: Settings) -> None: ...
def keep_scale(dropout_p: float, nominal: bool) -> float: ...
def info() -> Tuple[str, str, int, List[str], Optional[str]]: ...
