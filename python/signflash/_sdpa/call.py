"""One call of ``F.scaled_dot_product_attention``, as PyTorch hands it on."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional


class Call(NamedTuple):
    """query (..., num_heads, seqlen_q, head_dim), key, value (..., num_heads_k, seqlen_k, head_dim)."""

    query: Any
    key: Any
    value: Any
    attn_mask: Any = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: Optional[float] = None
    enable_gqa: bool = False

    def tensors(self):
        """Those that there are."""
        given = (self.query, self.key, self.value)
        return given if self.attn_mask is None else (*given, self.attn_mask)
