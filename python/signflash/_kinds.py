"""What kind of array somebody gave."""

from __future__ import annotations

import sys
from typing import Any


def is_torch(x: Any) -> bool:
    """Whether x is a PyTorch tensor; PyTorch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)
