"""What runs here."""

from __future__ import annotations

from typing import Any, Dict

from . import _native


def info() -> Dict[str, Any]:
    """What calls run on: the CPU's instruction set and threads, the GPUs, and why there are none.

    >>> import signflash
    >>> sorted(signflash.info())
    ['gpus', 'instruction_set', 'instruction_set_because', 'no_gpu_because', 'threads', 'version']
    """
    instruction_set, because, threads, gpus, why = _native.info()
    return {
        "version": _native.__version__,
        "instruction_set": instruction_set,
        "instruction_set_because": because,
        "threads": threads,
        "gpus": gpus,
        "no_gpu_because": why,
    }
