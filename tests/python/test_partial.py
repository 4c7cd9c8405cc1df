"""Partial results in float32, and pieces of a larger problem: what several ranks compute, here by one."""

import pytest

torch = pytest.importorskip("torch")

import signflash
from signflash import Shard

SETTINGS = dict(dropout_p=0.3, seed=3, offset=32)


def make(dtype, rows=70, columns=90, dim_v=24):
    generator = torch.Generator().manual_seed(1)
    sizes = [(2, rows, 4, 32), (2, columns, 2, 32), (2, columns, 2, dim_v), (2, rows, 4, dim_v)]
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_results_are_what_would_be_rounded(dtype):
    q, k, v, dout = make(dtype)
    out, lse = signflash.attention(q, k, v, **SETTINGS, return_lse=True)
    wide, same = signflash.attention(q, k, v, **SETTINGS, return_lse=True, out_dtype=torch.float32)
    assert wide.dtype is torch.float32 and torch.equal(wide.to(dtype), out) and torch.equal(same, lse)
    assert not torch.equal(wide, out.float())
    narrow = signflash.attention_backward(dout, q, k, v, out, lse, **SETTINGS)
    found = signflash.attention_backward(dout, q, k, v, out, lse, **SETTINGS, grad_dtype=torch.float32)
    for wide, one in zip(found, narrow):
        assert wide.dtype is torch.float32 and torch.equal(wide.to(dtype), one) and not torch.equal(wide, one.float())


def test_float32_results_of_arrays():
    np = pytest.importorskip("numpy")
    q, k, v, dout = (x.numpy() for x in make(torch.float16))
    out, lse = signflash.attention(q, k, v, **SETTINGS, return_lse=True, out_dtype="float32")
    assert out.dtype == np.float32 and (out.astype("float16") == signflash.attention(q, k, v, **SETTINGS)).all()
    found = signflash.attention_backward(dout, q, k, v, out.astype("float16"), lse, **SETTINGS, grad_dtype=np.float32)
    assert [x.dtype for x in found] == [np.float32] * 3


def weight(lse, both):
    """What part of both together one of them has."""
    return torch.where(both == -torch.inf, torch.zeros(()), (lse - both).exp()).transpose(1, 2)[..., None]


@pytest.mark.parametrize(
    "seen",
    [dict(causal=True), dict(window=(9, 4)), dict(alibi_slopes=torch.ones(4) / 8)],
    ids=lambda seen: next(iter(seen)),
)
def test_pieces_with_diagonals_are_the_whole(seen):
    q, k, v, _ = make(torch.float32)
    whole, of_whole = signflash.attention(q, k, v, **SETTINGS, **seen, return_lse=True)
    total, lse = None, None
    for begin, end in ((0, 33), (33, 90)):
        piece = dict(shard=Shard(first_row=20, first_column=begin, num_heads_total=4), diagonal=90 - 70 + 20 - begin)
        out, of = signflash.attention(
            q[:, 20:], k[:, begin:end], v[:, begin:end], **SETTINGS, **seen, **piece, return_lse=True
        )
        both = of if lse is None else torch.logaddexp(lse, of)
        total = out if lse is None else total * weight(lse, both) + out * weight(of, both)
        lse = both
    torch.testing.assert_close(total, whole[:, 20:], atol=2e-6, rtol=0)
    torch.testing.assert_close(lse, of_whole[:, :, 20:], atol=2e-6, rtol=1e-6)


def test_operators_take_a_diagonal():
    if not hasattr(torch.library, "register_autograd"):
        pytest.skip("operators need PyTorch 2.4")
    q, k, v, _ = make(torch.float32)
    settings = [0, 0, False, False, 0.0, None, True, -1, -1, False, 0.0, -3, []]  # the last but one is the diagonal
    out = torch.ops.signflash.attention_forward(q, k, v, *[None] * 7, *settings)[0]
    assert torch.equal(out, signflash.attention(q, k, v, causal=True, diagonal=-3))


def test_what_is_not_there_is_refused():
    q, k, v, dout = make(torch.bfloat16)
    with pytest.raises(TypeError, match="out_dtype must be float32"):
        signflash.attention(q, k, v, out_dtype=torch.float64)
    with pytest.raises(ValueError, match="return_probs was given together with out_dtype"):
        signflash.attention(q, k, v, out_dtype=torch.float32, return_probs=True)
    with pytest.raises(NotImplementedError, match="autograd does not know"):
        signflash.attention(q.requires_grad_(), k, v, out_dtype=torch.float32)
    with pytest.raises(TypeError, match="diagonal must be an int"):
        signflash.attention(q, k, v, diagonal=0.5)
    with pytest.raises(ValueError, match="diagonal must be from"):
        signflash.attention(q, k, v, diagonal=1 << 40)
    starts = torch.tensor([0, 70], dtype=torch.int32)
    with pytest.raises(ValueError, match="diagonal"):
        signflash.attention(q[0], q[0], q[0], cu_seqlens_q=starts, cu_seqlens_k=starts, diagonal=1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_rounds_no_float32_results(dtype):
    """They are what would have been rounded."""
    q, k, v, dout = (x.cuda() for x in make(dtype))
    wide, lse = signflash.attention(q, k, v, **SETTINGS, return_lse=True, out_dtype=torch.float32)
    out = signflash.attention(q, k, v, **SETTINGS)
    assert wide.dtype is torch.float32 and torch.equal(wide.to(dtype), out) and not torch.equal(wide, out.float())
    arguments = (dout, q, k, v, out, lse)
    wide = signflash.attention_backward(*arguments, **SETTINGS, deterministic=True, grad_dtype=torch.float32)
    same = signflash.attention_backward(*arguments, **SETTINGS, deterministic=True)
    for wide, same in zip(wide, same):
        assert wide.dtype is torch.float32 and torch.equal(wide.to(dtype), same) and not torch.equal(wide, same.float())
