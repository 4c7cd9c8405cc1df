"""Code that torch.compile made before a switch: it must not outlive it.

A compiled function has the kernel in it that was there when it was compiled, in memory and, by AOTAutograd's cache, on
disk, whose key knows nothing of kernels that were registered.
"""

from __future__ import annotations

import sys

import torch

from .. import _native

_TAG = f"signflash-{_native.__version__}"


def refuse_while_compiling() -> None:
    compiler = getattr(torch, "compiler", None)
    if hasattr(compiler, "is_compiling") and compiler.is_compiling():
        raise RuntimeError(
            "signflash.enable, disable and enabled change what is compiled, and cannot be compiled; call them outside of "
            "the function that torch.compile is given"
        )


def switch(on: bool) -> None:
    """Forgets what was compiled, and has caches on disk tell apart what is compiled from now on."""
    _tag(on)
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and hasattr(dynamo, "reset"):
        dynamo.reset()


def _tag(on: bool) -> None:
    config = _config()
    if config is None:
        return
    others = [tag for tag in config.cache_key_tag.split("+") if tag and tag != _TAG]
    config.cache_key_tag = "+".join([*others, _TAG] if on else others)


def _config():
    """PyTorch's, where it has a tag."""
    try:
        from torch.compiler import config
    except ImportError:
        return None
    return config if hasattr(config, "cache_key_tag") else None
