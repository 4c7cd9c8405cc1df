"""The operators of PyTorch's efficient kernel and of cuDNN's, forward and backward: with dropout ours, without PyTorch's own.

Which of them PyTorch calls it chooses before; masks come to them as numbers, and newer PyTorch prefers cuDNN's on Hopper.
Whether a call is ours depends on its arguments alone (:func:`is_ours`), so that a backward knows by its own whose forward
it belongs to.
"""

from __future__ import annotations

import torch

from .._settings import U64
from . import below, notes, rings, takes
from .below import Given, Like
from .call import Call

EFFICIENT = "_scaled_dot_product_efficient_attention"
CUDNN = "_scaled_dot_product_cudnn_attention"
_BYTES_OF_A_STATE = 16
#: The efficient kernel has rows of lse for so many queries at once.
_ROWS = 32


#: A GPU that has fewer pairs of a query and a key than this to weigh takes less time for them than a kernel of ours costs the
#: host beyond PyTorch's own, which calls no Python (docs/pytorch.md has the measurement).
LEAST_PAIRS = 1 << 27


def _pairs(given) -> int:
    batch, num_heads, seqlen_q, _ = given.query.shape
    pairs = batch * num_heads * seqlen_q * given.key.shape[2]
    return pairs // 2 if given.is_causal else pairs


def is_ours(given: Given) -> bool:
    return _why_not(given) is None


def _why_not(given):
    q, v = given.query, given.value
    if given.dropout_p == 0.0:
        return takes.NO_DROPOUT
    if not 0.0 < given.dropout_p < 1.0:
        return takes.CERTAIN
    if q.dtype not in takes.HALF:
        return takes.Reason(f"query is {str(q.dtype)[6:]} on {q.device.type}")
    if q.shape[3] > 256 or v.shape[3] > 256:
        return takes.too_wide(q, v)
    if 0 in q.shape or 0 in given.key.shape or v.shape[3] == 0:
        return takes.EMPTY
    if q.is_cuda:
        if not takes.is_new_enough(q.get_device()):
            return takes.OLD_GPU
        if _pairs(given) < LEAST_PAIRS:
            return takes.FEW_PAIRS
    return None


class _Kept:
    """A kernel of ours, and PyTorch's own for what is not ours."""

    def __init__(self, own) -> None:
        self._own = own

    @staticmethod
    def _why_left(given):
        """Why a forward is PyTorch's, which would give wrong gradients of dropout in a ring of its own, ours or not."""
        if given.dropout_p > 0.0:
            rings.refuse_in_a_ring()
        return _why_not(given)


class EfficientForward(_Kept):
    name = EFFICIENT

    def __call__(
        self, keys, query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None
    ):
        """(out, lse, seed, offset); lse has room for a multiple of 32 queries, or none."""
        given = Given(query, key, value, attn_bias, dropout_p, is_causal, scale)
        reason = self._why_left(given)
        if reason is not None:
            notes.left(Call(*given), reason)
            rest = (compute_log_sumexp, dropout_p, is_causal)
            return self._own.call_boxed(keys, query, key, value, attn_bias, *rest, scale=scale)
        batch, num_heads, seqlen_q, _ = query.shape
        out = torch.empty((batch, seqlen_q, num_heads, value.shape[3]), dtype=query.dtype, device=query.device)
        _, lse, _, drawn = below.forward(given, out)
        lse = _padded(lse) if compute_log_sumexp else lse.new_empty((batch, num_heads, 0))
        return out.transpose(1, 2), lse, *drawn.as_two()


class EfficientBackward(_Kept):
    name = f"{EFFICIENT}_backward"

    def __call__(
        self, keys, grad_out, query, key, value, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p,
        grad_input_mask, is_causal=False, *, scale=None,
    ):  # fmt: skip
        """(dq, dk, dv, dbias or None); what autograd does not ask for may be there all the same."""
        given = Given(query, key, value, attn_bias, dropout_p, is_causal, scale)
        if not is_ours(given):
            rest = (out, logsumexp, philox_seed, philox_offset, dropout_p, grad_input_mask, is_causal)
            return self._own.call_boxed(keys, grad_out, query, key, value, attn_bias, *rest, scale=scale)
        gradients = [x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])) for x in (query, key, value)]
        lse, state = logsumexp[..., : query.shape[2]].contiguous(), _one_of(philox_seed, philox_offset)
        wants_dbias = attn_bias is not None and grad_input_mask[3]
        dbias = below.backward(given, grad_out, out, lse, state, gradients, wants_dbias)
        return (*[x.transpose(1, 2) for x in gradients], _in_aligned_rows(dbias))


class CudnnForward(_Kept):
    name = CUDNN

    def __call__(
        self, keys, query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False,
        return_debug_mask=False, *, scale=None,
    ):  # fmt: skip
        """(out, lse (batch, num_heads, seqlen_q, 1), None, None, max_q, max_k, seed, offset, None)."""
        given = Given(query, key, value, attn_bias, dropout_p, is_causal, scale)
        reason = self._why_left(given)
        if reason is not None:
            notes.left(Call(*given), reason)
            rest = (compute_log_sumexp, dropout_p, is_causal, return_debug_mask)
            return self._own.call_boxed(keys, query, key, value, attn_bias, *rest, scale=scale)
        out = Like(query, value.shape[3])
        _, lse, _, drawn = below.forward(given, out.rows_first)
        lengths = query.shape[2], key.shape[2]
        return out.filled(), lse[..., None], None, None, *lengths, *drawn.as_two(), None


class CudnnBackward(_Kept):
    name = f"{CUDNN}_backward"

    def __call__(
        self, keys, grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias, cum_seq_q,
        cum_seq_k, max_q, max_k, dropout_p, is_causal, *, scale=None,
    ):  # fmt: skip
        """(dq, dk, dv)."""
        given = Given(query, key, value, attn_bias, dropout_p, is_causal, scale)
        if not is_ours(given):
            rest = (attn_bias, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal)
            saved = (out, logsumexp, philox_seed, philox_offset)
            return self._own.call_boxed(keys, grad_out, query, key, value, *saved, *rest, scale=scale)
        gradients = [Like(x) for x in (query, key, value)]
        state = _one_of(philox_seed, philox_offset)
        below.backward(given, grad_out, out, logsumexp[..., 0], state, [x.rows_first for x in gradients])
        return tuple([x.filled() for x in gradients])


KERNELS = (EfficientForward, EfficientBackward, CudnnForward, CudnnBackward)


def _padded(lse):
    batch, num_heads, seqlen_q = lse.shape
    behind = -seqlen_q % _ROWS
    if not behind:
        return lse
    padded = lse.new_zeros((batch, num_heads, seqlen_q + behind))
    padded[..., :seqlen_q] = lse
    return padded


def _in_aligned_rows(dbias):
    """As PyTorch's tracing predicts it: rows begin at multiples of 16 numbers."""
    if dbias is None or dbias.shape[3] % 16 == 0:
        return dbias
    wide = dbias.new_empty((*dbias.shape[:3], dbias.shape[3] + -dbias.shape[3] % 16))[..., : dbias.shape[3]]
    wide.copy_(dbias)
    return wide


def _one_of(seed, offset):
    """The state that both were parts of: numbers, or on a GPU, where nobody waits for them, a tensor."""
    if not seed.is_cuda:
        return seed.item() & U64, offset.item() & U64
    is_whole = seed.untyped_storage().nbytes() == _BYTES_OF_A_STATE and seed.storage_offset() == 0
    if not is_whole or offset.data_ptr() != seed.data_ptr() + _BYTES_OF_A_STATE // 2:
        raise RuntimeError(
            "signflash cannot find the random state of this call's forward: its seed and offset were moved apart; please "
            "report this, with what captured the CUDA graph"
        )
    return seed.as_strided((2,), (1,))
