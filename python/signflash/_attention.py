"""The native function: attention of PyTorch tensors, NumPy arrays, and what speaks DLPack on the CPU."""

from __future__ import annotations

import sys
from typing import Any, Optional, Sequence

from ._kinds import is_torch
from ._settings import UNBOUNDED, check_u64, judged

_TORCH_HALF = __package__ + "._torch.attention"


def torch_half() -> Any:
    """The module that knows PyTorch, which it imports. An import statement would cost each call a microsecond."""
    return sys.modules.get(_TORCH_HALF) or _import_torch_half()


def _import_torch_half() -> Any:
    # A statement: torch.compile understands it, and does not understand importlib.
    from ._torch import attention

    return attention


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    dropout_p: float = 0.0,
    causal: bool = False,
    window: Sequence[int] = UNBOUNDED,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    softmax_scale: Optional[float] = None,
    seed: Optional[int] = None,
    offset: Optional[int] = None,
    generator: Any = None,
    rng_state: Any = None,
    scale_rule: str = "unbiased",
    shard: Optional[Sequence] = None,
    deterministic: bool = False,
    return_lse: bool = False,
    return_probs: bool = False,
    return_rng_state: bool = False,
    softcap: Optional[float] = None,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    diagonal: Optional[int] = None,
    out_dtype: Any = None,
) -> Any:
    """Exact attention with dropout on the probabilities; differentiable for PyTorch tensors.

    Args:
        q: (batch, seqlen_q, num_heads, head_dim), float16 or bfloat16; float32 on the CPU. head_dim is 1 to 256.
        k: (batch, seqlen_k, num_heads_k, head_dim). num_heads is a multiple of num_heads_k; query head h reads key head
            ``h // (num_heads // num_heads_k)``.
        v: (batch, seqlen_k, num_heads_k, head_dim_v), where head_dim_v is 1 to 256, too, and need not be head_dim. Strides
            are free but for the last, which is made 1 by a copy if it is not.
        dropout_p: probability of dropping, in [0, 1). Pass 0.0 in evaluation. Dropout draws 8 bits an entry: the
            effective probability is a multiple of 1/256.
        causal: query i sees keys ``j <= i + seqlen_k - seqlen_q`` (bottom-right aligned).
        window: (left, right): query i, which faces key ``i + seqlen_k - seqlen_q``, sees from ``left`` keys before that
            one to ``right`` keys behind it; -1 is no bound. ``causal`` makes the right side 0. A query whose window holds
            no key has out 0 and lse -inf. Tiles outside of the window are not computed.
        cu_seqlens_q: for packed sequences, each of a length of its own: int32 (sequences + 1,) on q's device,
            contiguous; sequence b has the queries from ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1] - 1`` and the keys
            that cu_seqlens_k says, and attends to itself alone: causality, window and dropout mask are those of a call
            of its own with ``shard=Shard(first_batch=b)``, and so are slopes, bias and mask: these are (sequences or 1,
            num_heads or 1, 1 or at least the most queries of any, at least the most keys of any), and their entry (i, j)
            is that of a sequence's own query i and key j. q and out are then (total_q, num_heads, head_dim), k and v
            (total_k, num_heads_k, head_dim), lse (num_heads, total_q), and probs (sequences, num_heads, the most
            queries of any, the most keys of any), 0 where a sequence is shorter. The numbers begin with 0, do not fall,
            and do not exceed the total, which is judged on the CPU only: a GPU's are read by its kernels, and nobody
            waits. Rows behind the last sequence have out 0, lse -inf and gradients 0.
        cu_seqlens_k: the same of keys and values.
        softmax_scale: factor of the scores; None is ``1 / sqrt(head_dim)``.
        seed, offset: the random state that decides what is dropped. Without a seed it is drawn from ``generator``, from
            the innermost :func:`random_state`, or from PyTorch's generator of the device, which is advanced as by
            PyTorch's FlashAttention.
        generator: a ``torch.Generator`` of q's device, or a :class:`Generator`.
        rng_state: (seed, offset) as an int64 tensor of 2 elements on q's device, read when the kernel runs.
        scale_rule: ``"unbiased"`` multiplies what is kept by the inverse of the true keep probability;
            ``"nominal"`` by ``1 / (1 - dropout_p)``, as FlashAttention-2 and PyTorch.
        shard: a :class:`Shard`, where the tensors lie in a larger problem whose dropout mask is to be drawn.
        deterministic: the backward gives the same bits in every run on a GPU too, which takes longer (on Hopper 7 to
            46 %, elsewhere a third); so it does under ``torch.use_deterministic_algorithms(True)``. The CPU's always
            does.
        softcap: scores become ``softcap * tanh(score / softcap)`` before anything is added to them; None or 0.0 for none.
        alibi_slopes: (num_heads) or (batch, num_heads) float32: a score loses ``slope * |i + seqlen_k - seqlen_q - j|``. It
            has no gradient.
        bias: added to the scores: (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k), or fewer of the last as PyTorch
            broadcasts them; float32, float16 or bfloat16, whatever q's dtype is; any strides, which is to say that an
            expanded one costs no memory. Where it is -inf a key is hidden. Differentiable, and only if it requires a
            gradient is that computed: in its own shape and dtype, and the same bits in every run.
        mask: bool, True where a query sees a key, of a bias's shapes and strides. A query that sees no key has out 0 and lse
            -inf (or its sink). Tiles of which nothing is seen may be left out: a mask of keys alone, (batch, 1, 1,
            seqlen_k), costs little.
        sinks: (num_heads) float32, float16 or bfloat16: one more score of every row, without a value, in the denominator
            only. It counts in lse, and is never dropped or hidden. Differentiable.
        diagonal: the key that the first query faces, counted from the first key, of any sign: causality, window and ALiBi
            are told from there. None is ``seqlen_k - seqlen_q``, which lets the last query face the last key. A piece of a
            larger problem whose first query is ``r`` and first key ``c`` there has the whole's diagonal plus ``r - c``. Not
            for packed sequences.
        out_dtype: float32 (of PyTorch, NumPy, or the word), for an out that is not rounded to q's dtype: a partial result,
            of some of the keys, which is added to others first. Not recorded by autograd.
        return_lse: also return lse (batch, num_heads, seqlen_q) float32: the logarithm of the sum of the exponentials
            of each row's scores, dropped or not; -inf where a query sees no key. Differentiable, as out.
        return_probs: also return probs (batch, num_heads, seqlen_q, seqlen_k) in q's dtype: the normalised
            probabilities with the sign *bit* set where dropped; see :func:`decode`. Takes another pass, and memory of
            its size.
        return_rng_state: also return (seed, offset) that drew the dropout mask; a tensor as ``rng_state`` while a CUDA
            graph is captured or under ``torch.compile``.

    Returns:
        out (batch, seqlen_q, num_heads, head_dim_v), of q's dtype or out_dtype; with any of the ``return_`` arguments a tuple
        (out, lse, probs, rng_state) of those asked for, in this order.

    Raises:
        ValueError, TypeError, NotImplementedError: name the argument, what was expected, what came and the remedy.

    >>> import numpy, signflash
    >>> q = numpy.ones((1, 3, 4, 8), "float32")  # (batch, seqlen_q, num_heads, head_dim)
    >>> k = v = numpy.ones((1, 5, 2, 8), "float32")  # two query heads read each key head
    >>> out, probs = signflash.attention(q, k, v, dropout_p=0.5, causal=True, seed=42, return_probs=True)
    >>> out.shape, probs.shape
    ((1, 3, 4, 8), (1, 4, 3, 5))
    >>> probability, dropped = signflash.decode(probs)
    >>> (probability[0, 0, 0] > 0).tolist()  # the first of three queries sees three of five keys
    [True, True, True, False, False]
    """
    settings = judged(dropout_p, softmax_scale, causal, window, scale_rule, softcap, diagonal, shard)
    cu_seqlens = _pair(cu_seqlens_q, cu_seqlens_k)
    wide = out_dtype is not None and _is_wide("out_dtype", out_dtype, q, return_probs)
    if seed is None:
        if offset is not None:
            raise ValueError(f"offset was given as {offset} without seed; give both, or neither")
        if shard is not None and rng_state is None and settings.dropout_p > 0.0:
            raise ValueError("seed must be given with shard, so that all pieces draw from the same state; got None")
        offset = 0
    else:
        if generator is not None or rng_state is not None:
            raise ValueError("seed was given together with generator or rng_state; give one of them")
        seed, offset = check_u64("seed", seed), check_u64("offset", 0 if offset is None else offset)
    if generator is not None and rng_state is not None:
        raise ValueError("generator was given together with rng_state; give one of them")
    call = torch_half().attention if is_torch(q) else _of_arrays
    out, lse, probs, state = call(
        (q, k, v),
        settings,
        cu_seqlens=cu_seqlens,
        seed=seed,
        offset=offset,
        generator=generator,
        rng_state=rng_state,
        deterministic=bool(deterministic),
        return_probs=bool(return_probs),
        joined=_joined(alibi_slopes, bias, mask, sinks),
        wide=wide,
        wants_lse=bool(return_lse),
    )
    if not (return_lse or return_probs or return_rng_state):
        return out
    results = [out]
    if return_lse:
        results.append(lse)
    if return_probs:
        results.append(probs)
    if return_rng_state:
        results.append(state)
    return tuple(results)


def _is_wide(argument: str, dtype: Any, q: Any, return_probs: bool = False) -> bool:
    """Whether results are float32 beside a q that is not."""
    name, own = (str(getattr(x, "name", x)).replace("torch.", "") for x in (dtype, getattr(q, "dtype", None)))
    if isinstance(dtype, type):
        name = dtype.__name__
    if name not in ("float32", own):
        raise TypeError(f"{argument} must be float32, or None for q's dtype, got {dtype!r}")
    if name != own and return_probs:
        raise ValueError(
            f"return_probs was given together with {argument}; probs have q's dtype: ask for them in another call"
        )
    return name != own


def _pair(cu_seqlens_q: Any, cu_seqlens_k: Any) -> Any:
    """Both, or None where a batch is dense."""
    if cu_seqlens_q is None and cu_seqlens_k is None:
        return None
    if cu_seqlens_q is None or cu_seqlens_k is None:
        given, missing = ("q", "k") if cu_seqlens_k is None else ("k", "q")
        raise ValueError(
            f"cu_seqlens_{given} was given without cu_seqlens_{missing}; give both, the same one where queries and keys "
            "are equally many"
        )
    return cu_seqlens_q, cu_seqlens_k


def _joined(alibi_slopes: Any, bias: Any, mask: Any, sinks: Any) -> Any:
    """The four, or None where there is none of them."""
    if alibi_slopes is None and bias is None and mask is None and sinks is None:
        return None
    return alibi_slopes, bias, mask, sinks


def _of_arrays(tensors, settings, wants_lse, **rest):
    from . import _arrays

    return _arrays.attention(*tensors, settings, **rest)


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    dlse: Any = None,
    dropout_p: float = 0.0,
    causal: bool = False,
    window: Sequence[int] = UNBOUNDED,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    softmax_scale: Optional[float] = None,
    seed: Optional[int] = None,
    offset: int = 0,
    scale_rule: str = "unbiased",
    shard: Optional[Sequence] = None,
    deterministic: bool = False,
    softcap: Optional[float] = None,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    return_dbias: bool = False,
    return_dsinks: bool = False,
    diagonal: Optional[int] = None,
    grad_dtype: Any = None,
) -> Any:
    """(dq, dk, dv) from dout, the gradient of out, and the forward's inputs and results: where there is no autograd.

    Arguments are those of :func:`attention`; out and lse are what it returned, seed and offset what it drew
    (``return_rng_state``). dlse, the gradient of lse (batch, num_heads, seqlen_q) float32, is None if nothing depends
    on lse. dq is (batch, seqlen_q, num_heads, head_dim), dk (batch, seqlen_k, num_heads_k, head_dim), dv (batch, seqlen_k,
    num_heads_k, head_dim_v); they are of q's dtype, or not rounded where grad_dtype is float32: partial gradients, which are added to others first. With return_dbias the result goes on with dbias, of bias's shape and dtype, and with
    return_dsinks with dsinks (num_heads) float32.

    >>> import numpy, signflash
    >>> q = k = v = numpy.ones((1, 5, 2, 8), "float32")
    >>> out, lse = signflash.attention(q, k, v, causal=True, return_lse=True)
    >>> dq, dk, dv = signflash.attention_backward(numpy.ones_like(out), q, k, v, out, lse, causal=True)
    >>> [f"{x:.2f}" for x in dv[0, :, 0, 0]]  # earlier keys are seen by more queries
    ['2.28', '1.28', '0.78', '0.45', '0.20']
    """
    settings = judged(dropout_p, softmax_scale, causal, window, scale_rule, softcap, diagonal, shard)
    wide = grad_dtype is not None and _is_wide("grad_dtype", grad_dtype, q)
    cu_seqlens, joined = _pair(cu_seqlens_q, cu_seqlens_k), _joined(alibi_slopes, bias, mask, sinks)
    for name, x, wanted in (("bias", bias, return_dbias), ("sinks", sinks, return_dsinks)):
        if wanted and x is None:
            raise ValueError(f"return_d{name}=True without {name}; give the forward's {name}, or leave it out")
    wanted = bool(return_dbias), bool(return_dsinks)
    if settings.dropout_p > 0.0 and seed is None:
        raise ValueError("seed must be the forward's where dropout_p > 0, got None; ask it for return_rng_state=True")
    state = check_u64("seed", 0 if seed is None else seed), check_u64("offset", offset)
    given = (dout, q, k, v, out, lse, dlse, settings, state)
    if is_torch(q):
        found = torch_half().backward(*given, bool(deterministic), cu_seqlens, joined, wanted, wide)
    else:
        from . import _arrays

        found = _arrays.backward(*given, cu_seqlens, joined, wanted, wide)
    return (*found[:3], *(x for x, wants in zip(found[3:], wanted) if wants))
