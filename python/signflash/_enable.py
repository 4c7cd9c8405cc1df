"""Makes PyTorch and Transformers use this package."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Optional, Tuple


def enable(*, pytorch: Optional[bool] = None, transformers: Optional[bool] = None) -> Tuple[str, ...]:
    """Registers this package where the ecosystem has a place for it; returns where.

    Args:
        pytorch: be the flash implementation of ``F.scaled_dot_product_attention`` on CUDA, with dropout, for this
            process (``torch.nn.attention.register_flash_attention_impl``, PyTorch 2.10 or newer; PyTorch still chooses
            between flash and its other backends). None: where PyTorch offers it.
        transformers: be known to Hugging Face Transformers as ``attn_implementation="signflash"``. From then on models
            that are made with it, and would not use it in all of their attention, are refused. None: if it is
            installed.

    Raises:
        RuntimeError: what was asked for with True is not to be had.
    """
    done = []
    if pytorch is not False:
        if _has_registry():
            import torch.nn.attention as registry

            from ._torch import sdpa

            registry.register_flash_attention_impl(sdpa.NAME, register_fn=sdpa.register)
            registry.activate_flash_attention_impl(sdpa.NAME)
            done.append("pytorch")
        elif pytorch:
            raise RuntimeError(
                "pytorch=True, but this PyTorch has no torch.nn.attention.register_flash_attention_impl; update it, or call "
                "signflash.attention"
            )
    if transformers is not False:
        if importlib.util.find_spec("transformers") is not None and _has_interfaces():
            from . import _transformers

            _transformers.register()
            done.append("transformers")
        elif transformers:
            raise RuntimeError(
                "transformers=True, but there is no Transformers with AttentionInterface and with mask functions that are "
                "called with q_length; install a newer transformers (5.17 and 5.24 are tested)"
            )
    return tuple(done)


def disable() -> None:
    """Brings PyTorch's own flash implementation back. The name in Transformers stays: nobody uses it unasked."""
    if _has_registry():
        import torch.nn.attention as registry

        if registry.current_flash_attention_impl() == "signflash":
            registry.restore_flash_attention_impl()


def _has_registry() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        from torch.nn.attention import activate_flash_attention_impl, register_flash_attention_impl  # noqa: F401
    except ImportError:
        return False
    return True


def _has_interfaces() -> bool:
    """Whether this Transformers lets us make masks: 4 has other arguments for that, and no mask of full attention."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, masking_utils  # noqa: F401
    except ImportError:
        return False
    makes = getattr(masking_utils, "sdpa_mask", None)
    full = hasattr(masking_utils, "bidirectional_mask_function")
    return full and makes is not None and "q_length" in inspect.signature(makes).parameters
