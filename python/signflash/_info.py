"""What runs here."""

from __future__ import annotations

from typing import Any, Dict

from . import _native


def info() -> Dict[str, Any]:
    """What calls run on: the CPU's instruction set and threads, the GPUs, and why there are none.

    >>> import signflash
    >>> sorted(signflash.info())
    ['gpus', 'instruction_set', 'no_gpu_because', 'threads', 'version']
    """
    instruction_set, threads, gpus, why = _native.info()
    return {
        "version": _native.__version__,
        "instruction_set": instruction_set,
        "threads": threads,
        "gpus": gpus,
        "no_gpu_because": why,
    }
