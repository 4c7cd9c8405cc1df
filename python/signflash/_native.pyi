"""The compiled half: addresses, shapes and strides of tensors that the caller keeps alive, or such tensors themselves."""

from typing import Any, List, Optional, Tuple, Union

from ._settings import Settings

__version__: str
SETTINGS: Tuple[str, ...]

_Four = Tuple[int, int, int, int]
_Written = Union[int, Tuple[int, _Four, _Four]]
_Lent = Union[Tuple[int, Tuple[int, ...], Tuple[int, ...], int, int], Tuple[Any, int, int]]
_Place = Tuple[int, int]
_State = Tuple[int, int, int]

def exchange(cls: type, table: Any) -> bool: ...
def forward(
    at: _Place,
    dtype_name: str,
    q: _Lent,
    k: _Lent,
    v: _Lent,
    out: _Written,
    lse: int,
    probs: Optional[_Written],
    state: _State,
    settings: Settings,
) -> bool: ...
def backward(
    at: _Place,
    dtype_name: str,
    read: Tuple[_Lent, _Lent, _Lent, _Lent, _Lent],
    rows: Tuple[_Lent, Optional[_Lent]],
    written: Tuple[_Written, _Written, _Written],
    workspace: int,
    deterministic: bool,
    state: _State,
    settings: Settings,
) -> bool: ...
def workspace_bytes(ordinal: int, q_shape: _Four, k_shape: _Four, deterministic: bool, settings: Settings) -> int: ...
def dropout_mask(to: int, shape: _Four, state: _State, settings: Settings) -> None: ...
def keep_scale(dropout_p: float, nominal: bool) -> float: ...
def info() -> Tuple[str, int, List[str], Optional[str]]: ...
