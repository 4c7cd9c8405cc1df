"""Our attention function: what the layers of a model call."""

from __future__ import annotations

import sys
from typing import Any, Dict, List, Optional, Tuple

import torch

from .._attention import attention
from .._torch.checks import autocast_dtype
from .given import mask_of_numbers
from .layout import Packed
from .mask import REMEDY, Mask, Seen
from .packed import attention_of_sequences

#: Arguments of an attention function that change what is computed, and that are not there.
REFUSED = (
    "block_indices",
    "cache",
    "head_mask",
    "score_mod",
    "block_mask",
)
#: The largest head_dim that there is a kernel for.
LARGEST_HEAD_DIM = 256


def attention_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    is_causal: Optional[bool] = None,
    sliding_window: Optional[int] = None,
    output_attentions: Optional[bool] = None,
    cu_seq_lens_q: Optional[torch.Tensor] = None,
    cu_seq_lens_k: Optional[torch.Tensor] = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    position_bias: Optional[torch.Tensor] = None,
    softcap: Optional[float] = None,
    s_aux: Optional[torch.Tensor] = None,
    sinks: Optional[torch.Tensor] = None,
    indices: Optional[torch.Tensor] = None,
    **kwargs: Any,
) -> Any:
    """(out (batch, seqlen, num_heads, head_dim), probabilities or None) of query (batch, num_heads, seqlen, head_dim).

    What is seen, causality, windows, sequences and keys that count, is what the mask says, as it is for Transformers'
    eager attention. Without a mask it is what the caller or the module says. cu_seq_lens_q and cu_seq_lens_k say where
    sequences begin in all rows of the batch, one behind the other; lengths follow from them, and max_length_q and
    max_length_k decide nothing. position_bias (batch or 1, num_heads, seqlen_q or 1, seqlen_k) is added to scores, which
    softcap has capped before; s_aux (num_heads) are sinks, and sinks (batch or 1, num_heads, seqlen_q or 1, 1) are those of
    each query. indices (batch or 1, seqlen_q, keys) are the keys that the model chose for each query: of those that the mask
    lets it see it sees no others. Numbers that are no key's, as -1, choose none.
    """
    _check_arguments(kwargs)
    _refuse_ranks()
    given = _given(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    of_places = dict(position_bias=position_bias, sinks=sinks, indices=indices)
    of_places = [name for name, x in of_places.items() if x is not None]
    if of_places and given is not None:
        raise NotImplementedError(
            f"{of_places[0]} was given together with cu_seq_lens_q and cu_seq_lens_k; give one of them, or {REMEDY}"
        )
    if sinks is not None:
        _check_sinks(sinks, query)
    seen = _seen(module, query, key, attention_mask, is_causal, sliding_window, given, bool(of_places))
    if indices is not None:
        chosen = _chosen(indices, query, seen.seqlen_k)
        seen = seen._replace(mask=chosen if seen.mask is None else seen.mask & chosen)
    query, key, value = _of_one_dtype(module, query, key, value)
    _check_head_dims(query, value)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if seen.seqlen_k < key.shape[2]:
        key, value = (x[:, :, : seen.seqlen_k] for x in (key, value))
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    settings = dict(
        dropout_p=float(dropout), softmax_scale=scaling, causal=seen.right == 0, softcap=softcap, sinks=s_aux
    )
    settings.update(mask=seen.mask, bias=_bias(position_bias, seen))
    if seen.left is not None or seen.right:
        settings["window"] = tuple(-1 if x is None else x for x in (seen.left, seen.right))
    if sinks is not None:
        out, probs = _with_sinks(tensors, settings, sinks, bool(output_attentions))
    elif seen.packed is not None:
        out, probs = attention_of_sequences(*tensors, seen.packed, settings, bool(output_attentions))
    elif output_attentions:
        out, probs = attention(*tensors, **settings, return_probs=True)
    else:
        out, probs = attention(*tensors, **settings), None
    return out, None if probs is None else probs.abs()


def _chosen(indices: Any, query: Any, seqlen_k: int) -> torch.Tensor:
    """bool (batch, 1, seqlen_q, seqlen_k), True at the keys of these numbers."""
    batch, _, seqlen_q = query.shape[:3]
    shape = tuple(indices.shape)
    if indices.is_floating_point() or len(shape) != 3 or shape[0] not in (1, batch) or shape[1] != seqlen_q:
        raise NotImplementedError(
            f"indices must be integers of shape ({batch} or 1, {seqlen_q}, keys), the keys that were chosen for each query, got "
            f"{indices.dtype} of shape {shape}; {REMEDY}"
        )
    indices = indices.long()
    # One place more, for numbers that are no key's: nobody waits for the GPU to look for them.
    indices = torch.where((indices >= 0) & (indices < seqlen_k), indices, seqlen_k)
    chosen = torch.zeros((*shape[:2], seqlen_k + 1), dtype=torch.bool, device=indices.device)
    return chosen.scatter(-1, indices, True)[:, None, :, :seqlen_k].to(query.device)


def _check_sinks(sinks: Any, query: Any) -> None:
    batch, num_heads, seqlen_q = query.shape[:3]
    shape = tuple(sinks.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1:] not in ((num_heads, seqlen_q, 1), (num_heads, 1, 1)):
        raise NotImplementedError(
            f"sinks must be ({batch} or 1, {num_heads}, {seqlen_q} or 1, 1), one score more of each query, got shape {shape}; {REMEDY}"
        )


def _with_sinks(tensors: List, settings: Dict, sinks: torch.Tensor, return_probs: bool) -> Tuple[Any, Any]:
    """One more score of each query, without a value, takes the same part from all of its probabilities, dropped or not:
    with lse of the others, exp(lse) / (exp(lse) + exp(sink)) is left of them, which has the gradients."""
    out, lse, *probs = attention(*tensors, **settings, return_lse=True, return_probs=return_probs)
    left = torch.sigmoid(lse[..., None] - sinks.float())
    out = (out.float() * left.transpose(1, 2)).to(out.dtype)
    return out, (probs[0].float() * left).to(out.dtype) if probs else None


def _bias(position_bias: Optional[torch.Tensor], seen: Seen) -> Optional[torch.Tensor]:
    """What is added to the scores of the keys that are seen."""
    if position_bias is None:
        return seen.bias
    position_bias = position_bias[..., : seen.seqlen_k]
    return position_bias if seen.bias is None else position_bias + seen.bias


def _refuse_ranks() -> None:
    """Within signflash.distributed.context_parallel a layer has the positions of one rank, and its mask those of none."""
    context = sys.modules.get("signflash.distributed.context")
    if context is not None and context.ENTERED:
        raise NotImplementedError(
            'attn_implementation="signflash" within signflash.distributed.context_parallel would attend to the positions of one '
            'rank; use attn_implementation="sdpa", which the context replaces'
        )


def _check_arguments(kwargs: dict) -> None:
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{name} was given, which is not there; {REMEDY}")


def _given(cu_seq_lens_q: Any, cu_seq_lens_k: Any, max_length_q: Any, max_length_k: Any) -> Optional[Packed]:
    given = dict(cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k)
    for name, x in given.items():
        if x is not None and (not isinstance(x, torch.Tensor) or x.dim() != 1 or x.is_floating_point()):
            raise TypeError(
                f"{name} must be an int32 tensor of one dimension, (sequences + 1), got {getattr(x, 'dtype', type(x).__name__)} "
                f"of shape {tuple(getattr(x, 'shape', ()))}"
            )
    missing = [name for name, x in given.items() if x is None]
    if len(missing) == 1 or (missing and not (max_length_q is None and max_length_k is None)):
        raise ValueError(
            f"cu_seq_lens_q and cu_seq_lens_k must be given together, got {' and '.join(missing)} as None beside "
            "others of cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k; give both, or none of the four"
        )
    return None if missing else Packed(cu_seq_lens_q.to(torch.int32), cu_seq_lens_k.to(torch.int32))


def _seen(
    module: Any,
    query: Any,
    key: Any,
    mask: Any,
    is_causal: Optional[bool],
    window: Optional[int],
    given: Optional[Packed],
    has_places: bool,
) -> Seen:
    (batch, _, seqlen_q), seqlen_k = query.shape[:3], key.shape[2]
    if mask is not None:
        mask = mask if isinstance(mask, Mask) else mask_of_numbers(mask, batch, seqlen_q, seqlen_k)
        if given is not None:
            seen = mask.with_sequences(seqlen_q, seqlen_k, given)
        else:
            # A bias, and what each query has of its own, knows places in the batch, not in sequences.
            seen = mask.dense(seqlen_q, seqlen_k) if has_places else mask.of(seqlen_q, seqlen_k)
        if mask.entries is not None:
            return seen  # entry by entry it says all that there is to say of a window
    else:
        # Where sequences are given there is one reference only, FlashAttention, which believes the module.
        right = 0 if _is_causal(module, is_causal, given is None and seqlen_q > 1) else None
        seen = Seen(None, right, seqlen_k, given)
        if given is not None and window is not None:
            seen = seen._replace(left=window - 1, right=window - 1 if right is None else 0)
    if window is not None and window < seen.seqlen_k and (seen.left is None or window <= seen.left):
        raise NotImplementedError(
            f"sliding_window is {window}, below {seen.seqlen_k} keys, and the attention mask has no such window; {REMEDY}"
        )
    return seen


def _is_causal(module: Any, is_causal: Optional[bool], ambiguous: bool) -> bool:
    """Where the model made no mask: eager attention is full then, and PyTorch's is causal if the module says so."""
    stated = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if stated is None:
        raise NotImplementedError(
            f"{type(module).__name__} does not say whether it is causal (is_causal), and made no attention mask; {REMEDY}"
        )
    if stated and is_causal is None and ambiguous:
        raise NotImplementedError(
            f"attention_mask must be None or causal, got None from {type(module).__name__}, which says is_causal=True: eager "
            f"attention would see all keys, and sdpa only those before; {REMEDY}"
        )
    return bool(stated)


def _check_head_dims(query: Any, value: Any) -> None:
    for x in (query, value):
        if x.shape[-1] > LARGEST_HEAD_DIM:
            raise NotImplementedError(
                f"the model asks for head_dim {x.shape[-1]}, which is above the largest, {LARGEST_HEAD_DIM}; {REMEDY}"
            )


def _of_one_dtype(module: Any, query: Any, key: Any, value: Any) -> Any:
    """Norms and rotations in float32 leave float32 behind in half-precision models: back to the weights' dtype."""
    if query.dtype == key.dtype == value.dtype and not (query.is_cuda and query.dtype is torch.float32):
        return query, key, value
    dtype = value.dtype
    if dtype is torch.float32 and autocast_dtype(query.device.type) is None:
        weights = (layer.weight.dtype for layer in module.modules() if isinstance(layer, torch.nn.Linear))
        dtype = next(weights, dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)
