"""The compiled half. Numbers only: addresses, shapes and strides of tensors that the caller keeps alive."""

from typing import List, Optional, Tuple

__version__: str

_Four = Tuple[int, int, int, int]
_Tensor = Tuple[int, _Four, _Four]
_Place = Tuple[int, int]
_Shard = Tuple[int, int, int, int, Optional[int]]
_Settings = Tuple[bool, Optional[float], float, int, int, bool, Optional[_Shard]]

def forward(
    at: _Place,
    dtype_name: str,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    out: _Tensor,
    lse: int,
    probs: Optional[_Tensor],
    seed_and_offset: int,
    settings_args: _Settings,
) -> None: ...
def backward(
    at: _Place,
    dtype_name: str,
    read: Tuple[_Tensor, _Tensor, _Tensor, _Tensor, _Tensor],
    lse: int,
    dlse: int,
    written: Tuple[_Tensor, _Tensor, _Tensor],
    workspace: int,
    deterministic: bool,
    seed_and_offset: int,
    settings_args: _Settings,
) -> None: ...
def workspace_bytes(
    ordinal: int, q_shape: _Four, k_shape: _Four, deterministic: bool, settings_args: _Settings
) -> int: ...
def dropout_mask(to: int, shape: _Four, settings_args: _Settings) -> None: ...
def keep_scale(dropout_p: float, nominal: bool) -> float: ...
def info() -> Tuple[str, int, List[str], Optional[str]]: ...
