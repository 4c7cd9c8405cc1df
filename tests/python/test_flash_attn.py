"""FlashAttention-2's functions: signatures to the letter, semantics, and what is not there."""

import inspect

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

TAIL = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
    "deterministic=False, return_attn_probs=False"
)
SIGNATURES = {
    "flash_attn_func": f"(q, k, v, {TAIL})",
    "flash_attn_kvpacked_func": f"(q, kv, {TAIL})",
    "flash_attn_qkvpacked_func": f"(qkv, {TAIL})",
    "flash_attn_varlen_func": "(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
    f"{TAIL}, block_table=None)",
    "flash_attn_varlen_kvpacked_func": f"(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {TAIL})",
    "flash_attn_varlen_qkvpacked_func": f"(qkv, cu_seqlens, max_seqlen, {TAIL})",
    "flash_attn_with_kvcache": "(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
    "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
    "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
    "return_softmax_lse=False)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_flash_attentions(name):
    assert str(inspect.signature(getattr(signflash, name))) == SIGNATURES[name]


def make(device, dtype=torch.float16, batch=2, seqlen=97, heads=3, dim=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, seqlen, 3, heads, dim, generator=generator).to(device, dtype).requires_grad_()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.17])
def test_packed_functions_are_the_plain_one(p, causal, device):
    qkv = make(device)
    dout = torch.randn(2, 97, 3, 64, generator=torch.Generator().manual_seed(1)).to(device, qkv.dtype)
    results = []
    for call in (
        lambda: signflash.flash_attn_qkvpacked_func(qkv, p, None, causal, deterministic=True),
        lambda: signflash.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], p, None, causal, deterministic=True),
        lambda: signflash.flash_attn_func(*qkv.unbind(2), p, None, causal, deterministic=True),
    ):
        qkv.grad = None
        with signflash.random_state(11):
            out = call()
        out.backward(dout)
        results.append((out.detach(), qkv.grad))
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("p", [0.0, 0.17])
def test_returned_probabilities_are_normalised_and_exact_in_shape(p, device):
    q, k, v = make(device).detach().unbind(2)
    with signflash.random_state(3, 64):
        out, lse, probs = signflash.flash_attn_func(q, k, v, p, causal=True, return_attn_probs=True)
    assert probs.shape == (2, 3, 97, 97) and lse.shape == (2, 3, 97) and lse.dtype == torch.float32
    probability, dropped = signflash.decode(probs)
    assert torch.allclose(probability.float().sum(-1), torch.ones(2, 3, 97, device=device), atol=2e-3)
    keep = reference.keep(probs.shape, p, 3, 64) if p else None
    scale = reference.keep_scale(p, nominal=True)
    expected, _, _ = reference.attention(q, k, v, keep=keep, scale=scale, causal=True)
    assert reference.error(out, expected) <= reference.OUT["float16"]
    visible = torch.ones(97, 97, dtype=torch.bool, device=device).tril()
    assert not dropped[..., ~visible].any()
    assert bool(dropped.any()) == (p > 0)


def test_rows_that_see_nothing_have_flash_attentions_infinity(device):
    qkv = make(device).detach()
    q, k, v = qkv[:, :, 0], qkv[:, :50, 1], qkv[:, :50, 2]
    out, lse, _ = signflash.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert bool((lse[..., :47] == torch.inf).all()) and bool((out[:, :47] == 0).all())
    assert bool(torch.isfinite(lse[..., 47:]).all())


def test_windows_that_are_no_windows_are_taken(device):
    q, k, v = make(device).detach().unbind(2)
    causal = signflash.flash_attn_func(q, k, v, causal=True)
    assert torch.equal(signflash.flash_attn_func(q, k, v, window_size=(-1, 0)), causal)
    assert torch.equal(signflash.flash_attn_func(q, k, v, causal=True, window_size=torch.tensor([-1, -1])), causal)
    assert torch.equal(signflash.flash_attn_func(q, k, v, causal=True, window_size=(200, 5)), causal)
    assert torch.equal(signflash.flash_attn_func(q, k, v, window_size=(97, 97)), signflash.flash_attn_func(q, k, v))


def test_the_kv_cache_is_not_there_and_says_so():
    with pytest.raises(NotImplementedError, match="flash_attn_with_kvcache"):
        signflash.flash_attn_with_kvcache(None, None, None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.17])
@pytest.mark.parametrize("window", [(5, 5), (1, 0), (7, -1), (-1, 20), (40, 0)])
def test_windows_are_flash_attentions(window, p, causal, device):
    qkv = make(device).detach()
    for q, k, v in (qkv.unbind(2), (qkv[:, :, 0], qkv[:, :33, 1], qkv[:, :33, 2]), (qkv[:, :33, 0], qkv[:, :, 1], qkv[:, :, 2])):
        q = q.contiguous().requires_grad_()
        with signflash.random_state(3, 64):
            out, lse, _ = signflash.flash_attn_func(q, k, v, p, None, causal, window, return_attn_probs=True)
        exact = q.detach().clone().requires_grad_()
        keep = reference.keep((*lse.shape, k.shape[1]), p, 3, 64) if p else None
        settings = dict(keep=keep, scale=reference.keep_scale(p, nominal=True), causal=causal, window=window)
        expected, expected_lse, _ = reference.attention(exact, k, v, **settings)
        assert reference.error(out, expected) <= reference.OUT["float16"]
        assert torch.equal(torch.isposinf(lse), torch.isneginf(expected_lse))
        out.sum().backward()
        expected.sum().backward()
        assert reference.error(q.grad, exact.grad) <= reference.GRADIENT["float16"]


def test_any_negative_side_is_no_bound_and_one_that_reaches_all_keys_is_none(device):
    q, k, v = make(device).detach().unbind(2)
    whole = signflash.flash_attn_func(q, k[:, :20], v[:, :20])
    for window in ((-7, -2), (20, 20), torch.tensor([-1, 25])):
        # As FlashAttention-2 has it, also where queries face what is before the first key.
        assert torch.equal(signflash.flash_attn_func(q, k[:, :20], v[:, :20], window_size=window), whole)
    with pytest.raises(TypeError, match="window_size must be a pair"):
        signflash.flash_attn_func(q, k, v, window_size=3)
