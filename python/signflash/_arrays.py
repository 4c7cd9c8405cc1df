"""Attention of NumPy arrays, and of what speaks DLPack on the CPU (JAX, CuPy's host arrays, ...)."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from . import _joined, _native, _random
from ._kinds import is_torch

CPU = 1  # kDLCPU
DTYPES = ("float32", "float16", "bfloat16")
QKV_DIMS = "(batch, seqlen, num_heads, head_dim)"
PACKED_DIMS = "(total, num_heads, head_dim) with cu_seqlens"


def numpy():
    try:
        import numpy
    except ImportError as error:
        raise TypeError("q is no torch.Tensor, and arrays need NumPy, which is not installed; install it") from error
    return numpy


def to_numpy(name: str, x: Any):
    """A NumPy array over the memory of x."""
    np = numpy()
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask of its own, got a MaskedArray; use filled()")
    if isinstance(x, np.ndarray):
        return x
    if is_torch(x):
        raise TypeError(f"{name} must be an array as q is, got a torch.Tensor; give all as tensors, or {name}.numpy()")
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} must be a torch.Tensor, a NumPy array or speak DLPack, got {type(x).__name__}")
    device = x.__dlpack_device__()
    if device[0] != CPU:
        raise NotImplementedError(
            f"{name} must be in the CPU's memory, got DLPack device {device}; use torch.from_dlpack"
        )
    return np.from_dlpack(x)


def check_operand(name: str, x, is_packed: bool):
    """q, or what has its dimensions."""
    return check(name, x, 3, PACKED_DIMS) if is_packed else check(name, x, 4, QKV_DIMS)


def check(name: str, x, dims: int, meaning: str):
    if x.ndim != dims:
        raise ValueError(f"{name} must have {dims} dimensions {meaning}, got shape {x.shape}; use reshape")
    return x


def dense(x, any_strides=False):
    """With whole, positive strides and, unless any will do, a last one of 1; a copy if it was not so."""
    size = x.itemsize
    fits = all(stride >= 0 and stride % size == 0 for stride in x.strides)
    fits = fits and (any_strides or x.shape[-1] <= 1 or x.strides[-1] == size) and x.dtype.isnative and x.flags.aligned
    return x if fits else numpy().array(x, dtype=x.dtype.newbyteorder("="), order="C")


def written(x):
    """(address, shape, strides in elements)."""
    if x.size == 0:  # NumPy says that nothing lies nothing apart
        return (0, x.shape, (0, 0, 0, 1)[-x.ndim :])
    return (x.ctypes.data, x.shape, tuple(stride // x.itemsize for stride in x.strides))


#: NumPy lets nobody shorten the memory of an array.
ALL_MEMORY = (1 << 63) - 1


def lent(x):
    """The same of an array that is read: and where it begins in how many bytes."""
    return (*written(x), 0, ALL_MEMORY)


def operands(q, k, v, is_packed):
    arrays = {name: check_operand(name, to_numpy(name, x), is_packed) for name, x in (("q", q), ("k", k), ("v", v))}
    q = arrays["q"]
    if q.dtype.name not in DTYPES:
        raise TypeError(f"q must be float32, float16 or bfloat16 (of ml_dtypes), got {q.dtype}; use astype")
    for name, x in arrays.items():
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}; use astype")
    return [dense(x) for x in arrays.values()]


def starts(cu_seqlens):
    """Of packed sequences, cu_seqlens_q and cu_seqlens_k, dense."""
    if cu_seqlens is None:
        return None
    found = []
    for name, x in zip(("cu_seqlens_q", "cu_seqlens_k"), cu_seqlens):
        x = check(name, to_numpy(name, x), 1, "(sequences + 1,): where each begins, and the last ends")
        if x.dtype.name != "int32":
            raise TypeError(f'{name} must be int32, got {x.dtype}; use astype("int32")')
        found.append(dense(x))
    of_q, of_k = (len(x) for x in found)
    if of_q != of_k or of_q == 0:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must have as many numbers, one more than there are sequences, got "
            f"{of_q} and {of_k}"
        )
    return found


def lent_starts(found):
    return None if found is None else (lent(found[0]), lent(found[1]))


class Scores(NamedTuple):
    """What joins, as the native half reads it; bias and mask have four dimensions."""

    alibi_slopes: Any = None
    bias: Any = None
    mask: Any = None
    sinks: Any = None


def scores(given, q, k, found) -> Optional[Scores]:
    """Of alibi_slopes, bias, mask and sinks as they were given; None if there are none of them."""
    if given is None:
        return None
    if found is None:
        sizes = _joined.Sizes(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    else:
        sizes = _joined.Sizes(len(found[0]) - 1, q.shape[1])
    arrays = [None if x is None else to_numpy(name, x) for name, x in zip(_joined.NAMES, given)]
    for name, x in zip(_joined.NAMES, arrays):
        if x is not None:
            _joined.check_dtype(name, x.dtype.name)
    alibi_slopes, bias, mask, sinks = arrays
    if alibi_slopes is not None:
        _joined.check_slopes(alibi_slopes.shape, sizes)
        alibi_slopes = dense(numpy().ascontiguousarray(alibi_slopes))
    if sinks is not None:
        _joined.check_sinks(sinks.shape, sizes)
        sinks = dense(sinks.astype("float32"))
    return Scores(alibi_slopes, entries("bias", bias, sizes), entries("mask", mask, sizes), sinks)


def entries(name, x, sizes):
    """A bias or a mask with four dimensions."""
    if x is None:
        return None
    _joined.check_entries(name, x.shape, sizes)
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if sizes.seqlen_k is not None and x.shape[3] != sizes.seqlen_k:
        x = numpy().broadcast_to(x, (*x.shape[:3], sizes.seqlen_k))
    return dense(x, any_strides=True)


def lent_scores(joined):
    if joined is None:
        return None
    slopes, bias, mask, sinks = (None if x is None else lent(x) for x in joined)
    return slopes, None if bias is None else (bias, joined.bias.dtype.name), mask, sinks


def room_for_probs(q, k, v, found, settings):
    """(batch, num_heads, seqlen_q, seqlen_k); of packed sequences, as long as the longest are."""
    np = numpy()
    if found is None:
        return np.empty((q.shape[0], q.shape[2], q.shape[1], k.shape[1]), q.dtype)
    shape = _native.packed_probs((-1, 0), (q.shape, k.shape, v.shape), lent_starts(found), settings)
    _expect(shape is not None)
    return np.zeros(shape, q.dtype)  # no kernel writes what is beyond a shorter sequence


def back(like: Any, x):
    """x as the kind of array that like is, where that is known."""
    if isinstance(like, numpy().ndarray) or not hasattr(like, "__array_namespace__"):
        return x
    namespace = like.__array_namespace__()
    return namespace.from_dlpack(x) if hasattr(namespace, "from_dlpack") else x


def attention(
    given_q,
    k,
    v,
    settings,
    *,
    cu_seqlens,
    seed,
    offset,
    generator,
    rng_state,
    deterministic,
    return_probs,
    joined,
    wide,
):
    """(out, lse, probs or None, (seed, offset)); the backward of the CPU is always deterministic."""
    np = numpy()
    if rng_state is not None:
        raise TypeError("rng_state is for PyTorch tensors; give seed and offset")
    if generator is not None and not isinstance(generator, _random.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator must be a signflash.Generator for arrays, got {kind}; or give seed and offset")
    is_packed, found = cu_seqlens is not None, starts(cu_seqlens)
    q, k, v = operands(given_q, k, v, is_packed)
    seqlen_q, num_heads = q.shape[-3:-1]
    batch = len(found[0]) - 1 if is_packed else q.shape[0]
    if settings.dropout_p > 0.0 and seed is None:
        source = generator or _random.scoped() or _random.of_arrays()
        seed, offset = source.next(batch, num_heads)
    seed = seed or 0
    joined = scores(joined, q, k, found)
    out = np.empty((*q.shape[:-1], v.shape[-1]), "float32" if wide else q.dtype)
    lse = np.empty((num_heads, seqlen_q) if is_packed else (batch, num_heads, seqlen_q), np.float32)
    probs = room_for_probs(q, k, v, found, settings) if return_probs else None
    computed = _native.forward(
        (-1, 0),
        (q.dtype.name, out.dtype.name, (False, False)),
        (lent(q), lent(k), lent(v)),
        lent_starts(found),
        lent_scores(joined),
        written(out),
        lse.ctypes.data,
        None if probs is None else written(probs),
        0,
        (seed, offset, 0),
        settings,
    )
    _expect(computed)
    probs = None if probs is None else back(given_q, probs)
    return back(given_q, out), back(given_q, lse), probs, (seed, offset)


def _expect(computed: bool) -> None:
    if not computed:
        raise RuntimeError("an array cannot be read where it lies; please report this")  # all were made dense before


def backward(dout, given_q, k, v, out, lse, dlse, settings, state, cu_seqlens, joined, wanted, wide):
    """(dq, dk, dv, dbias, dsinks); the last two are None unless they are wanted."""
    np = numpy()
    is_packed, found = cu_seqlens is not None, starts(cu_seqlens)
    q, k, v = operands(given_q, k, v, is_packed)
    read = [q, k, v]
    for name, x in (("out", out), ("dout", dout)):
        x = check_operand(name, to_numpy(name, x), is_packed)
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}; use astype")
        read.append(dense(x))
    lse = rows("lse", lse, q)
    dlse = None if dlse is None else rows("dlse", dlse, q)
    given_bias = None if joined is None else joined[1]
    joined = scores(joined, q, k, found)
    likes = [q, k, v] + [x if wants else None for x, wants in zip((joined or Scores())[1::2], wanted)]
    dtypes = ["float32"] * 3 if wide else [q.dtype] * 3
    dtypes += [None if x is None else x.dtype for x in likes[3:]]
    gradients = [None if x is None else np.empty(x.shape, dtype) for x, dtype in zip(likes, dtypes)]
    computed = _native.backward(
        (-1, 0),
        (q.dtype.name, gradients[0].dtype.name, (False, False)),
        tuple(lent(x) for x in read),
        (lent(lse), None if dlse is None else lent(dlse)),
        lent_starts(found),
        lent_scores(joined),
        (
            *(None if x is None else written(x) for x in gradients[:4]),
            None if gradients[4] is None else gradients[4].ctypes.data,
        ),
        0,
        False,
        (*state, 0),
        settings,
    )
    _expect(computed)
    if gradients[3] is not None:
        shape = to_numpy("bias", given_bias).shape
        if shape[-1:] != gradients[3].shape[-1:] and not is_packed:  # one column for all keys
            gradients[3] = gradients[3].sum(-1, keepdims=True, dtype=np.float32).astype(gradients[3].dtype)
        gradients[3] = gradients[3].reshape(shape)
    return tuple(None if x is None else back(given_q, x) for x in gradients)


def rows(name: str, x: Any, q):
    """lse or its gradient, dense."""
    np = numpy()
    *batch, seqlen_q, num_heads, _ = q.shape
    expected = (*batch, num_heads, seqlen_q)
    meaning = "(batch, num_heads, seqlen_q)" if batch else "(num_heads, total_q)"
    x = check(name, to_numpy(name, x), len(expected), meaning)
    if x.dtype != np.float32 or x.shape != expected:
        raise ValueError(
            f"{name} must be float32 of shape {expected}, got {x.dtype} of shape {x.shape}; lse is what the forward "
            "returned, dlse the gradient of it"
        )
    # What NumPy calls contiguous may have any stride where there is one of something: also a negative one.
    return dense(np.require(x, requirements=("C_CONTIGUOUS", "ALIGNED")))
