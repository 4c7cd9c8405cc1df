"""Hugging Face Transformers: ``attn_implementation="signflash"``.

Dropout is honoured, padding is computed exactly (each sequence at its own length), and what cannot be computed is
refused: nothing that changes the result is ignored. A model that would not call us, or not everywhere, is refused
when it is made.
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from . import making
from .attention import attention_forward
from .masks import attention_mask_of
from .names import ALIAS, NAME, NAMES

__all__ = ["ALIAS", "NAME", "attention_forward", "attention_mask_of", "register"]


def register() -> None:
    """Makes our names known to Transformers, and has models judged that are made with one of them."""
    for name in NAMES:
        AttentionInterface.register(name, attention_forward)
        AttentionMaskInterface.register(name, attention_mask_of)
    making.judge_models()
