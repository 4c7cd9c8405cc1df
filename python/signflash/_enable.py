"""Makes PyTorch and Transformers use this package."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from typing import Any, Callable, Iterator, Optional, Tuple


def enable(*, pytorch: Optional[bool] = None, transformers: Optional[bool] = None) -> Tuple[str, ...]:
    """Registers this package where the ecosystem has a place for it, for this process; returns where.

    Args:
        pytorch: compute ``F.scaled_dot_product_attention`` with dropout, forward and backward, and with it everything in
            ``torch.nn`` and elsewhere that calls it: on CPUs and NVIDIA GPUs, with masks, under autocast, activation
            checkpoints and torch.compile (docs/pytorch.md says what is taken, and :func:`explain` tells of each call).
            What is not taken, and whatever does not drop, goes to PyTorch as if we were not there. None: if PyTorch is
            installed.
        transformers: be known to Hugging Face Transformers as ``attn_implementation="signflash"``. From then on models
            that are made with it, and would not use it in all of their attention, are refused. None: if it is
            installed.

    What torch.compile made before is compiled anew when it is called next.

    Raises:
        RuntimeError: what was asked for with True is not to be had.
    """
    done = []
    if pytorch is not False:
        if importlib.util.find_spec("torch") is not None:
            from ._sdpa import switch

            switch.enable()
            done.append("pytorch")
        elif pytorch:
            raise RuntimeError(
                "pytorch=True, but there is no PyTorch; install torch, or call signflash.attention on arrays"
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
    """Gives PyTorch its own attention back. The name in Transformers stays: nobody uses it unasked.

    Raises:
        RuntimeError: a block of :func:`enabled` runs.
    """
    if importlib.util.find_spec("torch") is not None:
        from ._sdpa import switch

        switch.disable()


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """``enable(pytorch=True)`` for a block, forward and backward; blocks nest, and an exception ends one, too.

    It holds for the whole process: other threads that call attention while a block runs get ours, and it ends with the
    last of the blocks. The first block to begin and the last to end switch, and what torch.compile made is then compiled
    anew: a loop over compiled steps belongs inside of one block.

    >>> import torch, signflash
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)  # its dropout is 0.1
    >>> with signflash.enabled():
    ...     layer(torch.ones(1, 5, 32)).sum().backward()
    """
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("signflash.enabled() needs PyTorch; install torch, or call signflash.attention on arrays")
    from ._sdpa import switch

    with switch.block():
        yield


def explain(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls ``function(*args, **kwargs)`` as under :func:`enabled`, and tells of each attention in it what became of it.

    The result, ``str()`` of which is a table, has ``attentions``, a dict of who computed which attention, why, called
    from where, and how often; ``all_taken``, whether all attention with dropout was ours; and ``result``, what the
    function returned. What torch.compile made runs as it was written. Attention that a model computes in code of its
    own is found by its dropout: its input has rows that add up to 1.

    >>> import torch, signflash
    >>> layer = torch.nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True)
    >>> x = torch.ones(1, 5, 32)
    >>> found = signflash.explain(layer, x, x, x)
    >>> found.all_taken, [x.why for x in found.attentions]
    (False, ['nn.MultiheadAttention with need_weights=True, which calls no scaled_dot_product_attention'])
    >>> signflash.explain(layer, x, x, x, need_weights=False).all_taken
    True
    """
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("signflash.explain() needs PyTorch; install torch")
    from ._sdpa.explain import explain as run

    return run(function, *args, **kwargs)


def _has_interfaces() -> bool:
    """Whether this Transformers lets us make masks: 4 has other arguments for that, and no mask of full attention."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, masking_utils  # noqa: F401
    except ImportError:
        return False
    makes = getattr(masking_utils, "sdpa_mask", None)
    full = hasattr(masking_utils, "bidirectional_mask_function")
    return full and makes is not None and "q_length" in inspect.signature(makes).parameters
